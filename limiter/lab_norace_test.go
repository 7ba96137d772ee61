//go:build !race

package limiter

const labRace = false
