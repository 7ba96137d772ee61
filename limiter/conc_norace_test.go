//go:build !race

package limiter_test

const concRace = false
