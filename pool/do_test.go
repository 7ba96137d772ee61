package pool_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/pool"
)

func TestDeadlineEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(1))
		release := full(p)
		began := time.Now()
		err := p.Do(context.Background(), func(context.Context) error { t.Error("ran"); return nil },
			pool.WithDeadline(began.Add(time.Second)))
		if waited := time.Since(began).Round(time.Microsecond); !errors.Is(err, limiter.ErrWouldMissDeadline) || waited != time.Second {
			t.Errorf("%v after %v, want the refusal at the deadline", err, waited)
		}
		if s := p.Stats(); s.Refused != 1 || s.Deadline != 1 || s.Left != 0 {
			t.Errorf("%+v", s)
		}
		release()
		empty(t, p)
	})
}
