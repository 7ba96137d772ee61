//go:build race

package compare

// raceEnabled is set where every goroutine costs ten times as much.
const raceEnabled = true
