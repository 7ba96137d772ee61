package limiter

import (
	"context"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestGateSet: there is a gate while work waits for a processor, as wide as there are processors, for each turn of those that it waits.
func TestGateSet(t *testing.T) {
	const ms = time.Millisecond
	procs := int64(runtime.GOMAXPROCS(0))
	for _, k := range []struct {
		rule      string
		opts      []ConcurrencyOption
		before    int64
		work, lag time.Duration
		gated     float64 // of 64 arrivals
		want      int64
	}{
		{"nothing waits", nil, 0, 2 * ms, 0, 0, 0},
		{"a twentieth of the time is a wait: not yet", nil, 0, 10 * ms, ms / 2, 0, 0},
		{"more than that is", nil, 0, 10 * ms, ms, 0, procs},
		{"a turn of the scheduler's is", nil, 0, 10 * ms, 10 * ms, 0, procs},
		{"all wait for three turns, of work that is longer than one: one for each", nil, procs, 50 * ms, 30 * ms, 64, 3 * procs},
		{"and where a part of a turn was left", nil, procs, 50 * ms, 21 * ms, 64, 3 * procs},
		{"the processors are busy with something else for a second: it is a gate still", nil, procs, 2 * ms, time.Second, 64, 8 * procs},
		{"work is brief again: so is the wait, and it goes back", nil, 8 * procs, 2 * ms, 8 * ms, 64, procs},
		{"a wait of microseconds is nobody's queue", nil, 0, 100 * time.Microsecond, 40 * time.Microsecond, 0, 0},
		{"the gate has work to do: it stays", nil, procs, 10 * ms, 0, 8, procs},
		{"it has none: it goes", nil, procs, 10 * ms, 0, 2, 0},
		{"the processors have changed: so does the gate", nil, procs + 3, 10 * ms, ms, 64, procs},
		{"brief work has none", nil, procs, 10 * time.Microsecond, 20 * ms, 64, 0},
		{"without the yield there is none", []ConcurrencyOption{WithoutYield()}, 0, 2 * ms, 8 * ms, 0, 0},
		{"without a line there is none: it would refuse", []ConcurrencyOption{WithQueue(0, 0)}, 0, 2 * ms, 8 * ms, 0, 0},
		{"nor with a short one: it would refuse bursts", []ConcurrencyOption{WithQueue(11, time.Second)}, 0, 2 * ms, 8 * ms, 0, 0},
		{"with a longer one there is", []ConcurrencyOption{WithQueue(12, time.Second)}, 0, 2 * ms, 8 * ms, 0, procs},
		{"a shadow has none", []ConcurrencyOption{WithShadow()}, 0, 2 * ms, 8 * ms, 0, 0},
	} {
		t.Run(k.rule, func(t *testing.T) {
			a := NewAdaptive(k.opts...).adapt
			a.gate.Store(k.before)
			a.lag = k.lag.Seconds()
			w := ctrlWindow{n: 64, arrivals: 64, gated: k.gated, sum: 64 * (k.work + k.lag).Seconds()}
			a.crowd(concCount{lag: int64(64 * k.lag), lags: 64}, &w)
			if got := a.gate.Load(); got != k.want {
				t.Errorf("gate is %d, want %d", got, k.want)
			}
		})
	}
}

// gateLimiter returns a limiter with room for 8 and a gate for one, and one that has a permit
// and has not begun.
func gateLimiter(t *testing.T) (*Concurrency, Permit) {
	t.Helper()
	c := NewAdaptive(WithStart(8))
	c.adapt.gate.Store(1)
	p, ok := c.take(1, time.Since(c.base)+1)
	if !ok {
		t.Fatal("no permit")
	}
	c.adapt.comes(p.slot)
	return c, p
}

// TestGate: what comes while enough are on their way to a processor waits, though there are permits, and
// is let in by whatever takes one of them off that way.
func TestGate(t *testing.T) {
	for _, k := range []struct {
		rule string
		open func(c *Concurrency, p Permit)
	}{
		{"it begins", func(c *Concurrency, p Permit) { c.begin(p.slot) }},
		{"it never begins: released", func(c *Concurrency, p Permit) { p.Release(Ignored) }},
		{"the gate goes, and something ends", func(c *Concurrency, p Permit) {
			c.adapt.gate.Store(0)
			q, _ := c.TryAcquire(Request{})
			if q.slot != nil {
				t.Error("TryAcquire passed by those who wait")
			}
			p.Release(Success)
		}},
	} {
		t.Run(k.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, p := gateLimiter(t)
				done := make(chan struct{})
				go func() {
					defer close(done)
					q, err := c.Acquire(t.Context(), Request{})
					if err != nil {
						t.Error(err)
					}
					q.Release(Success)
				}()
				synctest.Wait()
				if s := c.Stats(); s.Queued != 1 || s.InFlight != 1 || s.Limit != 8 {
					t.Fatalf("%d waiting, %d of %d in flight; want 1 behind the gate", s.Queued, s.InFlight, s.Limit)
				}
				k.open(c, p)
				<-done
				p.Release(Success)
				gateEmpty(t, c)
			})
		})
	}
}

