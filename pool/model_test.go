package pool_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/pool"
)

// TestOrderAgainstModel compares in which order one slot serves tasks of one client with
// the plainest thing that could decide it: a slice that is searched for the least
// arrival - priority*step each time the slot comes free. Some leave while they wait, and some arrived before they came, see
// WithArrival.
func TestOrderAgainstModel(t *testing.T) {
	type job struct {
		id            int
		arrive, serve time.Duration
		before        time.Duration // how long before that it arrived, by its own word
		leave         time.Duration // 0: stays
		priority      int
	}
	for seed := range uint64(60) {
		step := time.Duration(seed%4) * 50 * time.Millisecond
		rng := rand.New(rand.NewPCG(seed, 1))
		var list []job
		var at time.Duration
		for i := range 60 {
			at += time.Duration(rng.IntN(40)+1)*time.Millisecond + time.Duration(i)*time.Microsecond
			j := job{id: i, arrive: at, serve: time.Duration(rng.IntN(60)+1)*time.Millisecond + 7*time.Nanosecond, priority: rng.IntN(7) - 3}
			if rng.IntN(5) == 0 {
				j.leave = at + time.Duration(rng.IntN(200)+1)*time.Millisecond + 3*time.Nanosecond
			}
			if rng.IntN(5) == 0 {
				j.before = time.Duration(rng.IntN(300))*time.Millisecond + 5*time.Nanosecond
			}
			list = append(list, j)
		}

		var want []int
		waiting, next := []job{}, 0
		for now := time.Duration(0); next < len(list) || len(waiting) > 0; {
			for next < len(list) && list[next].arrive <= now {
				waiting = append(waiting, list[next])
				next++
			}
			waiting = slices.DeleteFunc(waiting, func(j job) bool { return j.leave != 0 && j.leave <= now })
			if len(waiting) == 0 {
				if next == len(list) {
					break
				}
				now = list[next].arrive
				continue
			}
			best := 0
			key := func(j job) time.Duration { return j.arrive - j.before - time.Duration(j.priority)*step }
			for i := range waiting {
				if key(waiting[i]) < key(waiting[best]) {
					best = i
				}
			}
			j := waiting[best]
			waiting = slices.Delete(waiting, best, best+1)
			want = append(want, j.id)
			now += j.serve
		}

		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1), pool.WithPriorityStep(step), pool.WithQueue(1000, time.Hour))
			time.Sleep(time.Hour) // in a synctest bubble
			var got []int
			var wg sync.WaitGroup
			for _, j := range list {
				wg.Go(func() {
					time.Sleep(j.arrive) // in a synctest bubble
					ctx := context.Background()
					if j.leave != 0 {
						var cancel context.CancelFunc
						ctx, cancel = context.WithCancel(ctx)
						timer := time.AfterFunc(j.leave-j.arrive, cancel)
						defer timer.Stop()
						defer cancel()
					}
					p.Do(ctx, func(context.Context) error {
						got = append(got, j.id)
						time.Sleep(j.serve) // in a synctest bubble
						return nil
					}, pool.WithPriority(j.priority), pool.WithArrival(time.Now().Add(-j.before)))
				})
			}
			wg.Wait()
			if !slices.Equal(got, want) {
				t.Errorf("seed %d: served\n%v, the model serves\n%v", seed, got, want)
			}
			empty(t, p)
		})
		if t.Failed() {
			return
		}
	}
}

// FuzzPool lets tasks of every bad sort loose on a small pool: panics, Goexit, cancels, errors,
// nesting, weights, resizes. Nothing may be lost, run twice, run beyond the slots, or hang.
func FuzzPool(f *testing.F) {
	f.Add([]byte{0})
	f.Add([]byte{0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
	f.Add([]byte{3, 255, 254, 253, 17, 33, 65, 129, 2, 2, 2, 9, 9, 9, 200, 100, 50, 25})
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 2))
		b := make([]byte, 60)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		b[0] = byte(seed % 2) // half of them at size 1
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, program []byte) {
		if len(program) == 0 || len(program) > 200 {
			return
		}
		synctest.Test(t, func(t *testing.T) { runProgram(t, program) })
	})
}

var errBad = errors.New("bad task")

