package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"sync"
	"time"
)

// Mux holds the handlers by kind. Register them before an engine uses it. The zero value is empty and ready to use. A
// Mux is safe for concurrent use.
type Mux struct {
	mu    sync.RWMutex
	kinds map[string]*handler
}

// NewMux returns an empty Mux.
func NewMux() *Mux { return new(Mux) }

type handler struct {
	policy Policy
	check  func(payload []byte) error
	run    func(ctx context.Context, payload []byte) ([]byte, error)
}

// Policy says how jobs of one kind are treated.
type Policy struct {
	MaxAttempts int           // at least 1
	BaseDelay   time.Duration // the first retry comes at most this long after the failure
	MaxDelay    time.Duration // no retry comes later than this after the failure
	Timeout     time.Duration // of an attempt; 0 means none
	Retain      time.Duration // how long a final job is kept; 0 leaves it to the engine
}

// Delay returns how long to wait after the given attempt (1 is the first) has failed: exponential back-off with full
// jitter, a time drawn evenly from 0 to BaseDelay * 2^(attempt-1) or MaxDelay, whichever is less ("Exponential Backoff
// And Jitter", AWS Architecture Blog, 2015).
func (p Policy) Delay(attempt int) time.Duration {
	d := p.MaxDelay
	if n := max(attempt-1, 0); n < 62 && p.BaseDelay <= p.MaxDelay>>n {
		d = p.BaseDelay << n
	}
	return rand.N(min(max(d, 0), math.MaxInt64-1) + 1)
}

// KindOption sets one thing about a kind of job.
type KindOption interface{ applyKind(*Policy) }

type kindOption func(*Policy)

func (f kindOption) applyKind(p *Policy) { f(p) }

// WithAttempts allows n attempts in all. The default is 1: a handler must declare that it may run again after it failed
// half way. WithAttempts panics if n is less than 1.
func WithAttempts(n int) KindOption {
	if n < 1 {
		panic(fmt.Sprintf("jobs: WithAttempts(%d): there is at least 1 attempt", n))
	}
	return kindOption(func(p *Policy) { p.MaxAttempts = n })
}

// WithBackoff sets the delays between attempts, see [Policy.Delay]; the default is 1 s and
// 5 min. It panics unless 0 < base <= most.
func WithBackoff(base, most time.Duration) KindOption {
	if base <= 0 || most < base {
		panic(fmt.Sprintf("jobs: WithBackoff(%v, %v): the delays must be positive and in order", base, most))
	}
	return kindOption(func(p *Policy) { p.BaseDelay, p.MaxDelay = base, most })
}

// WithTimeout ends the context of an attempt after d. It panics if d is not positive.
func WithTimeout(d time.Duration) KindOption {
	if d <= 0 {
		panic(fmt.Sprintf("jobs: WithTimeout(%v): the time must be positive", d))
	}
	return kindOption(func(p *Policy) { p.Timeout = d })
}

// WithRetain sets how long a job of this kind is kept after it has ended, if there is room; the default is the
// engine's. It panics if d is not positive.
func WithRetain(d time.Duration) KindOption {
	if d <= 0 {
		panic(fmt.Sprintf("jobs: WithRetain(%v): the time must be positive", d))
	}
	return kindOption(func(p *Policy) { p.Retain = d })
}

