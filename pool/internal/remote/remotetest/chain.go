package remotetest

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/spillgate/spillgate/pool/jobs"
)

// Drainer is an engine that can be shut down.
type Drainer interface {
	jobs.Engine
	Shutdown(ctx context.Context) error
}

// Chains tests what becomes of a job that submits another one while the engine that runs it is shut down. The kinds of m have one that ends at
// once, "n". web makes an engine that runs nothing, and worker one that runs one job at a time.
func Chains(t *testing.T, m *jobs.Mux, web, worker func(t *testing.T) Drainer) {
	first, second := make(chan struct{}), make(chan jobs.Engine)
	jobs.Register(m, "chain", func(ctx context.Context, _ any) (string, error) {
		first <- struct{}{}
		j, _, err := (<-second).Submit(ctx, "n", []byte("1"), jobs.SubmitOptions{})
		return j.ID, err
	})
	outside := web(t)
	// run has a worker be shut down while it runs a job that then submits another one to what by returns.
	run := func(t *testing.T, by func(e Drainer) jobs.Engine) jobs.Job {
		t.Helper()
		e := worker(t)
		j := Submit(t, outside, "chain", "1", jobs.SubmitOptions{})
		<-first
		done := make(chan error, 1)
		go func() { done <- e.Shutdown(t.Context()) }()
		Closed(t, e)
		second <- by(e)
		if err := <-done; err != nil {
			t.Error(err)
		}
		j, err := outside.Get(t.Context(), j.ID)
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	t.Run("takes what those submit that run", func(t *testing.T) {
		j := run(t, func(e Drainer) jobs.Engine { return e })
		var next string
		if err := json.Unmarshal(j.Result, &next); err != nil || j.State != jobs.Succeeded {
			t.Fatalf("%+v, %v", j, err)
		}
		if j, err := outside.Cancel(t.Context(), next); err != nil || j.State != jobs.Cancelled {
			t.Errorf("%+v, %v", j, err)
		}
	})
	t.Run("gives back what another engine that is shut down takes nothing of", func(t *testing.T) {
		other := web(t)
		j := run(t, func(Drainer) jobs.Engine {
			if err := other.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			return other
		})
		if j.State != jobs.Queued || j.Attempt != 0 {
			t.Errorf("%+v", j)
		}
		if _, err := outside.Cancel(t.Context(), j.ID); err != nil {
			t.Error(err)
		}
	})
}

// Closed waits until e accepts no more.
func Closed(t testing.TB, e jobs.Engine) {
	t.Helper()
	Until(t, "it accepts no more", func() bool {
		_, _, err := e.Submit(t.Context(), "n", []byte("1"), jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
		return errors.Is(err, jobs.ErrShutdown)
	})
}
