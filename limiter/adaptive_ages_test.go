package limiter

import (
	"context"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Against a list of all that is in flight: it is known how much is, of about what age, however much older some of it is than
// what is told apart.
func TestAdaptiveAges(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 9))
		c := NewAdaptive(WithLimits(1000, 1000), WithQueue(0, 0))
		a := c.adapt
		now := time.Duration(1)
		type one struct {
			p    Permit
			from time.Duration
		}
		var all []one
		for i := range 30_000 {
			now += time.Duration(rnd.ExpFloat64() * 1e5)
			if p, ok := c.take(1, now); ok {
				all = append(all, one{p, now})
			}
			if len(all) == 0 {
				continue
			}
			// Most ends soon, and some is there to the end.
			if j := len(all) - 1 - int(20*rnd.ExpFloat64()); j >= 0 && rnd.IntN(20) != 0 {
				all[j].p.ReleaseAt(Outcome(rnd.IntN(3)), c.base.Add(now))
				all = append(all[:j], all[j+1:]...)
			}
			if i%1000 != 999 {
				continue
			}
			c.mu.Lock()
			a.look(now)
			c.mu.Unlock()
			var n, older, known, knownOlder float64
			var want ctrlAges
			for _, o := range all {
				want.enter(1, (now - o.from).Seconds(), (now - o.from).Seconds())
			}
			for k := range want.flying {
				n += want.flying[k]
				known += a.aged.flying[k]
			}
			if math.Abs(n-known) > 1e-6 {
				t.Fatalf("seed %d: %v in flight, %v by their ages", seed, n, known)
			}
			// A period is short: what is older than a few of them is so by both.
			for k := timesCells - 1; k > timesCell(int64(20*time.Millisecond)); k-- {
				older += want.flying[k]
				knownOlder += a.aged.flying[k]
				if math.Abs(older-knownOlder) > 3+.1*older {
					t.Fatalf("seed %d: %v in flight are of cell %d or older, %v by what is known of their ages", seed, older, k, knownOlder)
				}
			}
		}
		for _, o := range all {
			o.p.Release(Ignored)
		}
		c.mu.Lock()
		a.look(now)
		c.mu.Unlock()
		for k, n := range a.aged.flying {
			if n != 0 {
				t.Fatalf("seed %d: nothing is in flight, and %v of cell %d are", seed, n, k)
			}
		}
		if s := c.Stats(); s.InFlight != 0 {
			t.Fatalf("%d in flight", s.InFlight)
		}
	}
}

// What was admitted while somebody who had read the clock before waited for the lock to begin a period is in flight until it ends, and
// no more then, at whatever age it does.
func TestAdaptiveAgesOfWhatCameBeforeATurn(t *testing.T) {
	for _, lasts := range []int{1, adaptPeriods - 1, adaptPeriods, adaptPeriods + 1, 3 * adaptPeriods} { // periods
		c := NewAdaptive(WithLimits(8, 8), WithoutYield())
		now := time.Second
		turn := func(at time.Duration) {
			c.mu.Lock()
			c.adapt.turn(at)
			c.mu.Unlock()
			now += time.Millisecond
		}
		for range adaptPeriods {
			turn(now)
		}
		p, ok := c.take(1, now)
		if !ok {
			t.Fatal("no permit")
		}
		turn(now - time.Microsecond)
		for range lasts - 1 {
			turn(now)
		}
		flying := func() (n float64) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.adapt.look(now)
			for _, m := range c.adapt.aged.flying {
				n += m
			}
			return n
		}
		if n := flying(); n != 1 {
			t.Errorf("after %d periods: %v in flight, want 1", lasts, n)
		}
		p.ReleaseAt(Success, c.base.Add(now))
		for range 2 * adaptPeriods {
			turn(now)
		}
		if n := flying(); n != 0 {
			t.Errorf("nothing is in flight, and %v are that ended after %d periods", n, lasts)
		}
	}
}

// What gave way is as old as its new permit, and in flight no more once it has ended: neither where its period has
// lost its place meanwhile, nor where its context ended while it stood back.
func TestAdaptiveAgesYield(t *testing.T) {
	for _, leaves := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c := NewAdaptive(WithLimits(2, 2), WithStart(2), WithQueue(10, time.Minute), WithoutYield())
			brief := func(n int) {
				for range n {
					p, err := c.Acquire(t.Context(), Request{Priority: 1})
					if err != nil {
						t.Error(err)
					}
					time.Sleep(time.Millisecond) // in a synctest bubble
					p.Release(Success)
				}
			}
			flying := func() (n, old float64) {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.adapt.look(time.Since(c.base))
				for k, m := range c.adapt.aged.flying {
					n += m
					if k > timesCell(int64(100*time.Millisecond)) {
						old += m
					}
				}
				return n, old
			}
			const periods = 2 * adaptPeriods
			r := Request{Priority: -1}
			p, err := c.Acquire(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			brief(periods)
			if n, old := flying(); n != 1 || old != 1 {
				t.Errorf("%v in flight, %v of them old; want 1 that is", n, old)
			}
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() { brief(1) })
			}
			synctest.Wait()
			ctx, cancel := context.WithCancel(t.Context())
			if leaves {
				cancel()
			}
			p, err = p.Yield(ctx, r)
			cancel()
			wg.Wait()
			if (err != nil) != leaves {
				t.Fatal(err)
			}
			if n, old := flying(); !leaves && (n != 1 || old != 0) {
				t.Errorf("back again: %v in flight, %v of them old; want 1 that is not", n, old)
			}
			p.Release(Success)
			brief(periods)
			if n, _ := flying(); n != 0 {
				t.Errorf("left while it stood back %v: nothing is in flight, and %v are by their ages", leaves, n)
			}
			if s := c.Stats(); s.Admitted != s.Success+s.Ignored || s.InFlight != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// What comes after a time in which nothing ended is as old as it is, and not as that time: on an idle limiter, and where something
// is at work all the while.
func TestAdaptiveAgesAfterQuiet(t *testing.T) {
	for _, held := range []float64{0, 1} {
		for _, shadow := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				opts := []ConcurrencyOption{WithLimits(8, 8)}
				if shadow {
					opts = append(opts, WithShadow())
				}
				c := NewAdaptive(opts...)
				take := func() Permit {
					p, ok := c.TryAcquire(Request{})
					if !ok {
						t.Fatal("no permit")
					}
					return p
				}
				take().Release(Success)
				if held > 0 {
					defer take().Release(Success)
				}
				for range 2 {
					time.Sleep(time.Hour) // in a synctest bubble
					p, q, r := take(), take(), c.Permit(c.TryTake(1))
					time.Sleep(time.Millisecond) // in a synctest bubble
					r.Release(Success)
					c.mu.Lock()
					c.adapt.look(time.Since(c.base))
					c.mu.Unlock()
					var n, old float64
					for k, m := range c.adapt.aged.flying {
						if n += m; k > timesCell(int64(time.Second)) {
							old += m
						}
					}
					if n != 2+held || old != held {
						t.Errorf("%v in flight, %v of them old; want %v and %v", n, old, 2+held, held)
					}
					p.Release(Success)
					q.Release(Success)
				}
			})
		}
	}
}
