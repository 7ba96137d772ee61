package redisjobs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/spillgate/spillgate/pool/internal/remote"
	"github.com/spillgate/spillgate/pool/jobs"
)

// Engine is a [jobs.Engine] in Redis. Create one with [New]. It has goroutines after [Engine.Start], or while somebody
// watches a job, until [Engine.Close]; it does not close what it did not make, such as the client. An Engine is safe
// for concurrent use.
//
// Errors that are not refusals of package jobs begin with "redisjobs: " and wrap what go-redis returned. After such an
// error of Submit, it is not known whether there is a job: submit again with the same Key.
type Engine struct {
	mux    *jobs.Mux
	client redis.UniversalClient
	conf   config
	keys   []string // what all keys begin with, as scripts are given it
	kinds  []any    // that it runs
	name   string   // by which the server knows this worker
	watch  *remote.Notices

	mint   atomic.Pointer[remote.Mint] // nil until the server was asked for it
	looked atomic.Int64                // when that was last, in Unix seconds

	mu      sync.Mutex
	running map[*attempt]struct{}

	base      context.Context // of handlers; ends when they are to return
	abort     context.CancelCauseFunc
	wake      chan struct{} // holds a token when there may be a job to begin
	look      chan struct{} // and when one that runs may have been cancelled
	cancelled atomic.Int64  // times that somebody was told so, or was not and should have been

	closed  atomic.Bool   // accepts nothing any more
	life    sync.Mutex    // of what follows
	drained chan struct{} // closed when no more jobs are to begin; nil until started
	stopped chan struct{} // closed when no job runs and none will
	stop    sync.Once
	fetches sync.WaitGroup // what begins jobs, and the jobs
	keeps   sync.WaitGroup // the rest
}

var _ jobs.Engine = (*Engine)(nil)

// New returns an engine that takes the kinds of m and keeps their jobs on the server of client: a single server, one
// that Sentinel finds, or a cluster, with or without TLS. New does not contact the server. It panics if client, m or an
// option is nil.
func New(client redis.UniversalClient, m *jobs.Mux, opts ...Option) *Engine {
	if client == nil || m == nil {
		panic("redisjobs: New: it needs a client of go-redis and a Mux with the handlers")
	}
	c := config{
		prefix: "spillgate:jobs", unfinished: 10000, payload: 64 << 10, result: 1 << 20, shareBytes: 16 << 20,
		retain: time.Hour, poll: time.Second, lease: 30 * time.Second,
		logger: slog.New(slog.DiscardHandler),
	}
	c.share = c.unfinished / 4
	for i, o := range opts {
		if o == nil {
			panic(fmt.Sprintf("redisjobs: New: option %d is nil; leave it out", i))
		}
		o.apply(&c)
	}
	e := &Engine{
		mux: m, client: client, conf: c, keys: []string{"{" + c.prefix + "}:"}, name: rand.Text(),
		running: make(map[*attempt]struct{}), wake: make(chan struct{}, 1), look: make(chan struct{}, 1),
	}
	for _, kind := range m.Kinds() {
		e.kinds = append(e.kinds, kind)
	}
	e.base, e.abort = context.WithCancelCause(context.Background())
	e.watch = remote.NewNotices(func(ctx context.Context, heard func(id string, began bool) bool) bool {
		return hear(ctx, client, e.keys[0]+"changed", heard)
	}, askTold)
	return e
}

// fault says what went wrong with the server, or that ctx has ended.
func (e *Engine) fault(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case past(ctx):
		return context.DeadlineExceeded
	case strings.HasPrefix(err.Error(), "OOM "):
		// It may have some again: jobs end and are forgotten.
		return fmt.Errorf("redisjobs: the server's memory is full: %w: %w", &jobs.Error{Err: jobs.ErrFull, RetryAfter: retryAfterFull}, err)
	}
	return fmt.Errorf("redisjobs: %w", err)
}

// past reports whether the deadline of ctx has passed. The connection goes by it too, and may notice first.
func past(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ok && !time.Now().Before(deadline)
}

// ids returns what makes and recognises ids. It asks the server until that has answered once.
func (e *Engine) ids(ctx context.Context) (remote.Mint, error) {
	if m := e.mint.Load(); m != nil {
		return *m, nil
	}
	return e.lookForIDs(ctx)
}

// lookForIDs asks the server for what it has, and gives it something where it has nothing.
func (e *Engine) lookForIDs(ctx context.Context) (remote.Mint, error) {
	e.looked.Store(time.Now().Unix())
	key := e.keys[0] + "mint"
	for {
		m, err := e.run(ctx, mintScript).Text()
		switch {
		case err == nil:
			e.remember(remote.Mint(m))
			return remote.Mint(m), nil
		case !errors.Is(err, redis.Nil):
			return "", e.fault(ctx, err)
		}
		if old := e.mint.Load(); old != nil {
			return *old, nil // the next job brings it back
		}
		if err := e.client.SetNX(ctx, key, string(remote.NewMint()), 0).Err(); err != nil {
			return "", e.fault(ctx, err)
		}
	}
}

func (e *Engine) remember(m remote.Mint) { e.mint.Store(&m) }

// known reports whether id is one that was given out; else there has never been such a job. What looks like an id may be one of those who made
// a new mint after the server had lost the old one; whether there is such is asked once in a second at most.
func (e *Engine) known(ctx context.Context, id string) error {
	m, err := e.ids(ctx)
	if err != nil || m.GaveOut(id) {
		return err
	}
	if _, ok := remote.DecodeID(id); ok && time.Now().Unix() != e.looked.Load() {
		if m, err = e.lookForIDs(ctx); err != nil || m.GaveOut(id) {
			return err
		}
	}
	return jobs.ErrNotFound
}
