package limiter

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

// concCheck holds c to what is true whenever nobody is at it: the sign that somebody waits is right, the one who is
// next would not fit, nobody has waited longer than the bound, and the sums are those of their parts.
func concCheck(t *testing.T, c *Concurrency) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	state, limit := c.state.Load(), c.limit.Load()
	if (state&concWaiting != 0) != (c.line.n > 0) {
		t.Fatalf("state %#x, with %d in the line", state, c.line.n)
	}
	if w := c.line.head(); w != nil && state&^concWaiting+min(w.weight, limit) <= limit && !c.shut() {
		t.Fatalf("the next of weight %d would fit: %d of %d are in flight", w.weight, state&^concWaiting, limit)
	}
	n, size, kept := 0, int64(0), 0
	for i, x := range c.line.order {
		if x.index != i || i > 0 && x.before(c.line.order[(i-1)/2]) {
			t.Fatalf("client %d of %d is out of order", i, len(c.line.order))
		}
		own, all := 0, int64(0)
		for level, list := range x.lists {
			sum := int64(0)
			for w := list.first; w != nil; w = w.down {
				if w.down != nil && w.down.arrived < w.arrived {
					t.Fatalf("%v stands after %v", w.down.arrived, w.arrived)
				}
				if w.kept != nil {
					kept++
				}
				own++
				sum += w.size
			}
			if sum != x.sizes[level] || (list.first != nil) != (x.levels&(1<<level) != 0) {
				t.Fatalf("weight %d waits at level %d, counted %d; levels %b", sum, level, x.sizes[level], x.levels)
			}
			all += sum
		}
		if own != x.n || all != x.size {
			t.Fatalf("%d of weight %d wait of a client, counted %d of %d", own, all, x.n, x.size)
		}
		n += own
		size += all
	}
	for w := c.line.oldest; w != nil; w = w.next {
		if waited := time.Since(c.base) - w.entered; waited > c.bound+1 {
			t.Fatalf("one has waited %v, the bound is %v", waited, c.bound)
		}
		n--
	}
	if n != kept || kept != c.line.kept || c.line.kept > c.line.n || size != c.line.size {
		t.Fatalf("%d stand back, counted %d of %d; weight %d waits, counted %d", kept, c.line.kept, c.line.n, size, c.line.size)
	}
}

// concCheckDone is concCheck when all is over: nothing is held, and everything was counted once.
func concCheckDone(t *testing.T, c *Concurrency) {
	t.Helper()
	concCheck(t, c)
	s := c.Stats()
	if s.InFlight != 0 || s.Queued != 0 || s.Admitted != s.Success+s.Failure+s.Ignored || s.WaitTime < 0 || c.state.Load() != 0 {
		t.Errorf("after all: %+v", s)
	}
	if c.adapt != nil && c.adapt.coming.Load() != 0 {
		t.Errorf("%d are on their way for ever", c.adapt.coming.Load())
	}
	if c.adapt != nil {
		n := c.adapt.counts(c, time.Since(c.base))
		if c.paused.Load() != 0 || n.flight(c) != 0 {
			t.Errorf("%d are paused and %d in flight for ever", c.paused.Load(), n.flight(c))
		}
	}
}

// Whatever comes, waits, yields, leaves and changes the limit: the invariants hold after each step.
func TestConcurrencyRandom(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 77))
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { concRandom(t, rng) })
		})
	}
}

