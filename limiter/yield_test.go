package limiter_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter"
)

func TestYield(t *testing.T) {
	const step = 100 * time.Millisecond
	ctx := context.Background()
	// line returns a limiter of one permit, which is taken, and a func that puts a request in
	// its line that notes its name when it has the permit, and has done then.
	line := func(t *testing.T, places int) (c *limiter.Concurrency, p limiter.Permit, join func(name string, r limiter.Request), served *[]string) {
		c = limiter.NewConcurrency(1, limiter.WithQueue(places, time.Second), limiter.WithPriorityStep(step))
		p, _ = c.TryAcquire(limiter.Request{})
		served = new([]string)
		join = func(name string, r limiter.Request) {
			time.Sleep(time.Millisecond) // in a synctest bubble
			go func() {
				p, err := c.Acquire(ctx, r)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				*served = append(*served, name)
				time.Sleep(10 * time.Millisecond) // in a synctest bubble
				p.Release(limiter.Success)
			}()
			synctest.Wait()
		}
		return c, p, join, served
	}
	tests := []struct {
		name string
		join []limiter.Request // names are 0, 1, ...
		r    limiter.Request   // arrived when the test began
		late bool              // r arrives when it yields
		want []string
	}{
		{"nobody waits", nil, limiter.Request{}, false, []string{"it"}},
		{"a higher priority goes first, and only that", []limiter.Request{{}, {Priority: 1}}, limiter.Request{}, false, []string{"1", "it", "0"}},
		{"however late it comes", []limiter.Request{{Priority: 2}}, limiter.Request{Priority: -3}, false, []string{"0", "it"}},
		{"the same priority does not", []limiter.Request{{}}, limiter.Request{}, false, []string{"it", "0"}},
		{"a lower one does not", []limiter.Request{{Priority: -1}}, limiter.Request{}, false, []string{"it", "0"}},
		{"unless it is new work that joins", []limiter.Request{{}, {}}, limiter.Request{}, true, []string{"0", "1", "it"}},
		{"which goes before lower priorities that are new too", []limiter.Request{{Priority: -1}}, limiter.Request{}, true, []string{"it", "0"}},
		{"of two that are more urgent one goes, then its own place comes", []limiter.Request{{Priority: 1}, {Priority: 1}}, limiter.Request{}, false, []string{"0", "it", "1"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				// The places are all taken: who yields is not refused for that, and drives nobody out.
				c, p, join, served := line(t, len(test.join))
				r := test.r
				r.Arrived = time.Now()
				time.Sleep(2 * step) // in a synctest bubble
				for i, j := range test.join {
					join(strconv.Itoa(i), j)
				}
				if test.late {
					time.Sleep(time.Millisecond) // in a synctest bubble
					r.Arrived = time.Now()
				}
				q, err := p.Yield(ctx, r)
				if err != nil {
					t.Fatal(err)
				}
				*served = append(*served, "it")
				if n := c.Stats().InFlight; n != 1 {
					t.Errorf("%d in flight", n)
				}
				if q != p {
					p.Release(limiter.Failure) // a copy from before
				}
				time.Sleep(time.Millisecond) // in a synctest bubble
				q.Release(limiter.Success)
				time.Sleep(time.Second) // in a synctest bubble
				synctest.Wait()
				if !slices.Equal(*served, test.want) {
					t.Errorf("served %v, want %v", *served, test.want)
				}
				s := c.Stats()
				if want := int64(len(test.want)); s.Admitted != want || s.Success != want || s.Failure != 0 || s.InFlight != 0 || s.Queued != 0 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
	t.Run("it waits longer than the line allows others", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, p, _, _ := line(t, 1)
			r := limiter.Request{Arrived: time.Now()}
			go func() {
				p, _ := c.Acquire(ctx, limiter.Request{Priority: 1})
				time.Sleep(time.Minute) // in a synctest bubble
				p.Release(limiter.Success)
			}()
			synctest.Wait()
			began := time.Now()
			p, err := p.Yield(ctx, r)
			if took := time.Since(began); err != nil || took != time.Minute {
				t.Errorf("%v after %v", err, took)
			}
			p.Release(limiter.Success)
		})
	})
	t.Run("what it had until then counts in the share of its client", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, first, join, served := line(t, 10)
			r := limiter.Request{Client: "a", Arrived: time.Now()}
			began := make(chan limiter.Permit)
			go func() {
				p, err := c.Acquire(ctx, r)
				if err != nil {
					t.Error(err)
				}
				began <- p
			}()
			synctest.Wait()
			first.Release(limiter.Success)
			p := <-began
			time.Sleep(time.Second) // in a synctest bubble
			for i := range 3 {
				join(strconv.Itoa(i), limiter.Request{Client: "b", Priority: 1})
			}
			p, err := p.Yield(ctx, r)
			if err != nil {
				t.Fatal(err)
			}
			*served = append(*served, "it")
			p.Release(limiter.Success)
			if want := []string{"0", "1", "2", "it"}; !slices.Equal(*served, want) {
				t.Errorf("served %v, want %v", *served, want)
			}
		})
	})
	t.Run("its context ends: no permit, at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, p, join, served := line(t, 1)
			join("urgent", limiter.Request{Priority: 1})
			ctx, cancel := context.WithTimeout(ctx, 4*time.Millisecond)
			defer cancel()
			began := time.Now()
			q, err := p.Yield(ctx, limiter.Request{})
			if took := time.Since(began); err != context.DeadlineExceeded || took != 4*time.Millisecond || q != (limiter.Permit{}) {
				t.Errorf("%v after %v", err, took)
			}
			q.Release(limiter.Success)
			p.Release(limiter.Success)
			time.Sleep(time.Second) // in a synctest bubble
			synctest.Wait()
			s := c.Stats()
			if len(*served) != 1 || s.InFlight != 0 || s.Admitted != 2 || s.Success != 1 || s.Ignored != 1 || s.Left != 1 {
				t.Errorf("served %v, %+v", *served, s)
			}
		})
	})
	heavier := func(t *testing.T, later time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			c := limiter.NewConcurrency(2, limiter.WithQueue(1, time.Minute), limiter.WithPriorityStep(5*time.Millisecond))
			var order []string
			var mu sync.Mutex
			note := func(what string) {
				mu.Lock()
				defer mu.Unlock()
				order = append(order, what)
			}
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() {
					r := limiter.Request{Arrived: time.Now()}
					p, _ := c.Acquire(ctx, r)
					for range 3 {
						time.Sleep(10 * time.Millisecond) // in a synctest bubble
						p, _ = p.Yield(ctx, r)
					}
					note("light")
					p.Release(limiter.Success)
				})
			}
			time.Sleep(later) // in a synctest bubble
			p, err := c.Acquire(ctx, limiter.Request{Weight: 2, Priority: 1})
			if err != nil {
				t.Fatal(err)
			}
			note("heavy")
			p.Release(limiter.Success)
			wg.Wait()
			if !slices.Equal(order, []string{"heavy", "light", "light"}) {
				t.Errorf("order %v", order)
			}
		})
	}
	t.Run("heavier work that is more urgent gets the room of all who yield", func(t *testing.T) { heavier(t, time.Millisecond) })
	t.Run("also where their places, with what they have aged, are before its own", func(t *testing.T) { heavier(t, 15*time.Millisecond) })
	t.Run("nothing to yield", func(t *testing.T) {
		c := limiter.NewConcurrency(1)
		p, _ := c.TryAcquire(limiter.Request{})
		p.Release(limiter.Success)
		for _, p := range []limiter.Permit{{}, p} {
			if q, err := p.Yield(ctx, limiter.Request{}); q != p || err != nil {
				t.Errorf("%v", err)
			}
		}
	})
}

