package jobs_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/pool"
	"github.com/spillgate/spillgate/pool/jobs"
)

// Jobs that wait for jobs in every way there is end, in a pool that becomes larger and smaller and has more urgent work as well.
func TestJobsThatWaitInEveryWay(t *testing.T) {
	for seed := range uint64(10) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { waitInEveryWay(t, seed) })
		})
	}
}

func waitInEveryWay(t *testing.T, seed uint64) {
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(seed, 11))
	n := func(n int) int { mu.Lock(); defer mu.Unlock(); return r.IntN(n) }
	p := pool.New(pool.WithSlots(1+n(4)), pool.WithQueue(64, time.Duration(1+n(5))*time.Second))
	m := jobs.NewMux()
	l := jobs.NewLocal(m, p)
	work := func(ctx context.Context, ms int) error {
		for range ms {
			time.Sleep(time.Millisecond) // in a synctest bubble
			if err := pool.Checkpoint(ctx); err != nil {
				return err
			}
		}
		return nil
	}
	type node struct{ How, Depth int }
	begin := func(ctx context.Context, depth int) (jobs.Job, error) {
		j, _, err := l.Submit(ctx, "node", fmt.Appendf(nil, `{"how":%d,"depth":%d}`, n(8), depth), jobs.SubmitOptions{Client: fmt.Sprint(n(3)), Priority: n(16) - 8})
		return j, err
	}
	jobs.Register(m, "node", func(ctx context.Context, a node) (int, error) {
		child := func(ctx context.Context) error {
			j, err := begin(ctx, a.Depth+1)
			if err != nil {
				return err
			}
			if n(3) == 0 {
				work(ctx, n(50))
			}
			if n(8) == 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, time.Duration(n(3000))*time.Millisecond)
				defer cancel()
			}
			for _, err := range l.Watch(ctx, j.ID) {
				if err != nil {
					return err
				}
				if n(20) == 0 {
					work(ctx, n(30))
				}
				if n(40) == 0 {
					return nil
				}
			}
			return nil
		}
		each := func(ctx context.Context, i int) (int, error) {
			if i == 0 {
				return 0, work(ctx, n(300))
			}
			return 0, child(ctx)
		}
		if a.Depth > 3 {
			return 0, work(ctx, n(300))
		}
		switch a.How {
		case 0:
			return 0, child(ctx)
		case 1:
			errs := make(chan error, 3)
			for i := range 3 {
				go func() {
					_, err := each(ctx, i)
					errs <- err
				}()
			}
			return 0, errors.Join(<-errs, <-errs, <-errs)
		case 2:
			_, err := pool.Map(ctx, p, make([]int, n(4)), each)
			return 0, err
		case 3:
			_, err := pool.Map(ctx, p, []int{1, 2, 3}, each)
			return 0, err
		case 4:
			f := pool.Submit(ctx, p, func(ctx context.Context) (int, error) { return each(ctx, 1) })
			if n(2) == 0 {
				work(ctx, 3)
			}
			return f.Wait(ctx)
		case 5:
			for _, err := range pool.Stream(ctx, p, func(yield func(int) bool) {
				for i := 0; i < 3 && yield(i); i++ {
				}
			}, each) {
				if err != nil {
					return 0, err
				}
			}
		case 6:
			switch n(8) {
			case 0:
				runtime.Goexit()
			case 1:
				panic("x")
			}
		case 7:
			if n(2) == 0 {
				go child(ctx) // left behind
			}
		}
		return 0, work(ctx, n(300))
	}, jobs.WithAttempts(1+n(3)), jobs.WithBackoff(time.Millisecond, 2*time.Second))

	var all sync.WaitGroup
	end := time.Now().Add(20 * time.Second)
	for range 1 + n(4) {
		all.Go(func() {
			for time.Now().Before(end) {
				time.Sleep(time.Duration(n(200)) * time.Millisecond) // in a synctest bubble
				limited, cancel := context.WithTimeout(ctx, time.Duration(1+n(20_000))*time.Millisecond)
				p.Do(limited, func(ctx context.Context) error {
					if n(4) == 0 {
						if j, err := begin(ctx, 0); err == nil {
							for range l.Watch(ctx, j.ID) {
							}
						}
					}
					return work(ctx, n(100))
				}, pool.WithPriority(n(16)-8), pool.WithWeight(1+n(3)))
				cancel()
			}
		})
	}
	for time.Now().Before(end) {
		switch n(6) {
		case 0:
			p.Resize(1 + n(4))
		case 1:
			p.Resize(1)
		default:
			if _, err := begin(ctx, 0); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Duration(n(1000)) * time.Millisecond) // in a synctest bubble
	}
	all.Wait()
	time.Sleep(time.Hour) // in a synctest bubble
	if s := l.Stats(); s.Queued+s.Delayed+s.Running != 0 {
		t.Errorf("they wait for ever: %+v", s)
		p.Resize(1000)        // has them end
		time.Sleep(time.Hour) // in a synctest bubble
	}
	if s := p.Stats(); s.Used != 0 || s.Waiting != 0 {
		t.Errorf("in the end %d slots are used, and %d tasks wait", s.Used, s.Waiting)
	}
	l.Close()
}