func concRandom(t *testing.T, rng *rand.Rand) {
	upTo := func(n int) time.Duration { return time.Duration(rng.IntN(n)) * time.Millisecond }
	opts := []ConcurrencyOption{WithQueue(rng.IntN(15), 50*time.Millisecond), WithClients(rng.IntN(3) + 1), WithPriorityStep(upTo(20))}
	if rng.IntN(3) == 0 {
		opts = append(opts, WithCoDel(5*time.Millisecond))
	}
	c := NewConcurrency(rng.IntN(6)+1, opts...)
	if rng.IntN(4) == 0 {
		c = NewAdaptive(append(opts, WithStart(rng.IntN(6)+1), WithLimits(1, 8))...)
	}
	calls := int64(0)
	var admitted, refused atomic.Int64
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	for range 200 {
		switch k := rng.IntN(12); {
		case k < 8:
			calls++
			r := Request{Priority: rng.IntN(20) - 10, Weight: rng.IntN(10), Client: fmt.Sprint(rng.IntN(6))}
			if rng.IntN(4) == 0 {
				r.Work = upTo(10)
			}
			if rng.IntN(3) == 0 {
				r.Arrived = time.Now().Add(5*time.Millisecond - upTo(20))
			}
			ctx, cancel := context.WithCancel(t.Context())
			switch rng.IntN(4) {
			case 0, 1:
				ctx, cancel = context.WithTimeout(t.Context(), upTo(40)-3*time.Millisecond)
			case 2:
				time.AfterFunc(upTo(20), cancel)
			}
			hold, yields, o, try := upTo(10), rng.IntN(3), Outcome(rng.IntN(5)), rng.IntN(5) == 0
			pauses, away, back := rng.IntN(3) == 0, upTo(10), rng.IntN(4) != 0
			wg.Go(func() {
				defer cancel()
				var p Permit
				if try {
					p, _ = c.TryAcquire(r)
				} else {
					p, _ = c.Acquire(ctx, r)
				}
				if p == (Permit{}) {
					refused.Add(1)
					p.Release(Success)
					return
				}
				admitted.Add(1)
				for range yields {
					time.Sleep(hold) // in a synctest bubble
					old := p
					var err error
					p, err = p.Yield(ctx, r)
					if p != old { // it has no effect any more
						old.Release(Failure)
						old.Charge(1)
					}
					if err != nil {
						return
					}
					p.Charge(hold)
				}
				time.Sleep(hold) // in a synctest bubble
				if pauses {
					old := p
					p = p.Pause().Pause()
					time.Sleep(away) // in a synctest bubble
					if back {
						if p, _ = p.Resume(ctx, r); p != (Permit{}) {
							p, _ = p.Resume(ctx, r)
						}
						time.Sleep(hold) // in a synctest bubble
					}
					old.Release(o)
				}
				p.Release(o)
				p.Release(o)
			})
		case k < 9:
			c.SetLimit(rng.IntN(8) + 1)
		case k < 10:
			if n := c.TryTake(rng.IntN(4)); n > 0 {
				d := upTo(5)
				wg.Go(func() { time.Sleep(d); c.Give(n) }) // in a synctest bubble
			}
		default:
			time.Sleep(upTo(8)) // in a synctest bubble
		}
		synctest.Wait()
		concCheck(t, c)
	}
	wg.Wait()
	concCheckDone(t, c)
	if admitted.Load()+refused.Load() != calls {
		t.Errorf("%d admitted and %d refused of %d", admitted.Load(), refused.Load(), calls)
	}
}

// A deadline without a monotonic reading, as one has that a client sent, counts by what the wall clock shows now, as it does to the
// context, whatever that showed when the limiter was made. One in a thousand years is none.
func TestConcurrencyDeadlineOnTheWall(t *testing.T) {
	const hour = 60 * 60
	for _, ahead := range []int64{-hour, 0, hour} { // of what the wall clock shows now
		for _, left := range []time.Duration{10 * time.Minute, math.MaxInt64} {
			c := NewConcurrency(1, WithQueue(10, time.Hour))
			// A time with a monotonic reading begins with a word of which the lowest 30 bits are nanoseconds and the next 33 seconds on the wall.
			base := c.base
			*(*uint64)(unsafe.Pointer(&c.base)) += uint64(ahead << 30)
			if c.base.Sub(base) != 0 || c.base.Round(0).Sub(base.Round(0)) != time.Duration(ahead)*time.Second {
				t.Fatal("time.Time is laid out otherwise: this says nothing")
			}
			p, _ := c.TryAcquire(Request{})
			deadline := time.Now().Round(0).Add(left)
			if left == math.MaxInt64 {
				deadline = deadline.AddDate(1000, 0, 0)
			}
			ctx, cancel := context.WithDeadline(t.Context(), deadline)
			entered := time.Since(c.base)
			done := make(chan error, 1)
			go func() {
				p, err := c.Acquire(ctx, Request{Work: time.Minute})
				p.Release(Success)
				done <- err
			}()
			for len(done) == 0 && c.Stats().Queued == 0 {
				runtime.Gosched()
			}
			c.mu.Lock()
			if w := c.line.head(); w == nil {
				t.Errorf("made when the clock showed %ds more, with %v left for a minute of work: refused", ahead, left)
			} else if latest := w.latest - entered; left < time.Hour && (latest-9*time.Minute).Abs() > time.Minute || latest <= 0 {
				t.Errorf("made when the clock showed %ds more, with %v left for a minute of work: it is in time for %v", ahead, left, latest)
			}
			c.mu.Unlock()
			p.Release(Success)
			if err := <-done; err != nil {
				t.Error(err)
			}
			cancel()
		}
	}
}

