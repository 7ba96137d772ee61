package limiter

import (
	"context"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// labBefore is what a limit has seen before: work that is drawn at random, over many orders of magnitude.
type labBefore struct {
	kinds    [3]struct{ takes, share float64 } // how long each takes, s, and what part of its arrivals comes
	slots    int                               // it takes place in so many; 0 is any number
	vary     int                               // not at all, exponentially, or by orders of magnitude
	rate     float64                           // arrivals a second
	failed   float64                           // part that fails
	ignored  float64                           // part that says nothing
	patience time.Duration
	lasts    time.Duration
}

func labDrawBefore(rnd *rand.Rand) (b labBefore) {
	for k := range 1 + rnd.IntN(len(b.kinds)) {
		b.kinds[k].takes, b.kinds[k].share = math.Exp(rnd.Float64()*18-16), rnd.Float64()
	}
	if rnd.IntN(2) == 0 {
		b.slots = 1 << rnd.IntN(7)
	}
	b.vary = rnd.IntN(3)
	b.rate = math.Exp(1 + 6*rnd.Float64())
	b.failed = rnd.Float64() * rnd.Float64() * rnd.Float64()
	b.ignored = rnd.Float64() * rnd.Float64() * rnd.Float64()
	b.patience = time.Duration(math.Exp(rnd.Float64()*8-6) * 1e9)
	b.lasts = time.Duration(1+rnd.IntN(10)) * time.Second
	return b
}

// run puts it through c. What is in flight at the end may stay for up to 20 s.
func (b labBefore) run(c *Concurrency, rnd *rand.Rand, wg *sync.WaitGroup) {
	slots := make(chan struct{}, max(b.slots, 1))
	for end := time.Now().Add(b.lasts); time.Now().Before(end); {
		time.Sleep(time.Duration(rnd.ExpFloat64() / b.rate * 1e9)) // in a synctest bubble
		kind := b.kinds[rnd.IntN(len(b.kinds))]
		if rnd.Float64() >= kind.share {
			continue
		}
		takes := kind.takes
		switch b.vary {
		case 1:
			takes *= rnd.ExpFloat64()
		case 2:
			takes *= math.Exp(2*rnd.NormFloat64() - 2)
		}
		outcome := Success
		switch u := rnd.Float64(); {
		case u < b.failed:
			outcome = Failure
		case u < b.failed+b.ignored:
			outcome = Ignored
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), b.patience)
			defer cancel()
			p, err := c.Acquire(ctx, Request{})
			if err != nil {
				return
			}
			if b.slots > 0 {
				select {
				case slots <- struct{}{}:
					defer func() { <-slots }()
				case <-ctx.Done():
					p.Release(Ignored)
					return
				}
			}
			time.Sleep(time.Duration(min(takes, 20) * 1e9)) // in a synctest bubble
			p.Release(outcome)
		})
	}
}

// TestLabAfterAnything: whatever a limit has seen, its figures stay finite, its counts exact, and it finds the limit of a store that is asked for three times what
// it can do. Within half a minute nearly all do by their throughput; how many have an answer in 250 ms as well, where 10 ms are what it takes, is printed.
func TestLabAfterAnything(t *testing.T) {
	n := 12
	switch {
	case *labFull:
		n = 200
	case labRace:
		n = 1
	}
	const width, took = 8, 10 * time.Millisecond
	served, quick := 0, 0
	for seed := range uint64(n) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 9))
			c := NewAdaptive()
			var wg sync.WaitGroup
			for range 6 {
				labDrawBefore(rnd).run(c, rnd, &wg)
				if s := c.Stats(); math.IsNaN(s.Throughput+s.Elasticity+s.ShedFraction) || math.IsInf(s.Throughput+s.Elasticity+s.ShedFraction, 0) || s.Latency < 0 || s.Latency > time.Minute {
					t.Errorf("seed %d: %+v", seed, s)
				}
			}
			wg.Wait()
			slots := make(chan struct{}, width)
			var all, inTime atomic.Int64
			const capacity = float64(width) * float64(time.Second/took)
			for from := time.Now(); time.Since(from) < 40*time.Second; {
				time.Sleep(time.Duration(rnd.ExpFloat64() / (3 * capacity) * 1e9)) // in a synctest bubble
				takes := time.Duration(rnd.ExpFloat64() * float64(took))
				counts := time.Since(from) >= 30*time.Second
				wg.Go(func() {
					arrived := time.Now()
					p, err := c.Acquire(context.Background(), Request{})
					if err != nil {
						return
					}
					slots <- struct{}{}
					time.Sleep(takes) // in a synctest bubble
					<-slots
					p.Release(Success)
					if counts {
						all.Add(1)
						if time.Since(arrived) <= 250*time.Millisecond {
							inTime.Add(1)
						}
					}
				})
			}
			wg.Wait()
			if f := c.Stats().InFlight; f != 0 {
				t.Errorf("seed %d: %d are in flight when all have ended", seed, f)
			}
			if float64(all.Load()) >= .9*10*capacity {
				served++
			}
			if float64(inTime.Load()) >= .9*10*capacity {
				quick++
			}
		})
	}
	t.Logf("nine tenths of the throughput: %d of %d; of it in time: %d", served, n, quick)
	if served < n*9/10 {
		t.Errorf("nine tenths of the throughput: %d of %d", served, n)
	}
}
