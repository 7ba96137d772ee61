package jobs_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/pool"
	"github.com/spillgate/spillgate/pool/jobs"
)

func TestRefusalForgetsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := engine(jobs.WithSizes(100, 100, 250))
		defer l.Close()
		done := final(t, l, submit(t, l, `{"n":1}`, jobs.SubmitOptions{}).ID)
		big := `{"x":"` + strings.Repeat("x", 90) + `"}`
		later := jobs.SubmitOptions{NotBefore: time.Now().Add(time.Minute)}
		submit(t, l, big, later)
		submit(t, l, big, later)
		if _, _, err := l.Submit(ctx, "k", []byte(big), later); !errors.Is(err, jobs.ErrFull) {
			t.Fatalf("got %v", err)
		}
		if j, err := l.Get(ctx, done.ID); err != nil || string(j.Result) != "1" {
			t.Errorf("a job that ended before: %+v, %v", j, err)
		}
	})
}

func TestShortRetentionAmongLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := jobs.NewMux()
		nop := func(context.Context, args) (int, error) { return 1, nil }
		jobs.Register(m, "k", nop)
		jobs.Register(m, "short", nop, jobs.WithRetain(time.Minute))
		l := jobs.NewLocal(m, pool.New(pool.WithSlots(1)), jobs.WithCapacity(10, 10, 5))
		defer l.Close()
		var first jobs.Job
		for i := range 5 {
			if j := final(t, l, submit(t, l, `{}`, jobs.SubmitOptions{}).ID); i == 0 {
				first = j
			}
		}
		j, _, err := l.Submit(ctx, "short", []byte(`{}`), jobs.SubmitOptions{})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if j, err := l.Get(ctx, j.ID); err != nil || j.State != jobs.Succeeded {
			t.Errorf("just ended: %+v, %v", j, err)
		}
		if _, err := l.Get(ctx, first.ID); !errors.Is(err, jobs.ErrExpired) {
			t.Errorf("the one that ended first: %v", err)
		}
	})
}

func TestWatchSeesTheEndOfWhatIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := engine(jobs.WithCapacity(10, 10, 1))
		defer l.Close()
		j := submit(t, l, `{"n":1000}`, jobs.SubmitOptions{})
		synctest.Wait()
		var states []jobs.State
		for j, err := range l.Watch(ctx, j.ID) {
			if err != nil {
				t.Fatalf("after %v: %v", states, err)
			}
			states = append(states, j.State)
			if j.State == jobs.Running { // a slow watcher: meanwhile it ends, and then another does
				time.Sleep(10 * time.Second) // in a synctest bubble
				final(t, l, submit(t, l, `{"n":1}`, jobs.SubmitOptions{}).ID)
			}
		}
		if n := len(states); n != 2 || states[1] != jobs.Succeeded {
			t.Errorf("%v", states)
		}
		if _, err := l.Get(ctx, j.ID); !errors.Is(err, jobs.ErrExpired) {
			t.Errorf("Get: %v", err)
		}
	})
}
