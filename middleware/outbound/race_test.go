//go:build race

package outbound_test

// raceEnabled: the race detector makes a simulation ten times slower, and
// sync.Pool drop things, so that calls allocate.
const raceEnabled = true