// One that is past its time is sent away, and nobody stands back for it.
func TestYieldNotForOnePastItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(1, limiter.WithQueue(10, time.Minute))
		r := limiter.Request{Arrived: time.Now()}
		p := concMust(t, c, r)
		q := concCrowdOf(t, c, 0)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		q.join(ctx, "too late", limiter.Request{Priority: 1, Work: 900 * time.Millisecond})
		time.Sleep(500 * time.Millisecond) // in a synctest bubble
		same, err := p.Yield(t.Context(), r)
		if err != nil || same != p {
			t.Errorf("stood back: %v", err)
		}
		q.wg.Wait()
		if err := q.refused["too late"]; !errors.Is(err, limiter.ErrWouldMissDeadline) {
			t.Errorf("it is refused with %v", err)
		}
		same.Release(limiter.Success)
	})
}

// A permit that stands back is no queue: who comes meanwhile may wait as long as in a line that is empty.
func TestYieldIsNoStandingQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(1, limiter.WithQueue(4, 100*time.Millisecond), limiter.WithCoDel(5*time.Millisecond))
		r := limiter.Request{Priority: -1}
		p := concMust(t, c, r)
		var wg sync.WaitGroup
		wg.Go(func() {
			q, err := c.Acquire(t.Context(), limiter.Request{Priority: 1})
			if err != nil {
				t.Error(err)
			}
			time.Sleep(time.Second) // in a synctest bubble
			q.Release(limiter.Success)
		})
		synctest.Wait()
		wg.Go(func() {
			p, err := p.Yield(t.Context(), r)
			if err != nil {
				t.Error(err)
			}
			p.Release(limiter.Success)
		})
		time.Sleep(950 * time.Millisecond) // in a synctest bubble
		q, err := c.Acquire(t.Context(), limiter.Request{})
		if s := c.Stats(); err != nil || s.NewestFirst || s.QueueWait != 100*time.Millisecond {
			t.Errorf("%v: %+v", err, s)
		}
		q.Release(limiter.Success)
		wg.Wait()
	})
}

