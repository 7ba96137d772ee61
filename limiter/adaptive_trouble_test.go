package limiter_test

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter"
)

// Little comes, one after the other, and then what is in flight hangs. Who comes then is refused within a second, however seldom
// anybody came before: for the line, one permit counts as being at work all the time.
func TestAdaptiveLineWhereLittleComes(t *testing.T) {
	for _, every := range []time.Duration{time.Second, time.Minute, 10 * time.Minute} {
		t.Run("one each "+every.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const work, most = 20 * time.Millisecond, time.Second
				c := limiter.NewAdaptive()
				for range 30 {
					p, err := c.Acquire(t.Context(), limiter.Request{})
					if err != nil {
						t.Fatal(err)
					}
					time.Sleep(work) // in a synctest bubble
					p.Release(limiter.Success)
					time.Sleep(every) // in a synctest bubble
				}
				var hang []limiter.Permit
				for range c.Limit() {
					p, err := c.Acquire(t.Context(), limiter.Request{})
					if err != nil {
						t.Fatal(err)
					}
					hang = append(hang, p)
				}
				from := time.Now()
				_, err := c.Acquire(t.Context(), limiter.Request{})
				took := time.Since(from)
				t.Logf("%d hang, and the next is refused after %v", len(hang), took)
				if err == nil || took > most {
					t.Errorf("%d hang, and the next gets %v after %v; want to be refused within %v", len(hang), err, took, most)
				}
				for _, p := range hang {
					p.Release(limiter.Failure)
				}
			})
		})
	}
}

// SetLimit begins a new window, whatever the one before still lacked.
func TestSetLimitBeginsAWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewAdaptive(limiter.WithStart(1000))
		round := func(n int) {
			var permits []limiter.Permit
			for range n {
				p, err := c.Acquire(t.Context(), limiter.Request{})
				if err != nil {
					t.Fatal(err)
				}
				permits = append(permits, p)
			}
			time.Sleep(time.Second) // in a synctest bubble
			for _, p := range permits {
				p.Release(limiter.Success)
			}
		}
		for range 20 {
			round(900)
		}
		for range 3 {
			round(2) // the window that is open is due, and lacks nearly all
		}
		if err := c.SetLimit(8); err != nil {
			t.Fatal(err)
		}
		if c.Stats().Latency != 0 {
			t.Fatal("SetLimit has kept what was measured at the limit before")
		}
		n := 0
		for c.Stats().Latency == 0 && n < 10_000 {
			round(8)
			n += 8
		}
		if n > 16 {
			t.Errorf("the first window after SetLimit was closed by success %d, want 8 or 16", n)
		}
	})
}

// adaptRound lets n come at once, and waits for all of them.
func adaptRound(t *testing.T, c *limiter.Concurrency, n int, took time.Duration, o limiter.Outcome) {
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			p, err := c.Acquire(t.Context(), limiter.Request{})
			if err == nil {
				time.Sleep(took) // in a synctest bubble
				p.Release(o)
			}
		})
	}
	wg.Wait()
}

// A limit that is set from outside while nothing succeeds: nothing is known of what there was before, and when the outage is over
// the limit finds its way all the same.
func TestSetLimitInAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const work, timeout = 20 * time.Millisecond, 200 * time.Millisecond
		c := limiter.NewAdaptive(limiter.WithStart(50))
		for range 40 {
			adaptRound(t, c, 60, work, limiter.Success)
		}
		for range 3 {
			adaptRound(t, c, 60, timeout, limiter.Failure)
		}
		if err := c.SetLimit(100); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			adaptRound(t, c, 150, timeout, limiter.Failure)
		}
		during := c.Stats().Shed
		const rounds, each = 200, 100
		for range rounds {
			adaptRound(t, c, each, work, limiter.Success)
		}
		if shed := c.Stats().Shed - during; shed > rounds*each/10 {
			t.Errorf("%d of %d were refused after the outage, want a tenth at most; %+v", shed, rounds*each, c.Stats())
		}
	})
}

// A limit that is set from outside while nothing succeeds is lowered from there, and not from where it was before.
func TestSetLimitIsLoweredToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const work, timeout = 20 * time.Millisecond, 200 * time.Millisecond
		c := limiter.NewAdaptive(limiter.WithStart(1000))
		for range 20 {
			adaptRound(t, c, 1000, work, limiter.Success)
		}
		for range 20 {
			adaptRound(t, c, 1000, timeout, limiter.Failure)
		}
		const set = 40
		if n := c.Limit(); n <= set || n >= 1000 {
			t.Fatalf("the limit is %d after an outage, want it to be lowered, by a factor of 16 at most", n)
		}
		if err := c.SetLimit(set); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			adaptRound(t, c, 1000, timeout, limiter.Failure)
		}
		if n := c.Limit(); n >= set {
			t.Errorf("nothing succeeds and the limit is still %d, want less than %d", n, set)
		}
	})
}

// A limiter takes what NewAdaptive says, on few processors and on many.
func TestAdaptiveBytes(t *testing.T) {
	if rateRaceEnabled {
		t.Skip("the race detector has nothing to find here")
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, tt := range []struct{ procs, most int64 }{{2, 50_000}, {256, 350_000}} {
		runtime.GOMAXPROCS(int(tt.procs))
		all := make([]*limiter.Concurrency, 100)
		before := rateHeap()
		for i := range all {
			all[i] = limiter.NewAdaptive()
		}
		if n := (rateHeap() - before) / int64(len(all)); n > tt.most {
			t.Errorf("%d processors: %d bytes, want %d at most", tt.procs, n, tt.most)
		}
		runtime.KeepAlive(all)
	}
}
