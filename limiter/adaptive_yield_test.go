package limiter_test

import (
	"runtime"
	"sync"
	"testing"

	"github.com/spillgate/spillgate/limiter"
)

// On one processor, work that does not pause keeps what comes after it from
// reaching the limiter: without the yield one after the other is admitted, and nothing is
// ever shed.
func TestAdaptiveSeesTheRunQueue(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	run := func(opts ...limiter.ConcurrencyOption) (shed int64) {
		c := limiter.NewAdaptive(append(opts, limiter.WithLimits(1, 4), limiter.WithStart(4), limiter.WithQueue(0, 0))...)
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				p, err := c.Acquire(t.Context(), limiter.Request{})
				if err != nil {
					return
				}
				// The work is next to nothing: four at once that are preempted in it, on a busy machine, have others refused.
				p.Release(limiter.Success)
			})
		}
		wg.Wait()
		return c.Stats().Shed
	}
	with, without := run(), run(limiter.WithoutYield())
	t.Logf("of 200 at once, shed: %d with the yield, %d without", with, without)
	if with < 100 {
		t.Errorf("with the yield %d of 200 were shed, want most", with)
	}
	if without > 20 {
		t.Errorf("without the yield %d of 200 were shed; the run queue is seen some other way", without)
	}
}