func gateEmpty(t *testing.T, c *Concurrency) {
	t.Helper()
	if s := c.Stats(); s.Queued != 0 || s.InFlight != 0 {
		t.Errorf("%d waiting, %d in flight at the end", s.Queued, s.InFlight)
	}
	if n := c.adapt.coming.Load(); n != 0 {
		t.Errorf("%d on their way at the end", n)
	}
}

// TestGateCountsAll: whichever way a permit comes, its work is on its way to a processor until it begins.
func TestGateCountsAll(t *testing.T) {
	t.Run("at once", func(t *testing.T) {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
		c := NewAdaptive(WithStart(100))
		c.adapt.gate.Store(1)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if p, err := c.Acquire(t.Context(), Request{}); err == nil {
					p.Release(Success)
				}
			})
		}
		wg.Wait()
		// The first of them gives way to the others before it begins.
		if n := c.adapt.counts(c, time.Since(c.base)).gated; n == 0 {
			t.Error("of 50 at once none waited at a gate for one")
		}
		gateEmpty(t, c)
	})
	t.Run("after all", func(t *testing.T) {
		c := NewAdaptive()
		c.adapt.gate.Store(1)
		c.mu.Lock()
		_, p, _, err := c.enter(&Request{}, time.Since(c.base), 0, nil)
		c.mu.Unlock()
		if err != nil || c.adapt.coming.Load() != 1 {
			t.Errorf("%d are on their way, want 1; %v", c.adapt.coming.Load(), err)
		}
		p.Release(Success)
		gateEmpty(t, c)
	})
	t.Run("from the line", func(t *testing.T) {
		c, p := gateLimiter(t)
		c.mu.Lock()
		for range 3 {
			if w, _, _, err := c.enter(&Request{}, time.Since(c.base), 0, nil); w == nil {
				t.Fatal("no place in the line", err)
			}
		}
		p.slot.coming = false // it begins, and the next one comes
		c.adapt.coming.Add(-1)
		woken := c.dispatch(time.Since(c.base))
		c.mu.Unlock()
		if woken == nil || woken.wake != nil || c.adapt.coming.Load() != 1 {
			t.Errorf("%d are on their way, want 1", c.adapt.coming.Load())
		}
	})
}

// TestGateKnocks: who waits although there are permits does so for a processor, and who finds none for the limit.
func TestGateKnocks(t *testing.T) {
	for _, k := range []struct {
		rule   string
		taken  int // besides one that has not begun; the limit is 8
		weight int
		gated  int64
	}{
		{"there are permits", 0, 1, 1},
		{"there is one", 6, 1, 1},
		{"there is none", 7, 1, 0},
		{"there are not enough", 6, 2, 0},
		{"it needs all of them", 0, 100, 0},
	} {
		t.Run(k.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, p := gateLimiter(t)
				var held []Permit
				for range k.taken {
					q, ok := c.TryAcquire(Request{})
					if !ok {
						t.Fatal("no permit")
					}
					held = append(held, q)
				}
				done := make(chan struct{})
				go func() {
					defer close(done)
					q, err := c.Acquire(t.Context(), Request{Weight: k.weight})
					if err != nil {
						t.Error(err)
					}
					q.Release(Success)
				}()
				synctest.Wait()
				if got := c.adapt.counts(c, time.Since(c.base)); got.knocks != 1 || got.gated != k.gated {
					t.Errorf("%d found no permit, %d of them for the gate alone; want 1 and %d", got.knocks, got.gated, k.gated)
				}
				for _, q := range append(held, p) {
					q.Release(Success)
				}
				<-done
				gateEmpty(t, c)
			})
		})
	}
}