// Under overload nobody who is at work makes room, and who has made room before does not have to wait for its end.
func TestYieldComesBackUnderOverload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ms = time.Millisecond
		c := limiter.NewConcurrency(1, limiter.WithQueue(100, 100*ms), limiter.WithCoDel(5*ms))
		r := limiter.Request{Priority: -1, Arrived: time.Now()}
		p := concMust(t, c, r)
		q := concCrowdOf(t, c, 2*ms)
		var back time.Duration
		for i := range 1000 { // twice as many as can be served, for a second
			q.join(t.Context(), "new", limiter.Request{})
			if i == 0 {
				q.wg.Go(func() {
					began := time.Now()
					p, err := p.Yield(t.Context(), r)
					if err != nil {
						t.Error(err)
					}
					back = time.Since(began)
					time.Sleep(2 * ms) // in a synctest bubble
					p.Release(limiter.Success)
				})
			}
			time.Sleep(ms) // in a synctest bubble
		}
		if s := c.Stats(); !s.NewestFirst {
			t.Errorf("not a standing queue: %+v", s)
		}
		q.wg.Wait()
		if back > 150*ms {
			t.Errorf("back after %v, of which the newest are first since 100ms", back)
		}
	})
}

// Who stands back takes no place, so that it is no part of what a client may have: one that holds all places makes room for another.
func TestYieldIsNoShareOfThePlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const permits, places = 20, 4
		c := limiter.NewConcurrency(permits, limiter.WithQueue(places, time.Minute))
		q := concCrowdOf(t, c, time.Second)
		r := limiter.Request{Client: "batch", Priority: -1}
		var held []limiter.Permit
		for range permits {
			held = append(held, concMust(t, c, r))
		}
		for _, p := range held {
			q.join(t.Context(), "urgent", limiter.Request{Client: "batch", Priority: 1})
			q.wg.Go(func() {
				p, err := p.Yield(t.Context(), r)
				if err != nil {
					t.Error(err)
				}
				p.Release(limiter.Success)
			})
			synctest.Wait()
		}
		for range places {
			q.join(t.Context(), "flood", limiter.Request{Client: "flood"})
		}
		if s := c.Stats(); s.Queued != permits+places || s.Shed != 0 {
			t.Fatalf("all places are the flood's: %+v", s)
		}
		q.join(t.Context(), "new", limiter.Request{Client: "new"})
		q.wg.Wait()
		if s := c.Stats(); q.refused["new"] != nil || s.Evicted != 1 || s.Full != 0 {
			t.Errorf("new: %v; %+v", q.refused["new"], s)
		}
	})
}