// Many at once, on a real clock: what is in flight never exceeds the highest limit there was, and no permit is lost.
func TestConcurrencyStress(t *testing.T) {
	const most, rounds = 4, 1200
	for name, c := range map[string]*Concurrency{
		"line":     NewConcurrency(most, WithQueue(8, 2*time.Millisecond), WithClients(2)),
		"CoDel":    NewConcurrency(most, WithQueue(8, 2*time.Millisecond), WithCoDel(200*time.Microsecond)),
		"no line":  NewConcurrency(most),
		"adaptive": NewAdaptive(WithLimits(1, most), WithStart(most)),
	} {
		t.Run(name, func(t *testing.T) {
			var in, over atomic.Int64
			work := func(p Permit) {
				weight := p.slot.weight
				if in.Add(weight) > most {
					over.Add(1)
				}
				runtime.Gosched()
				in.Add(-weight)
			}
			var wg sync.WaitGroup
			for g := range 12 {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(g), 5))
					for range rounds {
						if g == 0 {
							c.SetLimit(rng.IntN(most) + 1)
							c.Stats()
							runtime.Gosched()
							continue
						}
						r := Request{Weight: 1 + rng.IntN(2), Priority: rng.IntN(16) - 8, Client: fmt.Sprint(rng.IntN(5))}
						ctx, cancel := context.WithCancel(context.Background())
						switch rng.IntN(4) {
						case 0:
							wg.Go(cancel)
						case 1:
							ctx, cancel = context.WithTimeout(ctx, time.Duration(rng.IntN(1000))*time.Microsecond)
						}
						p, err := c.Acquire(ctx, r)
						if err == nil && rng.IntN(3) == 0 {
							work(p)
							p, err = p.Yield(ctx, r)
						}
						if err == nil && rng.IntN(3) == 0 {
							p = p.Pause()
							runtime.Gosched()
							p, err = p.Resume(ctx, r)
						}
						if err == nil {
							work(p)
							if rng.IntN(8) == 0 {
								wg.Go(func() { p.Release(Failure) })
							}
							p.Release(Success)
						}
						cancel()
					}
				})
			}
			wg.Wait()
			if over.Load() != 0 {
				t.Errorf("%d times more in flight than the highest limit", over.Load())
			}
			concCheckDone(t, c)
			t.Logf("%+v", c.Stats())
		})
	}
}

// What work costs is learned of all that came from the line and was tried, also if nobody waits when it ends; per weight.
func TestConcurrencyLearnsWhatWorkCosts(t *testing.T) {
	for _, k := range []struct {
		rule   string
		weight int
		o      Outcome
		charge time.Duration
		want   time.Duration
	}{
		{"a success", 1, Success, 0, time.Second},
		{"a failure", 1, Failure, 0, time.Second},
		{"weight 2", 2, Success, 0, time.Second},
		{"more than the limit", 9, Success, 0, time.Second},
		{"it was told", 1, Success, time.Minute, time.Minute},
		{"whose client has left has cost nothing that says anything", 1, Ignored, 0, 0},
	} {
		t.Run(k.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := NewConcurrency(2, WithQueue(10, time.Minute))
				n := c.TryTake(2)
				time.AfterFunc(time.Second, func() { c.Give(n) })
				p, err := c.Acquire(t.Context(), Request{Weight: k.weight})
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second) // in a synctest bubble
				if k.charge > 0 {
					p.Charge(k.charge)
				}
				p.Release(k.o)
				if c.service != float64(k.want) {
					t.Errorf("it costs %v, want %v", time.Duration(c.service), k.want)
				}
			})
		})
	}
}

// A permit that comes back is a new one: what it was charged for before, and how long it once waited for a processor, says nothing of it.
func TestYieldBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewAdaptive(WithoutYield(), WithStart(1), WithLimits(1, 1), WithQueue(10, time.Minute))
		n := c.TryTake(1)
		time.AfterFunc(time.Second, func() { c.Give(n) })
		r := Request{Client: "a"}
		p, err := c.Acquire(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		p.Charge(time.Hour)
		p.slot.lag, p.slot.lags = 1000, 8
		go func() {
			q, err := c.Acquire(t.Context(), Request{Priority: 1})
			if err != nil {
				t.Error(err)
			}
			time.Sleep(time.Second) // in a synctest bubble
			q.Release(Success)
		}()
		synctest.Wait()
		q, err := p.Yield(t.Context(), r)
		if err != nil || q == p {
			t.Fatalf("did not stand back: %v", err)
		}
		if cost := q.slot.had(time.Second); cost != 1e9 {
			t.Errorf("a second without a charge counts as %v", time.Duration(cost))
		}
		q.Release(Success)
		if got := c.adapt.counts(c, time.Since(c.base)); got.lags != 0 || got.n != 2 {
			t.Errorf("%d successes stand for the wait of %d, want 2 and none", got.n, got.lags)
		}
	})
}

// A context that has ended keeps nobody from a permit that is free, also where there seemed to be none at first.
func TestConcurrencyFreeAfterAll(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]*Concurrency{"fixed": NewConcurrency(1, WithQueue(1, time.Minute)), "adaptive": NewAdaptive()} {
		p, err := c.wait(ctx, &Request{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		p.Release(Success)
		concCheckDone(t, c)
	}
}

// The record of a permit is used again, and nothing of the one before is left in it.
func TestPermitRecordBeginsAnew(t *testing.T) {
	c := NewAdaptive()
	for range 100 {
		p, _ := c.TryAcquire(Request{})
		s := p.slot
		s.lag, s.lags, s.charged, s.cost, s.coming, s.late = 1000, 8, true, time.Hour, false, true
		p.Release(Ignored)
		p, _ = c.TryAcquire(Request{})
		if q := p.slot; q == s && (q.lags != 0 || q.charged || q.late || q.gen.Load() == 0) {
			t.Fatalf("%+v", q)
		}
		p.Release(Ignored)
	}
}
