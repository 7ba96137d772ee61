package limiter

import (
	"context"
	"testing"
	"testing/synctest"
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

// TestAdaptiveSparesYields: while nobody waits for a processor, one request yields for each 8 ms of work, and all
// do again as soon as one of them finds somebody waiting.
func TestAdaptiveSparesYields(t *testing.T) {
	const us, ms = time.Microsecond, time.Millisecond
	for _, k := range []struct {
		name      string
		work, lag time.Duration
		saw       time.Duration
		want      int64
	}{
		{"brief", 10 * us, 0, 0, 64},
		{"brief: whatever it saw", 10 * us, 0, 20 * ms, 64},
		{"0.1 ms", 100 * us, 0, 0, 64},
		{"1 ms", ms, 0, 0, 8},
		{"2 ms", 2 * ms, 0, 0, 4},
		{"5 ms", 5 * ms, 0, 0, 1},
		{"1 ms, and a yield takes its time", ms, 40 * us, 40 * us, 8},
		{"1 ms, and others waited", ms, 60 * us, 0, 1},
		{"1 ms, and others wait now", ms, 0, 60 * us, 1},
	} {
		t.Run(k.name, func(t *testing.T) {
			a := NewAdaptive().adapt
			if got := a.every.Load(); got != 1 {
				t.Errorf("at first one of %d yields", got)
			}
			w := ctrlWindow{n: 64, sum: 64 * (k.work + k.lag).Seconds()}
			a.crowd(concCount{lag: int64(64 * k.lag), lags: 64}, &w)
			a.saw(k.saw)
			if got := a.every.Load(); got != k.want {
				t.Errorf("one of %d yields, want one of %d", got, k.want)
			}
		})
	}
}

// Where nothing that is let in succeeds, as where all of it goes on to a pool, no window is closed, and all yielded for good. How
// often somebody has to is seen from what the processors had time for.
func TestAdaptiveSparesYieldsWithoutSuccess(t *testing.T) {
	const us = time.Microsecond
	for _, k := range []struct {
		name       string
		each, wait time.Duration // from one end to the next, and for a processor
		want       int64
	}{
		{"brief", us, 0, 64},
		{"brief, and others wait", us, 100 * us, 1},
		{"rare", time.Second, 0, 1},
	} {
		t.Run(k.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := NewAdaptive()
				for range 10000 {
					p, err := c.Acquire(context.Background(), Request{})
					if err != nil {
						t.Fatal(err)
					}
					p.slot.lag = float32(k.wait)
					time.Sleep(k.each) // in a synctest bubble
					p.Release(Ignored)
				}
				if got := c.adapt.every.Load(); got != k.want {
					t.Errorf("one of %d yields, want one of %d", got, k.want)
				}
			})
		})
	}
}