// TestYieldKeepsTheLimit lets work of all sorts come, give way, leave and end: what is in
// flight never weighs more than the limit, nothing is lost, and who gives way waits no
// longer than aging allows.
func TestYieldKeepsTheLimit(t *testing.T) {
	const step = 20 * time.Millisecond
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 3))
		synctest.Test(t, func(t *testing.T) {
			limit := rng.IntN(4) + 1
			clients := rng.IntN(3) + 1
			c := limiter.NewConcurrency(limit, limiter.WithQueue(rng.IntN(20), time.Second), limiter.WithPriorityStep(step))
			var in, begun, ended, refused, left atomic.Int64
			enter := func(w int) {
				if n := in.Add(int64(min(w, limit))); n > int64(limit) {
					t.Errorf("seed %d: %d in flight of %d", seed, n, limit)
				}
			}
			leave := func(w int) { in.Add(int64(-min(w, limit))) }
			var wg sync.WaitGroup
			for range 150 {
				time.Sleep(time.Duration(rng.IntN(4000)) * time.Microsecond) // in a synctest bubble
				r := limiter.Request{Priority: rng.IntN(5) - 2, Weight: rng.IntN(3) + 1, Client: string('a' + rune(rng.IntN(clients)))}
				if clients == 1 {
					r.Weight = 1 // so that the bound on the wait is plain
				}
				pieces, each, patience := rng.IntN(6)+1, time.Duration(rng.IntN(2000)+1)*time.Microsecond, time.Hour
				if rng.IntN(4) == 0 {
					patience = time.Duration(rng.IntN(20)+1) * time.Millisecond
				}
				asNew, bare := rng.IntN(4) == 0, rng.IntN(3) == 0
				wg.Go(func() {
					ctx, cancel := context.WithTimeout(context.Background(), patience)
					defer cancel()
					r.Arrived = time.Now()
					var p limiter.Permit
					if n := 0; bare {
						if n = c.TryTake(r.Weight); n == 0 {
							refused.Add(1)
							return
						}
						if pieces == 1 {
							begun.Add(1)
							enter(r.Weight)
							time.Sleep(each) // in a synctest bubble
							leave(r.Weight)
							c.Give(n)
							ended.Add(1)
							return
						}
						p = c.Permit(n)
					} else {
						var err error
						if p, err = c.Acquire(ctx, r); err != nil {
							refused.Add(1)
							return
						}
					}
					begun.Add(1)
					enter(r.Weight)
					for range pieces {
						time.Sleep(each) // in a synctest bubble
						if asNew {
							r.Arrived = time.Now()
						}
						leave(r.Weight)
						before := time.Now()
						var err error
						if p, err = p.Yield(ctx, r); err != nil {
							left.Add(1)
							return
						}
						enter(r.Weight)
						// Whoever goes first came less than 4 levels' worth after it, or is the one it gave way to. What is
						// ahead then is at most what fitted into that time and was running.
						if waited := time.Since(before); clients == 1 && !asNew && waited > 4*step+200*time.Millisecond {
							t.Errorf("seed %d: stood back for %v", seed, waited)
						}
					}
					leave(r.Weight)
					p.Release(limiter.Success)
					ended.Add(1)
				})
			}
			wg.Wait()
			if s := c.Stats(); s.InFlight != 0 || s.Queued != 0 || begun.Load() != ended.Load()+left.Load() || begun.Load()+refused.Load() != 150 {
				t.Errorf("seed %d: %d begun, %d ended, %d left, %d refused; %+v", seed, begun.Load(), ended.Load(), left.Load(), refused.Load(), s)
			}
			if p, ok := c.TryAcquire(limiter.Request{Weight: limit}); !ok {
				t.Errorf("seed %d: the whole limit cannot be had after it", seed)
			} else {
				p.Release(limiter.Success)
			}
		})
		if t.Failed() {
			return
		}
	}
}

func TestTryTake(t *testing.T) {
	c := limiter.NewConcurrency(3, limiter.WithQueue(1, time.Second))
	two := c.TryTake(2)
	if none := c.TryTake(2); two != 2 || none != 0 {
		t.Errorf("took %d and %d of 3 permits, want 2 and 0", two, none)
	}
	one := c.TryTake(0)
	c.Give(two)
	c.Give(one)
	all := c.TryTake(100)
	if one != 1 || all != 3 {
		t.Errorf("took %d and %d, want 1 and 3", one, all)
	}
	p := c.Permit(all)
	p.Release(limiter.Success)
	p.Release(limiter.Success)
	if s := c.Stats(); s.InFlight != 0 || s.Shed != 0 || s.Admitted != 1 || s.Success != 1 {
		t.Errorf("%+v", s)
	}
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(1, limiter.WithQueue(1, time.Second))
		n := c.TryTake(1)
		done := make(chan error)
		go func() { _, err := c.Acquire(context.Background(), limiter.Request{}); done <- err }()
		synctest.Wait()
		c.Give(n)
		if err := <-done; err != nil {
			t.Errorf("who waited was not told: %v", err)
		}
	})
	if !concRace {
		if n := testing.AllocsPerRun(100, func() { c.Give(c.TryTake(1)) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
		p := c.Permit(c.TryTake(1))
		if n := testing.AllocsPerRun(100, func() { p, _ = p.Yield(context.Background(), limiter.Request{}) }); n != 0 {
			t.Errorf("Yield where nobody waits: %v allocations", n)
		}
	}
}
