package pool_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/pool"
)

// A slot that comes free while all the goroutines of a Map are in the middle of an element is used for the next at once.
func TestMapBeginsWhenASlotComesFree(t *testing.T) {
	const brief, long = time.Second, time.Minute
	do := func(p *pool.Pool, opts ...pool.TaskOption) {
		p.Do(context.Background(), func(context.Context) error {
			time.Sleep(brief) // in a synctest bubble
			return nil
		}, opts...)
	}
	for name, busy := range map[string]func(p *pool.Pool){
		"Do":        func(p *pool.Pool) { do(p) },
		"Do, plain": func(p *pool.Pool) { do(p, pool.WithPlainContext()) },
		"Do that was waited for": func(p *pool.Pool) {
			var wg sync.WaitGroup
			for range 4 { // one of which waits, and none does after a second
				wg.Go(func() { do(p) })
			}
			wg.Wait()
		},
		"Submit": func(p *pool.Pool) {
			pool.Submit(context.Background(), p, func(context.Context) (int, error) {
				time.Sleep(brief) // in a synctest bubble
				return 0, nil
			}).Wait(context.Background())
		},
		"the caller of a Map": func(p *pool.Pool) {
			pool.Map(context.Background(), p, make([]int, 1), func(context.Context, int) (int, error) {
				time.Sleep(brief) // in a synctest bubble
				return 0, nil
			})
		},
		"a slot less": func(p *pool.Pool) {
			n := p.Slots()
			p.Resize(n - 1)
			time.Sleep(brief) // in a synctest bubble
			p.Resize(n)
		},
		"who waits for every slot and leaves": func(p *pool.Pool) {
			ctx, cancel := context.WithTimeout(context.Background(), brief)
			defer cancel()
			p.Do(ctx, func(context.Context) error { return nil }, pool.WithWeight(4))
		},
	} {
		for place, run := range mapPlaces {
			t.Run(name+", "+place, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := pool.New(pool.WithSlots(4))
					var wg sync.WaitGroup
					began := time.Now()
					wg.Go(func() {
						run(context.Background(), p, func(ctx context.Context) error {
							time.Sleep(time.Millisecond) // in a synctest bubble: until the others have come
							_, err := pool.Map(ctx, p, make([]int, 4), func(context.Context, int) (int, error) {
								time.Sleep(long) // in a synctest bubble
								return 0, nil
							})
							return err
						})
						if d := time.Since(began); d > long+3*brief {
							t.Errorf("4 elements took %v where there were 4 slots after %v at most", d, 3*brief)
						}
					})
					wg.Go(func() { busy(p) })
					wg.Wait()
					empty(t, p)
				})
			})
		}
	}
}

// An element that has not begun by its deadline is refused, as that of a Stream is.
func TestMapDeadline(t *testing.T) {
	for name, beside := range map[string]bool{"between two elements": false, "where others are in the line": true} {
		for place, run := range mapPlaces {
			most := 6 * time.Second // where the last element ends that has begun
			if beside && place == "in a slot of its own" {
				most = 5*time.Second + 1
			}
			t.Run(name+", "+place, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := pool.New(pool.WithSlots(1))
					began := time.Now()
					var wg sync.WaitGroup
					wg.Go(func() {
						var begun int
						err := run(context.Background(), p, func(ctx context.Context) error {
							out, err := pool.Map(ctx, p, make([]int, 100), func(context.Context, int) (int, error) {
								begun++
								time.Sleep(1500 * time.Millisecond) // in a synctest bubble
								return 0, nil
							}, pool.WithDeadline(began.Add(5*time.Second)))
							if out != nil {
								t.Errorf("%d results", len(out))
							}
							return err
						})
						if d := time.Since(began); !errors.Is(err, limiter.ErrWouldMissDeadline) || d > most {
							t.Errorf("got %v after %v and %d elements", err, d, begun)
						}
						if s := p.Stats(); s.Deadline != 1 || s.Refused != 1 {
							t.Errorf("%d refused, %d for the deadline", s.Refused, s.Deadline)
						}
					})
					if beside {
						time.Sleep(time.Second) // in a synctest bubble
						p.Do(context.Background(), func(context.Context) error {
							time.Sleep(time.Hour) // in a synctest bubble
							return nil
						})
					}
					wg.Wait()
					empty(t, p)
				})
			})
		}
	}
}

