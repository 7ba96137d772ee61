//go:build race

package limiter_test

const rateRaceEnabled = true
