package limiter_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter"
)

// TestColdStart: work that waits long and clients that all come at once, before anything
// is known of it. Hardly anybody is refused until the limit has grown, and nobody afterwards.
func TestColdStart(t *testing.T) {
	tests := []struct {
		rule    string
		clients int
		work    time.Duration
		most    int64
	}{
		{"fifty clients of a handler that waits 100 ms", 50, 100 * time.Millisecond, 8},
		{"fifty clients of a handler that waits one second", 50, time.Second, 8},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := limiter.NewAdaptive()
				var refused, done atomic.Int64
				var wg sync.WaitGroup
				begin := time.Now()
				for range tt.clients {
					wg.Go(func() {
						for time.Since(begin) < 30*time.Second {
							p, err := c.Acquire(context.Background(), limiter.Request{})
							if err != nil {
								refused.Add(1)
								time.Sleep(100 * time.Millisecond) // in a synctest bubble
								continue
							}
							time.Sleep(tt.work) // in a synctest bubble
							p.Release(limiter.Success)
							done.Add(1)
						}
					})
				}
				wg.Wait()
				t.Logf("%d done, %d refused, limit %d", done.Load(), refused.Load(), c.Limit())
				if refused.Load() > tt.most {
					t.Errorf("%d were refused, want %d at most", refused.Load(), tt.most)
				}
			})
		})
	}
}
