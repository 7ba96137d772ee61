package outbound

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// Hedge sends a second try beside a first one that takes unusually long, and returns the response that comes first. It
// cuts the tail of latencies that one slow machine out of several causes, at the price of a few more requests (Dean and
// Barroso, "The Tail at Scale", 2013). It is for hosts that have several machines behind them, or for use with
// [Balance], which sends the second try elsewhere.
//
// A request is hedged at most once, under these conditions. It may be carried out twice (as for [Retry]), has no
// trailer, and its body, if any, has GetBody (one of unknown length that turned out to be empty is none). It has taken
// longer than 95 % of the latest requests to its host, of which there must have been 50, or longer than
// [WithHedgeAfter] says. The budget allows it, which is that of [Retry] if that is given. A hedge never waits for a
// limit. It is not sent to a host whose breaker is open or half-open, nor by a set that has no other endpoint for it.
//
// Some requests always take longer than 95 % of those to their host, as reports among pages do. Each of them would be
// sent twice, as far as the budget goes: use [WithKey] to tell them apart.
//
// The first response below 500 that is not 429 wins; the other try is cancelled. For a request that may change
// something (PUT, DELETE, an Idempotency-Key), a response of 400 or more does not win while the other try runs: it may
// report the effect of that try, for example that there is nothing left to delete, or that the work is in progress. If
// neither wins, the first try's response is the answer. A panic in the second try travels on in the caller's goroutine.
// A panic that comes after the first try has won is counted in [Stats], since the caller is gone.
func Hedge(opts ...HedgeOption) Layer {
	cfg := hedgeConfig{key: hostOf}
	for i, o := range opts {
		if o == nil {
			panic(nilOption("Hedge", i))
		}
		o.applyHedge(&cfg)
	}
	own := newBudgets(defaultBudgetRatio)
	seen := newHosts(func() *latencies { return new(latencies) })
	return Layer{
		place: placeHedge,
		wrap: func(next http.RoundTripper, c *composition) http.RoundTripper {
			b := c.budgets
			if b == nil {
				b = own
			}
			return &hedge{hedgeConfig: cfg, next: next, budgets: b, paid: c.budgets != nil, seen: seen, counts: c.counts}
		},
	}
}

// A HedgeOption configures [Hedge].
type HedgeOption interface{ applyHedge(*hedgeConfig) }

type hedgeOption func(*hedgeConfig)

func (f hedgeOption) applyHedge(c *hedgeConfig) { f(c) }

type hedgeConfig struct {
	key   func(*http.Request) string
	after time.Duration
}

// WithHedgeAfter sets a fixed time after which a second try is sent, instead of
// the 95th percentile of the latencies measured. It must be positive.
func WithHedgeAfter(d time.Duration) HedgeOption {
	if d <= 0 {
		panic(fmt.Sprintf("outbound: WithHedgeAfter(%v): give a positive duration", d))
	}
	return hedgeOption(func(c *hedgeConfig) { c.after = d })
}

type hedge struct {
	hedgeConfig
	next    http.RoundTripper
	budgets *budgets
	paid    bool // Retry makes the deposits
	seen    *hosts[*latencies]
	counts  *counts
}

var errOtherWon = errors.New("outbound: the other try was faster")