// Register sets f as the handler for kind. For each attempt, the payload of the job is decoded from JSON into A, and
// what f returns is encoded as JSON. f must return when its context ends, and must do no harm when it runs again for
// the same job. The text of its error is shown to the client; a panic is a failed attempt whose value and stack go into
// [Job].Detail.
//
// The payload is decoded as by [json.Unmarshal]: fields that A does not have are ignored, and an empty payload is
// malformed.
//
// Register panics if kind is empty or already has a handler, or if m, f or an option is nil.
func Register[A, R any](m *Mux, kind string, f func(ctx context.Context, a A) (R, error), opts ...KindOption) {
	if m == nil {
		panic("jobs: Register: m is nil; give one made by NewMux")
	}
	if kind == "" || f == nil {
		panic("jobs: Register: a kind needs a name and a handler")
	}
	h := &handler{
		policy: Policy{MaxAttempts: 1, BaseDelay: time.Second, MaxDelay: 5 * time.Minute},
		check: func(payload []byte) error {
			var a A
			return decode(payload, &a)
		},
		run: func(ctx context.Context, payload []byte) ([]byte, error) {
			var a A
			if err := decode(payload, &a); err != nil {
				return nil, err
			}
			r, err := f(ctx, a)
			if err != nil {
				return nil, err
			}
			b, err := json.Marshal(r)
			if err != nil {
				return nil, Permanent(fmt.Errorf("jobs: the result cannot be encoded: %w", err))
			}
			return b, nil
		},
	}
	for i, o := range opts {
		if o == nil {
			panic(fmt.Sprintf("jobs: Register: option %d of kind %q is nil; leave it out", i, kind))
		}
		o.applyKind(&h.policy)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.kinds[kind] != nil {
		panic(fmt.Sprintf("jobs: Register: kind %q has a handler already; one Mux holds one for each", kind))
	}
	if m.kinds == nil {
		m.kinds = make(map[string]*handler)
	}
	m.kinds[kind] = h
}

func decode(payload []byte, v any) error {
	if err := json.Unmarshal(payload, v); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}

func (m *Mux) handler(kind string) (*handler, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if h := m.kinds[kind]; h != nil {
		return h, nil
	}
	return nil, fmt.Errorf("%w %q", ErrUnknownKind, kind)
}

// Policy returns how jobs of this kind are treated. The error wraps [ErrUnknownKind].
func (m *Mux) Policy(kind string) (Policy, error) {
	h, err := m.handler(kind)
	if err != nil {
		return Policy{}, err
	}
	return h.policy, nil
}

// Kinds returns the kinds that have a handler, in alphabetical order. Engines use it to say which jobs they can run.
func (m *Mux) Kinds() []string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Sorted(maps.Keys(m.kinds))
}

// Check returns nil if a job could be run: its kind has a handler, and that accepts the payload. Otherwise the error
// wraps [ErrUnknownKind] or [ErrMalformed]. An engine calls Check before it accepts a job.
func (m *Mux) Check(kind string, payload []byte) error {
	h, err := m.handler(kind)
	if err != nil {
		return err
	}
	return h.check(payload)
}

// Attempt is one run of a job, as an engine passes it to [Mux.Run] and a handler gets it from [Current].
type Attempt struct {
	ID     string
	Kind   string
	Number int // 1 is the first
	// Report is called with the progress that the handler reports; nil drops it.
	Report func(Progress)
}

type attemptKey struct{}

// Current returns the attempt that a handler's context belongs to.
func Current(ctx context.Context) (Attempt, bool) {
	a, ok := ctx.Value(attemptKey{}).(Attempt)
	return a, ok
}

// Report says how far the job that ctx belongs to has come. A handler may call it for each of very many steps: watchers
// of the job are told a few times a second, and then the latest progress. Outside a job it does nothing.
func Report(ctx context.Context, p Progress) {
	if a, ok := Current(ctx); ok && a.Report != nil {
		p.Note = clip(p.Note, 256)
		a.Report(p)
	}
}

// Run runs one attempt on the caller's goroutine and returns the result as JSON. It is for engines. A panic is returned
// as a [*PanicError]; a runtime.Goexit goes on.
func (m *Mux) Run(ctx context.Context, a Attempt, payload []byte) (result []byte, err error) {
	h, err := m.handler(a.Kind)
	if err != nil {
		return nil, err
	}
	if h.policy.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, h.policy.Timeout)
		defer cancel()
	}
	defer func() {
		if v := recover(); v != nil {
			result, err = nil, &PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	return h.run(context.WithValue(ctx, attemptKey{}, a), payload)
}