// Whoever has nothing to do waits for no slot.
func TestMapOfNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pool.New(pool.WithSlots(1), pool.WithQueue(0, 0))
		release := full(p)
		fn := func(context.Context, int) (int, error) { return 0, nil }
		if out, err := pool.Map(context.Background(), p, nil, fn); out == nil || err != nil {
			t.Errorf("got %v, %v", out, err)
		}
		ctx, cancel := context.WithCancelCause(context.Background())
		cancel(errTask)
		if out, err := pool.Map(ctx, p, nil, fn); out != nil || err != errTask {
			t.Errorf("after the end of its context: %v, %v", out, err)
		}
		release()
		empty(t, p)
	})
}

// Maps of every sort, in one another and beside other work, some of which fail: no more compute than there are slots, no slot is
// idle while there is an element to begin, and each is begun once.
func TestMapsAtRandom(t *testing.T) {
	for seed := range uint64(200) {
		synctest.Test(t, func(t *testing.T) {
			mapsAtRandom(t, rand.New(rand.NewPCG(seed, 3)))
			if t.Failed() {
				t.Logf("seed %d", seed)
			}
		})
	}
}

type mapsUnderTest struct {
	t    *testing.T
	p    *pool.Pool
	in   atomic.Int64 // at work at this moment
	most atomic.Int64 // slots there were
	mu   sync.Mutex   // of rng
	rng  *rand.Rand
	left sync.Map // of *atomic.Int64: the elements of a Map that have not begun, while they are to, by its context
}

func (m *mapsUnderTest) n(n int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rng.IntN(n)
}

func (m *mapsUnderTest) work() {
	if n := m.in.Add(1); n > m.most.Load() {
		m.t.Errorf("%d at work, with %d slots at most", n, m.most.Load())
	}
	defer m.in.Add(-1)
	time.Sleep(time.Duration(m.n(5)) * time.Millisecond) // in a synctest bubble
}

func (m *mapsUnderTest) mapping(ctx context.Context, depth int) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in := make([]int, m.n(12))
	for i := range in {
		in[i] = i
	}
	fails, how := m.n(40), m.n(4)
	calls := make([]atomic.Int64, len(in))
	var failed atomic.Bool
	left := new(atomic.Int64)
	left.Store(int64(len(in)))
	m.left.Store(left, ctx)
	defer m.left.Delete(left)
	out, err := pool.Map(ctx, m.p, in, func(ctx context.Context, i int) (int, error) {
		left.Add(-1)
		if calls[i].Add(1) > 1 {
			m.t.Errorf("element %d was begun twice", i)
		}
		well := false
		defer func() {
			if !well {
				failed.Store(true)
				m.left.Delete(left)
			}
		}()
		if i != fails && depth > 0 && m.n(3) == 0 {
			m.any(ctx, depth-1)
		} else {
			m.work()
		}
		err := pool.Checkpoint(ctx)
		if i == fails {
			switch how {
			case 0:
				panic("bad")
			case 1:
				runtime.Goexit()
			case 2:
				cancel()
			default:
				err = errTask
			}
		}
		well = err == nil && ctx.Err() == nil
		return i, err
	}, pool.WithPriority(m.n(3)-1), pool.WithClient(string(rune('a'+m.n(3)))))
	if err == nil && (!slices.Equal(in, out) || left.Load() != 0) {
		m.t.Errorf("got %v for %v", out, in)
	}
	if err != nil && !failed.Load() && ctx.Err() == nil {
		m.t.Errorf("%v, and nothing had failed", err)
	}
}