func (h *hedge) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	noBody := req.Body == nil || req.Body == http.NoBody
	var maybe *unsaid
	if !noBody && req.GetBody == nil && req.ContentLength <= 0 && (safe(req.Method) || req.Method == http.MethodDelete) {
		maybe = &unsaid{ReadCloser: req.Body}
	}
	if !idempotent(req) || !noBody && req.GetBody == nil && maybe == nil || req.Header.Get("Upgrade") != "" || len(req.Trailer) > 0 || isHedge(ctx) {
		return h.next.RoundTrip(req)
	}
	host := h.key(req)
	seen, budget := h.seen.get(host), h.budgets.get(host)
	if !h.paid {
		h.budgets.deposit(budget)
	}
	after, known := h.after, true
	if after == 0 {
		after, known = seen.p95()
	}
	began := time.Now()
	if !known {
		resp, err := h.next.RoundTrip(req)
		if good(resp, err) {
			seen.add(time.Since(began))
		}
		return resp, err
	}
	if triesIn(ctx) == nil {
		ctx = context.WithValue(ctx, triesKey{}, &tries{})
	}
	r := &race{over: make(chan struct{})}
	firstCtx, cancelFirst := context.WithCancelCause(ctx)
	secondCtx, cancelSecond := context.WithCancelCause(context.WithValue(ctx, hedgeKey{}, true))
	timer := time.AfterFunc(after, func() {
		defer close(r.over)
		defer func() {
			if v := recover(); v == nil {
				return
			} else if r.die(v) {
				cancelFirst(nil)
			} else { // the first try is gone
				h.counts.hedgePanics.Add(1)
			}
		}()
		second, ok := r.copyOf(req, secondCtx, maybe)
		if !ok {
			return
		}
		if !h.budgets.withdraw(budget) {
			h.counts.hedgesDenied.Add(1)
			if second.Body != nil {
				second.Body.Close()
			}
			return
		}
		resp, err := h.next.RoundTrip(second)
		if err != nil && refusedByUs(err) {
			h.budgets.refund(budget) // it was not sent
		} else {
			h.counts.hedges.Add(1)
		}
		if !wins(second, resp, err) || !r.win(resp) {
			discard(resp)
			return
		}
		h.counts.hedgesWon.Add(1)
		cancelFirst(errOtherWon)
	})
	returned := false
	defer func() {
		if !returned { // a panic beneath
			timer.Stop()
			cancelFirst(nil)
			cancelSecond(nil)
			discard(r.leave())
		}
	}()
	first := req.WithContext(firstCtx)
	if maybe != nil {
		first.Body = maybe
	}
	resp, err := h.next.RoundTrip(first)
	ok := good(resp, err)
	if ok || ctx.Err() == nil && context.Cause(firstCtx) == errOtherWon {
		seen.add(time.Since(began)) // or more, if it was cancelled
	}
	hedged := !timer.Stop()
	if !hedged || wins(req, resp, err) && r.win(resp) {
		returned = true
		cancelSecond(errOtherWon)
		return finishing(resp, err, cancelFirst)
	}
	// The second try is ahead, or the first one failed and it decides.
	<-r.over
	if r.died != nil {
		discard(resp)
		panic(r.died)
	}
	returned = true
	if r.winner == nil || r.winner == resp {
		cancelSecond(nil)
		return finishing(resp, err, cancelFirst)
	}
	discard(resp)
	cancelFirst(nil)
	return finishing(r.winner, nil, cancelSecond)
}

// copyOf makes the second try of a request, unless the first has won, or it is not known yet that there is no body. Whoever has
// closed the response of that may change the request, at which the second may be still.
func (r *race) copyOf(req *http.Request, ctx context.Context, maybe *unsaid) (*http.Request, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.winner != nil || r.left || maybe != nil && !maybe.none.Load() {
		return nil, false
	}
	second := req.Clone(ctx)
	if maybe != nil {
		withoutBody(second)
	}
	if req.GetBody != nil && req.Body != nil && req.Body != http.NoBody {
		body, err := req.GetBody()
		if err != nil {
			return nil, false
		}
		second.Body = body
	}
	return second, true
}

// A race is between two tries; the first that says so wins.
type race struct {
	over chan struct{} // closed when the second try is

	mu     sync.Mutex
	winner *http.Response
	died   any  // a panic of the second try, for the caller's goroutine
	left   bool // by the caller, with a panic of the first try
}

func (r *race) win(resp *http.Response) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.winner != nil || r.died != nil || r.left {
		return false
	}
	r.winner = resp
	return true
}

// leave ends the race with a panic of the first try. It returns what nobody will take now.
func (r *race) leave() *http.Response {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left = true
	return r.winner
}

// die ends the race with a panic of the second try. It reports false if the first has won,
// or left with a panic of its own.
func (r *race) die(v any) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.winner != nil || r.left {
		return false
	}
	r.died = v
	return true
}

func good(resp *http.Response, err error) bool {
	return err == nil && resp.StatusCode < http.StatusInternalServerError &&
		resp.StatusCode != http.StatusTooManyRequests
}

// wins reports whether a response is the answer to a request whatever the other try comes to. What has no effect is told the same twice.
func wins(req *http.Request, resp *http.Response, err error) bool {
	return good(resp, err) && (resp.StatusCode < http.StatusBadRequest || safe(req.Method))
}

// finishing lets the context of a try go when its response is over.
func finishing(resp *http.Response, err error, cancel context.CancelCauseFunc) (*http.Response, error) {
	if err != nil {
		cancel(nil)
		return resp, err
	}
	watch(resp, ending{cancel})
	return resp, nil
}
