package pool_test

import (
	"context"
	"errors"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/pool"
)

// A pool that has dropped its tasks stays as it is: it has the slots that it had, and changes them no more.
func TestAfterTheDrop(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	runtime.GOMAXPROCS(4)
	synctest.Test(t, func(t *testing.T) {
		p := pool.New()
		result := make(chan error, 1)
		go p.Do(context.Background(), func(context.Context) error {
			time.Sleep(time.Hour) // in a synctest bubble
			return nil
		})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		err := p.Shutdown(ctx)
		if want := "pool: shut down before the work was done: (no kind): 0 waiting, 1 running"; err == nil || err.Error() != want {
			t.Errorf("Shutdown: %v, want %s", err, want)
		}
		if err := p.Resize(7); err != pool.ErrShutdown {
			t.Errorf("Resize: %v", err)
		}
		if err := p.Resize(0); err == nil || err == pool.ErrShutdown {
			t.Errorf("Resize(0): %v", err)
		}
		if x, err := pool.Overcommit(p); x != nil || err != pool.ErrShutdown {
			t.Errorf("Overcommit: %v", err)
		}
		x, err := pool.Overcommit(pool.New()) // what was refused is not open
		if err != nil {
			t.Fatal(err)
		}
		x.Close()
		runtime.GOMAXPROCS(6)
		time.Sleep(2 * time.Second) // in a synctest bubble
		if n := p.Slots(); n != 3 {
			t.Errorf("%d slots, want the 3 that it had", n)
		}
		go func() { result <- p.Shutdown(context.Background()) }()
		synctest.Wait()
		if len(result) != 0 {
			t.Error("a second Shutdown does not wait for what runs")
		}
		if err := <-result; err != nil {
			t.Errorf("a second Shutdown: %v", err)
		}
		if err := p.Do(context.Background(), func(context.Context) error { return nil }); !errors.Is(err, pool.ErrShutdown) {
			t.Errorf("Do: %v", err)
		}
		synctest.Wait()
		empty(t, p)
	})
}

// A Map that goes from one element to the next runs all the time: Shutdown said that all had ended, and the rest was dropped in silence.
func TestMapAtWorkIsDropped(t *testing.T) {
	p := pool.New(pool.WithSlots(1))
	begun, enough := make(chan struct{}), errors.New("enough")
	begin := sync.OnceFunc(func() { close(begun) })
	var stop atomic.Bool
	result := make(chan error, 1)
	go func() {
		_, err := pool.Map(context.Background(), p, make([]struct{}, math.MaxInt32), func(context.Context, struct{}) (struct{}, error) {
			begin()
			if stop.Load() {
				return struct{}{}, enough
			}
			return struct{}{}, nil
		})
		result <- err
	}()
	<-begun
	for i := range 1 << 17 {
		if d := pool.Unfinished(p); len(d) != 1 || d[0].Running < 1 {
			t.Errorf("%+v at look %d", d, i)
			break
		}
	}
	stop.Store(true)
	if err := <-result; err != enough {
		t.Error(err)
	}
}