// any is a call of any sort.
func (m *mapsUnderTest) any(ctx context.Context, depth int) {
	switch m.n(4) {
	case 0:
		m.p.Do(ctx, func(ctx context.Context) error {
			if depth > 0 {
				m.mapping(ctx, depth-1)
				return nil
			}
			m.work()
			return nil
		}, pool.WithPriority(m.n(3)-1))
	case 1:
		pool.Submit(ctx, m.p, func(ctx context.Context) (int, error) {
			if depth > 0 {
				m.mapping(ctx, depth-1)
				return 0, nil
			}
			m.work()
			return 0, nil
		}, pool.WithPriority(m.n(3)-1)).Wait(context.Background())
	default:
		m.mapping(ctx, depth)
	}
}

func mapsAtRandom(t *testing.T, rng *rand.Rand) {
	slots := 1 + rng.IntN(5)
	m := &mapsUnderTest{t: t, p: pool.New(pool.WithSlots(slots), pool.WithQueue(1000, time.Hour)), rng: rng}
	m.most.Store(int64(slots))
	var running atomic.Int64
	for range 1 + rng.IntN(8) {
		running.Add(1)
		go func() {
			defer running.Add(-1)
			time.Sleep(time.Duration(m.n(30)) * time.Millisecond) // in a synctest bubble
			m.any(context.Background(), 2)
		}()
	}
	time.Sleep(time.Millisecond / 2) // in a synctest bubble
	for running.Load() > 0 {
		synctest.Wait()
		if s := m.p.Stats(); s.Used < s.Slots && !t.Failed() {
			m.left.Range(func(left, ctx any) bool {
				if n := left.(*atomic.Int64).Load(); n > 0 && ctx.(context.Context).Err() == nil {
					t.Errorf("%d of %d slots are used, and %d elements of a Map have not begun", s.Used, s.Slots, n)
				}
				return !t.Failed()
			})
		}
		if m.n(20) == 0 {
			n := 1 + m.n(5)
			m.most.Store(max(m.most.Load(), int64(n)))
			m.p.Resize(n)
		}
		time.Sleep(time.Millisecond) // in a synctest bubble
	}
	synctest.Wait()
	empty(t, m.p)
}

// A Map goes on in as many slots as there are, also where these become fewer while nobody waits for one.
func TestMapMakesDoWithFewerSlots(t *testing.T) {
	for name, c := range map[string]struct {
		fewer func(p *pool.Pool) (back func())
		want  int64 // elements at a time, meanwhile
	}{
		"Resize": {func(p *pool.Pool) func() {
			p.Resize(2)
			return func() { p.Resize(4) }
		}, 2},
		"a single one": {func(p *pool.Pool) func() {
			p.Resize(1)
			return func() { p.Resize(4) }
		}, 1},
		"fewer, and fewer again": {func(p *pool.Pool) func() {
			p.Resize(3)
			p.Resize(2)
			return func() { p.Resize(4) }
		}, 2},
		"a task that goes on after a pause": {func(p *pool.Pool) func() {
			p.Resize(5)
			_, slot, _ := p.Enter(context.Background())
			slot.Pause()
			p.Resize(4)
			slot.Resume()
			return slot.Leave
		}, 3},
	} {
		for _, inside := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", inside ", inside), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := pool.New(pool.WithSlots(4))
					var running atomic.Int64
					work := func(ctx context.Context) error {
						_, err := pool.Map(ctx, p, make([]int, 40), func(context.Context, int) (int, error) {
							running.Add(1)
							time.Sleep(time.Second) // in a synctest bubble
							running.Add(-1)
							return 0, nil
						})
						return err
					}
					done := make(chan error)
					go func() {
						if inside {
							done <- p.Do(context.Background(), work)
						} else {
							done <- work(context.Background())
						}
					}()
					time.Sleep(1500 * time.Millisecond) // in a synctest bubble
					back := c.fewer(p)
					for range 3 {
						time.Sleep(time.Second) // in a synctest bubble
						synctest.Wait()
						if n := running.Load(); n != c.want {
							t.Errorf("%d elements run at a time, want %d", n, c.want)
						}
					}
					back()
					synctest.Wait()
					if n := running.Load(); n != 4 {
						t.Errorf("%d elements run at a time in 4 slots again", n)
					}
					if err := <-done; err != nil {
						t.Fatal(err)
					}
					empty(t, p)
				})
			})
		}
	}
}
