//go:build race

package breaker_test

// raceEnabled says that sync.Pool drops some of what it is given, on purpose.
const raceEnabled = true
