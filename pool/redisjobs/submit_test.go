//go:build unix

package redisjobs_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/redisjobs"
)

func TestTooLarge(t *testing.T) {
	t.Parallel()
	m := kinds()
	jobs.Register(m, "big", func(context.Context, int) (string, error) { return strings.Repeat("x", 100), nil }, jobs.WithAttempts(3))
	e := engine(t, shared.client(t), m, service(), redisjobs.WithWorkers(1), redisjobs.WithSizes(10, 50, 20))
	for name, c := range map[string]struct {
		payload string
		o       jobs.SubmitOptions
	}{
		"payload": {"12345678901", jobs.SubmitOptions{}},
		"key":     {"1", jobs.SubmitOptions{Key: strings.Repeat("k", 256)}},
		"client":  {"1", jobs.SubmitOptions{Client: strings.Repeat("c", 256)}},
	} {
		if _, _, err := e.Submit(t.Context(), "n", []byte(c.payload), c.o); !errors.Is(err, jobs.ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if end := final(t, e, submit(t, e, "big", "1", jobs.SubmitOptions{}).ID); end.State != jobs.Failed || end.Attempt != 1 || !strings.HasPrefix(end.Err, jobs.ErrTooLarge.Error()) {
		t.Errorf("ended as %+v", end)
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	e := engine(t, shared.client(t), kinds(), service(), redisjobs.WithCapacity(6, 2), redisjobs.WithSizes(10, 100, 12))
	try := func(payload string, o jobs.SubmitOptions) (string, error) {
		j, _, err := e.Submit(t.Context(), "n", []byte(payload), o)
		return j.ID, err
	}
	refused := func(what string, err, want error) {
		t.Helper()
		if e, ok := errors.AsType[*jobs.Error](err); !errors.Is(err, want) || !ok || e.RetryAfter <= 0 {
			t.Errorf("%s: %v, want %v and when to come back", what, err, want)
		}
	}
	a := jobs.SubmitOptions{Client: "a"}
	first := submit(t, e, "n", "1234567890", a)
	_, err := try("123", a)
	refused("bytes", err, jobs.ErrShareFull)
	submit(t, e, "n", "12", a)
	_, err = try("1", a)
	refused("places", err, jobs.ErrShareFull)
	soon := time.Now().Add(50 * time.Millisecond)
	for range 4 { // without a client there is no share; with a deadline they are gone by themselves
		submit(t, e, "n", "1", jobs.SubmitOptions{Deadline: soon})
	}
	until(t, "what is late takes no place", func() bool { _, err := try("1", jobs.SubmitOptions{}); return err == nil })
	for range 3 {
		submit(t, e, "n", "1", jobs.SubmitOptions{})
	}
	_, err = try("1", jobs.SubmitOptions{Client: "b"})
	refused("all places", err, jobs.ErrFull)
	if _, err := e.Cancel(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := try("1", a); err != nil {
		t.Errorf("after one was cancelled: %v", err)
	}
}

// However many submit at once, on however many machines, there are as many jobs as there may be.
func TestBoundsUnderConcurrency(t *testing.T) {
	t.Parallel()
	prefix := service()
	var had, shareFull, full atomic.Int64
	var wg sync.WaitGroup
	for range 2 {
		e := engine(t, shared.client(t), kinds(), prefix, redisjobs.WithCapacity(11, 7))
		for i := range 40 {
			wg.Go(func() {
				switch _, _, err := e.Submit(t.Context(), "n", []byte("1"), jobs.SubmitOptions{Client: []string{"a", ""}[i%2]}); {
				case err == nil:
					had.Add(1)
				case errors.Is(err, jobs.ErrShareFull):
					shareFull.Add(1)
				case errors.Is(err, jobs.ErrFull):
					full.Add(1)
				default:
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	if had.Load() != 11 || shareFull.Load()+full.Load() != 69 {
		t.Errorf("%d accepted, %d and %d refused, want 11 and 69", had.Load(), shareFull.Load(), full.Load())
	}
}

func TestKeyUnderConcurrency(t *testing.T) {
	t.Parallel()
	prefix := service()
	var created, reused atomic.Int64
	var ids sync.Map
	var wg sync.WaitGroup
	for range 2 {
		e := engine(t, shared.client(t), kinds(), prefix, redisjobs.WithWorkers(2))
		for i := range 16 {
			wg.Go(func() {
				// The same without a client and with the same one; some with another payload.
				payload := []byte("0")
				if i >= 14 {
					payload = []byte("1")
				}
				j, fresh, err := e.Submit(t.Context(), "n", payload, jobs.SubmitOptions{Key: "k", Client: []string{"", "a"}[i%2]})
				switch {
				case errors.Is(err, jobs.ErrKeyReused):
					reused.Add(1)
				case err != nil:
					t.Error(err)
				default:
					ids.Store(j.ID, true)
				}
				if fresh {
					created.Add(1)
				}
			})
		}
	}
	wg.Wait()
	n := 0
	ids.Range(func(any, any) bool { n++; return true })
	if created.Load() != 2 || n != 2 || reused.Load() == 0 {
		t.Errorf("%d created, %d ids, %d refused; want 2, 2 and some", created.Load(), n, reused.Load())
	}
}

// Of a client and a key the end of the one is not the beginning of the other.
func TestKeysOfClients(t *testing.T) {
	t.Parallel()
	e := engine(t, shared.client(t), kinds(), service())
	submit(t, e, "n", "1", jobs.SubmitOptions{Client: "a", Key: "bc"})
	submit(t, e, "n", "1", jobs.SubmitOptions{Client: "ab", Key: "c"})
	submit(t, e, "n", "1", jobs.SubmitOptions{Client: "", Key: "abc"})
	submit(t, e, "n", "1", jobs.SubmitOptions{Client: "1:a", Key: "bc"})
}

// Times that have no place in JSON or in a number of the server's.
func TestTimesFarAway(t *testing.T) {
	t.Parallel()
	e := engine(t, shared.client(t), kinds(), service(), redisjobs.WithWorkers(1))
	never := time.Unix(1<<55, 0)
	long := time.Unix(-1<<55, 0)
	if end := final(t, e, submit(t, e, "n", "1", jobs.SubmitOptions{Deadline: never, NotBefore: long}).ID); end.State != jobs.Succeeded {
		t.Errorf("ended as %+v", end)
	}
	if end := final(t, e, submit(t, e, "n", "1", jobs.SubmitOptions{Deadline: long, NotBefore: never}).ID); end.State != jobs.Failed || end.Attempt != 0 {
		t.Errorf("ended as %+v", end)
	}
	if j, err := e.Cancel(t.Context(), submit(t, e, "n", "1", jobs.SubmitOptions{NotBefore: never}).ID); err != nil || j.State != jobs.Cancelled {
		t.Errorf("%+v, %v", j, err)
	}
	m := kinds()
	jobs.Register(m, "kept", func(context.Context, int) (int, error) { return 1, nil }, jobs.WithRetain(1<<63-1))
	e = engine(t, shared.client(t), m, service(), redisjobs.WithWorkers(1))
	if end := final(t, e, submit(t, e, "kept", "1", jobs.SubmitOptions{}).ID); end.State != jobs.Succeeded || time.Until(end.Expires) < 1000*time.Hour {
		t.Errorf("ended as %+v", end)
	}
}

// claims sees how many jobs are in one answer of the server at most, and how many failed while it came.
type claims struct {
	failed           func() int64
	most, mostFailed atomic.Int64
}

func (h *claims) DialHook(next redis.DialHook) redis.DialHook { return next }
func (h *claims) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
func (h *claims) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		var before int64
		if h.failed != nil {
			before = h.failed()
		}
		err := next(ctx, cmd)
		if c, ok := cmd.(*redis.Cmd); ok && err == nil {
			if v, _ := c.Val().([]any); len(v) == 2 {
				if claimed, ok := v[1].([]any); ok {
					h.most.Store(max(h.most.Load(), int64(len(claimed))))
					if h.failed != nil {
						h.mostFailed.Store(max(h.mostFailed.Load(), h.failed()-before))
					}
				}
			}
		}
		return err
	}
}

// A worker with many free places is not given many large payloads in one answer, but all of them at once.
func TestLargePayloads(t *testing.T) {
	t.Parallel()
	const n, size = 8, 600 << 10
	all := make(chan struct{})
	var running atomic.Int64
	m := jobs.NewMux()
	jobs.Register(m, "large", func(ctx context.Context, s string) (int, error) {
		if running.Add(1) == n {
			close(all)
		}
		select {
		case <-all:
			return len(s), nil
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	})
	c, prefix, sizes := shared.client(t), service(), redisjobs.WithSizes(1<<20, 1<<20, 1<<30)
	seen := new(claims)
	c.AddHook(seen)
	web := engine(t, shared.client(t), m, prefix, sizes)
	var ids []string
	for range n {
		ids = append(ids, submit(t, web, "large", `"`+strings.Repeat("x", size)+`"`, jobs.SubmitOptions{}).ID)
	}
	engine(t, c, m, prefix, sizes, redisjobs.WithWorkers(n), redisjobs.WithPollInterval(time.Hour))
	for _, id := range ids {
		if end := final(t, web, id); end.State != jobs.Succeeded || end.Attempt != 1 {
			t.Errorf("ended as %+v", end)
		}
	}
	if most := seen.most.Load(); most != 2 {
		t.Errorf("%d payloads of %d bytes were in one answer", most, size)
	}
}