// TestGateBound: who waits at the gate waits in the line, with its bound.
func TestGateBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p := gateLimiter(t)
		began := time.Now()
		if _, err := c.Acquire(t.Context(), Request{}); err == nil {
			t.Error("admitted behind a gate that stayed shut")
		}
		if d := time.Since(began); d < c.bound || d > c.bound+time.Millisecond {
			t.Errorf("refused after %v, want %v", d, c.bound)
		}
		p.Release(Success)
		gateEmpty(t, c)
	})
}

// TestGateCount: however requests end, none is left counted as on its way.
func TestGateCount(t *testing.T) {
	c := NewAdaptive(WithStart(4), WithLimits(1, 16))
	c.adapt.gate.Store(2)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(i)))
			for range 300 {
				ctx, cancel := context.WithCancel(t.Context())
				if r.IntN(4) == 0 {
					go cancel()
				}
				p, err := c.Acquire(ctx, Request{Weight: r.IntN(3)})
				if err == nil {
					for range r.IntN(4) {
						runtime.Gosched()
					}
					p.Release(Outcome(r.IntN(3)))
				}
				cancel()
				if r.IntN(50) == 0 {
					c.adapt.gate.Store(int64(r.IntN(3)))
				}
			}
		})
	}
	wg.Wait()
	gateEmpty(t, c)
}

// TestAcquireClientLeft: nobody is let in whose context ended before its work could begin.
func TestAcquireClientLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p := gateLimiter(t)
		ctx := &leaving{Context: t.Context()}
		done := make(chan error)
		go func() {
			q, err := c.Acquire(ctx, Request{})
			q.Release(Success)
			done <- err
		}()
		synctest.Wait()
		ctx.left.Store(true)
		p.Release(Success) // lets it in
		if err := <-done; err != context.Canceled {
			t.Fatalf("got %v, want %v", err, context.Canceled)
		}
		gateEmpty(t, c)
		if s := c.Stats(); s.Success != 1 {
			t.Errorf("%d successes, want 1", s.Success)
		}
	})
}

// leaving is a context that ends without waking whoever waits for that: it is seen as late as can be.
type leaving struct {
	context.Context
	left atomic.Bool
}

func (l *leaving) Err() error {
	if l.left.Load() {
		return context.Canceled
	}
	return l.Context.Err()
}

// adaptLine returns a limiter with 2 ms of work each, 500/s and that share shed, whose line is set by that.
func adaptLine(shed, cv2 float64, gate int64) *Concurrency {
	c := NewAdaptive()
	a := c.adapt
	a.ctrl.fresh, a.ctrl.base, a.ctrl.cv2, a.shedE = false, .002, cv2, shed
	a.ctrl.ref.x, a.ctrl.ref.r, a.ctrl.ref.busy = 500, .002, 1
	a.gate.Store(gate)
	a.tune(c)
	return c
}

// The line behind a gate is no longer for a time in service that varies: there it is the wait for a processor that does.
func TestAdaptiveLineBehindGate(t *testing.T) {
	bound := func(gate int64) time.Duration { return adaptLine(1./3, 1, gate).bound.Round(time.Millisecond) }
	if open, gated := bound(0), bound(1); open != 20*time.Millisecond || gated != 10*time.Millisecond {
		t.Errorf("a third is shed of 750/s: the line holds for %v, behind a gate for %v; want 20ms and 10ms", open, gated)
	}
}

// First in, first out behind a gate, nobody who finds room in the line waits for longer than its bound: the processors
// keep a steady pace, so who would is refused on arrival. Newest first refuses those at the end.
func TestAdaptivePlacesBehindGate(t *testing.T) {
	const work = 2 * time.Millisecond
	for _, shed := range []float64{.01, .1, .16, .2, .29} {
		c := adaptLine(shed, 1, 1)
		// One is at work, for half of its time yet, when the one in the last place comes.
		last := time.Duration(c.places)*work - work/2
		if c.line.lifo || last > c.bound+work {
			t.Errorf("%.2f shed, newest first %v: whoever has the last of %d places waits %v; the bound is %v", shed, c.line.lifo, c.places, last, c.bound)
		}
		if least := c.bound - 4*work; last < least {
			t.Errorf("%.2f shed: whoever has the last of %d places waits %v, at least %v expected: it is refused what could be served", shed, c.places, last, least)
		}
	}
}