func runProgram(t *testing.T, program []byte) {
	slots := int(program[0])%4 + 1
	length := 1000
	if len(program) > 1 && program[1]%3 == 0 {
		length = 1 // mostly full: much is refused, and what gives way must not be
	}
	p := pool.New(pool.WithSlots(slots), pool.WithQueue(length, time.Hour))
	var most atomic.Int64 // the most slots there were: more than that can never run
	most.Store(int64(slots))
	var in, calls, runs atomic.Int64
	var wg sync.WaitGroup
	root := context.Background()

	for i, b := range program[1:] {
		weight := int(b>>6) + 1
		opts := []pool.TaskOption{pool.WithPriority(int(b)%5 - 2), pool.WithKind(string('a' + rune(b%3))), pool.WithClient(string('a' + rune(b%4))), pool.WithWeight(weight)}
		if b%5 == 0 && b%16 < 6 { // those that do not use the pool themselves
			opts = append(opts, pool.WithPlainContext())
		}
		var once atomic.Bool
		// count is called by whatever computes.
		count := func() func() {
			if n := in.Add(1); n > most.Load() {
				t.Errorf("%d tasks at once with %d slots", n, most.Load())
			}
			return func() { in.Add(-1) }
		}
		// enter is called by whatever runs in a slot of its own.
		enter := func() func() {
			if once.Swap(true) {
				t.Errorf("task %d ran twice", i)
			}
			runs.Add(1)
			done := count()
			time.Sleep(time.Duration(b%16) * time.Millisecond) // in a synctest bubble
			return done
		}
		switch op := b % 16; op {
		case 15:
			n := int(b>>4)%4 + 1
			most.Store(max(most.Load(), int64(n)))
			if err := p.Resize(n); err != nil {
				t.Error(err)
			}
			continue
		case 14:
			time.Sleep(5 * time.Millisecond) // in a synctest bubble
			continue
		}
		calls.Add(1)
		wg.Go(func() {
			ctx, cancel := context.WithCancel(root)
			defer cancel()
			if b%7 == 0 {
				time.AfterFunc(time.Duration(b%32)*time.Millisecond, cancel)
			}
			switch b % 16 {
			case 0, 1, 2, 3:
				p.Do(ctx, func(context.Context) error { defer enter()(); return errBad }, opts...)
			case 4:
				func() {
					defer func() { recover() }()
					p.Do(ctx, func(context.Context) error { defer enter()(); panic("bad") }, opts...)
				}()
			case 5:
				p.Do(ctx, func(context.Context) error { defer enter()(); runtime.Goexit(); return nil }, opts...)
			case 6:
				f := pool.Submit(ctx, p, func(context.Context) (int, error) { defer enter()(); panic("bad") }, opts...)
				f.Wait(root)
			case 7:
				f := pool.Submit(ctx, p, func(context.Context) (int, error) { defer enter()(); runtime.Goexit(); return 0, nil }, opts...)
				f.Wait(root)
			case 8:
				p.Do(ctx, func(ctx context.Context) error {
					defer enter()()
					return p.Do(ctx, func(ctx context.Context) error {
						f := pool.Submit(ctx, p, func(ctx context.Context) (int, error) {
							return 1, p.Do(ctx, func(context.Context) error { return nil })
						})
						_, err := f.Wait(ctx)
						return err
					})
				}, opts...)
			case 9:
				pool.Map(ctx, p, make([]int, int(b>>4)+1), func(ctx context.Context, _ int) (int, error) {
					defer count()()
					time.Sleep(time.Millisecond) // in a synctest bubble
					if b&64 != 0 {
						panic("bad")
					}
					return 0, nil
				}, opts...)
			case 10:
				for range pool.Stream(ctx, p, slices.Values(make([]int, int(b>>4)+1)), func(ctx context.Context, n int) (int, error) {
					time.Sleep(time.Millisecond) // in a synctest bubble
					if b&64 != 0 {
						runtime.Goexit()
					}
					return n, nil
				}, opts...) {
					if b&128 != 0 {
						break
					}
				}
			case 11:
				p.Do(ctx, func(ctx context.Context) error {
					defer func() { once.Store(true); runs.Add(1) }()
					for range 5 {
						done := count()
						time.Sleep(time.Millisecond) // in a synctest bubble
						done()
						if err := pool.Checkpoint(ctx); err != nil {
							return err
						}
					}
					return nil
				}, opts...)
			case 12:
				_, s, err := p.Enter(ctx, opts...)
				if err == nil {
					done := enter()
					done()
				}
				s.Leave()
				s.Leave()
			case 13:
				if f, ok := pool.TrySubmit(ctx, p, func(context.Context) (int, error) { defer enter()(); return 1, nil }, opts...); ok {
					f.Wait(root)
				}
			}
		})
	}
	wg.Wait()
	synctest.Wait()
	empty(t, p)
	// Every slot can still be had, all at the same time.
	p.Resize(int(most.Load()))
	release := full(p)
	if n := p.Stats().Used; n != int(most.Load()) {
		t.Errorf("%d of %d slots can be had after it", n, most.Load())
	}
	release()
	if err := p.Shutdown(root); err != nil {
		t.Error(err)
	}
}
