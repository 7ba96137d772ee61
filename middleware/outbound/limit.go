package outbound

import (
	"context"
	"net/http"

	"github.com/spillgate/spillgate/limiter"
)

// Limit keeps us from being a client that others must protect themselves from. With [WithRate], each try takes a token
// from its host's bucket. With [WithConcurrency], it takes a permit of its host's limiter and holds it until the
// response body is over. To that limiter a try is a success unless there is no response, the status is 429 or at least
// 500, or the body breaks off; it is ignored if the caller cancels it. A try waits for token and permit within the
// bounds that the limiters set; if it gets none, its error is that of the limiter, a [*limiter.Error], or that of the
// context. With [Balance], the host is the endpoint that was chosen, and [WithKey] has no effect.
//
// With both, a try holds its permit while it waits for the token. In the opposite order, tries that have their tokens
// would wait for permits, and go out together when a host that hung comes back, however low the rate is.
//
// To bound the connections to a host, use [WithConcurrency] in place of [http.Transport.MaxConnsPerHost]. A try that
// waits for a connection there has already begun: [Timeout] and the caller's deadline cut it off, and its connection
// with it, just when its turn has come, and [Breaker] counts that against the host. If slightly more requests come than
// fit, almost none is answered then.
//
// It panics if neither option is given.
func Limit(opts ...LimitOption) Layer {
	cfg := limitConfig{key: hostOf}
	for i, o := range opts {
		if o == nil {
			panic(nilOption("Limit", i))
		}
		o.applyLimit(&cfg)
	}
	if cfg.rate == nil && cfg.fresh == nil {
		panic("outbound: Limit: nothing to limit by; give WithRate, WithConcurrency or both")
	}
	l := &limits{limitConfig: cfg}
	if cfg.fresh != nil {
		l.permits = newHosts(func() *limiter.Concurrency {
			c := cfg.fresh()
			if c == nil {
				panic("outbound: WithConcurrency: the function returned nil; have it make a limiter")
			}
			return c
		})
	}
	return Layer{
		place: placeLimit,
		share: func(c *composition) { c.limits = l },
		wrap: func(next http.RoundTripper, c *composition) http.RoundTripper {
			return &limited{limits: l, next: next, counts: c.counts}
		},
	}
}

// A LimitOption configures [Limit].
type LimitOption interface{ applyLimit(*limitConfig) }

type limitOption func(*limitConfig)

func (f limitOption) applyLimit(c *limitConfig) { f(c) }

type limitConfig struct {
	key   func(*http.Request) string
	rate  *limiter.Rate
	fresh func() *limiter.Concurrency
}

// WithRate limits how often a host is called. The key of its bucket in r is the
// host.
func WithRate(r *limiter.Rate) LimitOption {
	if r == nil {
		panic("outbound: WithRate: nil; give a limiter")
	}
	return limitOption(func(c *limitConfig) { c.rate = r })
}

// WithConcurrency limits how many calls to a host are in flight. fresh makes the limiter of a host that is called for
// the first time, or again after more than 1,024 others. If several calls of such a host come at once, fresh may run
// for each of them; one of the limiters is used, and the others are dropped:
//
//	outbound.WithConcurrency(func() *limiter.Concurrency {
//		return limiter.NewConcurrency(32, limiter.WithQueue(64, time.Second))
//	})
func WithConcurrency(fresh func() *limiter.Concurrency) LimitOption {
	if fresh == nil {
		panic("outbound: WithConcurrency: nil; give a function that makes a limiter")
	}
	return limitOption(func(c *limitConfig) { c.fresh = fresh })
}

type limits struct {
	limitConfig
	permits *hosts[*limiter.Concurrency]
}

// enter waits for what a try needs. A hedge does not wait: it is there to save time.
func (l *limits) enter(ctx context.Context, host string) (limiter.Permit, error) {
	var permit limiter.Permit
	hedge := isHedge(ctx)
	if l.permits != nil {
		c := l.permits.get(host)
		if hedge {
			p, ok := c.TryAcquire(limiter.Request{})
			if !ok {
				return p, limiter.ErrSaturated
			}
			permit = p
		} else {
			p, err := c.Acquire(ctx, limiter.Request{})
			if err != nil {
				return p, err
			}
			permit = p
		}
	}
	if l.rate != nil {
		passed := false
		defer func() {
			if !passed { // refused, or a function of the user's has panicked
				permit.Release(limiter.Ignored)
			}
		}()
		var err error
		if hedge {
			if !l.rate.Allow(host).OK {
				err = limiter.ErrRateLimited
			}
		} else {
			err = l.rate.Wait(ctx, host)
		}
		if err != nil {
			return permit, err
		}
		passed = true
	}
	return permit, nil
}

// held is what a try gives back when its response is over.
type held struct {
	permit limiter.Permit
	failed bool
	req    *http.Request
}

func (h held) ended(err error) {
	switch {
	case h.req.Context().Err() == context.Canceled:
		h.permit.Release(limiter.Ignored)
	case h.failed || err != nil:
		h.permit.Release(limiter.Failure)
	default:
		h.permit.Release(limiter.Success)
	}
}

type limited struct {
	*limits
	next   http.RoundTripper
	counts *counts
}

func (t *limited) RoundTrip(req *http.Request) (*http.Response, error) {
	permit, err := t.enter(req.Context(), t.key(req))
	if err != nil {
		t.counts.limited.Add(1)
		return refuse(req, err)
	}
	returned := false
	defer func() {
		if !returned { // a panic, which travels on
			permit.Release(limiter.Failure)
		}
	}()
	resp, err := t.next.RoundTrip(req)
	returned = true
	if err != nil && refusedByUs(err) {
		permit.Release(limiter.Ignored)
		return nil, err
	}
	h := held{permit: permit, req: req, failed: !good(resp, err)}
	if err != nil {
		h.ended(nil)
		return nil, err
	}
	watch(resp, h)
	return resp, nil
}
