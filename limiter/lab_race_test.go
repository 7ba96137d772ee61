//go:build race

package limiter

// labRace says that the laboratory runs ten times slower, on code that has one goroutine.
const labRace = true
