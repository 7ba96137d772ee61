package pool_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/pool"
)

func TestStreamReadsNoFurtherAtShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(2))
		const most = 10_000
		pulled := 0
		in := func(yield func(int) bool) {
			for pulled < most && yield(pulled) {
				pulled++
			}
		}
		var last error
		var got int
		for _, err := range pool.Stream(context.Background(), p, in, func(context.Context, int) (int, error) {
			time.Sleep(time.Second)
			return 0, nil
		}) {
			last = err
			if got++; got == 1 {
				over, cancel := context.WithCancel(context.Background())
				cancel()
				p.Shutdown(over)
			}
		}
		if !errors.Is(last, pool.ErrShutdown) {
			t.Errorf("the last error is %v", last)
		}
		if pulled > got+4 {
			t.Errorf("%d elements read for %d results", pulled, got)
		}
		if n := p.Slots(); n != 2 {
			t.Errorf("%d slots", n)
		}
		empty(t, p)
	})
}
