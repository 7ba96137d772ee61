package limiter

import (
	"context"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

// Of who waited nothing is kept, however the wait ended.
func TestRateWaitKeepsNothing(t *testing.T) {
	for kind, opts := range map[string][]RateOption{"table": nil, "exact": {WithExactKeys()}} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := NewRate(1, 1, opts...)
				shadow := NewRate(1, 1, append([]RateOption{WithRateShadow()}, opts...)...)
				for i := range 1000 {
					key := strconv.Itoa(i % 100)
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					go r.Wait(ctx, key)
					shadow.Wait(ctx, key)
					if i%7 == 0 {
						synctest.Wait()
						cancel()
					}
					if i%11 == 0 {
						r.Reset(key)
					}
				}
				time.Sleep(time.Hour) // in a synctest bubble
				synctest.Wait()
				for _, r := range []*Rate{r, shadow} {
					for i := range r.table.shards {
						if n := len(r.table.shards[i].held); n != 0 {
							t.Errorf("%d keys are held by those who have waited", n)
						}
					}
				}
			})
		})
	}
}
