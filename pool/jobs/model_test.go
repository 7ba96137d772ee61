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

// FuzzLocal lets jobs of every bad sort loose on an engine while they are watched, cancelled
// and queued again, and shuts it down in the middle or at the end. Every job has to end in a
// state that fits what happened to it, once, and nothing may be left behind.
func FuzzLocal(f *testing.F) {
	f.Add([]byte{0})
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 3))
		b := make([]byte, 80)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		b[0] = byte(seed) // a third shut down in the middle
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, program []byte) {
		if len(program) == 0 || len(program) > 300 {
			return
		}
		synctest.Test(t, func(t *testing.T) { runLocal(t, program) })
	})
}

func runLocal(t *testing.T, program []byte) {
	var mu sync.Mutex
	attempts := make(map[string]int) // begun, by id
	atOnce := make(map[string]bool)
	m := jobs.NewMux()
	jobs.Register(m, "k", func(ctx context.Context, a args) (string, error) {
		at, _ := jobs.Current(ctx)
		mu.Lock()
		if atOnce[at.ID] {
			t.Errorf("two attempts of one job at once")
		}
		atOnce[at.ID] = true
		attempts[at.ID]++
		mu.Unlock()
		defer func() { mu.Lock(); atOnce[at.ID] = false; mu.Unlock() }()
		jobs.Report(ctx, jobs.Progress{Done: 1, Total: 2})
		time.Sleep(time.Duration(a.N%20) * time.Millisecond) // in a synctest bubble
		switch a.N % 6 {
		case 0:
			return "", errors.New("bad")
		case 1:
			panic("bad")
		case 2:
			runtime.Goexit()
		case 3:
			<-ctx.Done()
			return "", context.Cause(ctx)
		}
		return "done", nil
	}, jobs.WithAttempts(2), jobs.WithBackoff(time.Millisecond, 50*time.Millisecond), jobs.WithTimeout(time.Second))

	p := pool.New(pool.WithSlots(int(program[0])%3 + 1))
	l := jobs.NewLocal(m, p, jobs.WithCapacity(40, 15, 20), jobs.WithRetention(time.Minute), jobs.WithSizes(1000, 1000, 4000))
	var ids []string
	var wg sync.WaitGroup
	stop := len(program)
	if program[0]%3 == 0 {
		stop = len(program) / 2
	}
	shutdown := func() {
		ctx, cancel := context.WithTimeout(ctx, time.Duration(program[0])*10*time.Millisecond)
		defer cancel()
		err := l.Shutdown(ctx)
		var dropped *jobs.DroppedError
		if err != nil && !errors.As(err, &dropped) {
			t.Errorf("Shutdown: %v", err)
		}
	}
	for i, b := range program[1:] {
		if i == stop {
			wg.Go(shutdown)
		}
		some := func() string {
			if len(ids) == 0 {
				return "none"
			}
			return ids[int(b)%len(ids)]
		}
		switch b % 8 {
		case 0:
			time.Sleep(time.Duration(b) * time.Millisecond / 4) // in a synctest bubble
		case 1:
			l.Cancel(ctx, some())
		case 2:
			id, n := some(), int(b>>4)
			wg.Go(func() {
				short, cancel := context.WithTimeout(ctx, 10*time.Second)
				defer cancel()
				var version uint64
				for j, err := range l.Watch(short, id) {
					if err == nil && j.Version <= version {
						t.Errorf("version %d after %d", j.Version, version)
					}
					version = j.Version
					if n--; n < 0 {
						return
					}
				}
			})
		case 3:
			l.Requeue(ctx, some())
		default:
			o := jobs.SubmitOptions{Client: string('a' + rune(b%5)), Priority: int(b%9) - 4}
			if b%16 == 4 {
				o.NotBefore = time.Now().Add(time.Duration(b) * time.Millisecond)
			}
			if b%16 == 5 {
				o.Deadline = time.Now().Add(time.Duration(b) * time.Millisecond)
			}
			if b%16 == 6 {
				o.Key = fmt.Sprint(b % 3)
			}
			j, created, err := l.Submit(ctx, "k", fmt.Appendf(nil, `{"n":%d}`, b), o)
			if err == nil && created {
				ids = append(ids, j.ID)
			}
		}
	}
	wg.Wait()
	if stop >= len(program)-1 {
		time.Sleep(time.Hour - time.Minute) // in a synctest bubble: everything that can end has ended long ago
	} else {
		time.Sleep(30 * time.Second) // in a synctest bubble
		l.Close()
	}
	synctest.Wait()
	s := l.Stats()
	if s.Queued+s.Delayed+s.Running != 0 {
		t.Errorf("left over: %+v", s)
	}
	for _, id := range ids {
		j, err := l.Get(ctx, id)
		if errors.Is(err, jobs.ErrExpired) {
			continue
		}
		if err != nil || !j.State.Final() {
			t.Errorf("%+v, %v", j, err)
		}
		mu.Lock()
		if j.State == jobs.Succeeded && (attempts[id] == 0 || string(j.Result) != `"done"`) {
			t.Errorf("succeeded without a run: %+v", j)
		}
		mu.Unlock()
	}
	time.Sleep(2 * time.Minute) // in a synctest bubble
	if s := l.Stats(); s.Finished != 0 || s.Bytes != 0 {
		t.Errorf("after all has expired: %+v", s)
	}
	l.Close()
	synctest.Wait()
	if s := p.Stats(); s.Used != 0 || s.Waiting != 0 {
		t.Errorf("pool: %+v", s)
	}
}
