package limiter

import (
	"testing"
	"time"
)

// Work shorter than a refusal needs no yield in front of it: what counts is the work, without the
// wait for a processor, whether all of those in the window waited or only the sample.
func TestAdaptiveBriefWork(t *testing.T) {
	const us = time.Microsecond
	for _, k := range []struct {
		name      string
		brief     bool
		work, lag time.Duration // of each of 64; lag is the mean
		want      bool
	}{
		{"unknown, and brief", false, 10 * us, 0, true},
		{"unknown, and neither", false, 40 * us, 0, false},
		{"brief before, and neither", true, 40 * us, 0, true},
		{"brief before, and no longer", true, 60 * us, 0, false},
		{"brief in a long run queue", false, 10 * us, 20 * time.Millisecond, true},
		{"long in a long run queue", true, 2 * time.Millisecond, 20 * time.Millisecond, false},
	} {
		t.Run(k.name, func(t *testing.T) {
			c := NewAdaptive()
			a := c.adapt
			a.brief.Store(k.brief)
			w := ctrlWindow{n: 64, sum: 64 * (k.work + k.lag).Seconds()}
			a.crowd(concCount{lag: int64(64 * k.lag), lags: 64}, &w)
			if got := a.brief.Load(); got != k.want {
				t.Errorf("brief is %v, want %v", got, k.want)
			}
		})
	}
}
