package outbound

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Retry makes another try where it is safe and likely to help:
//
//   - the method is GET, HEAD, OPTIONS, TRACE, PUT or DELETE (RFC 9110, section 9.2.2), or the request has an
//     Idempotency-Key header; or the error proves that nothing was sent (a dial that failed, also to a proxy, a
//     connection that was not yet established, its TLS included, when it or the time of [Timeout] ended, or HTTP/2
//     REFUSED_STREAM), which makes every method safe;
//   - the response was 502, 503 or 504, or 429 with Retry-After, or there was none. Not 500: that is an answer of the
//     application, and likely to be the same again. Not a name that does not exist or a certificate that does not fit,
//     unless [Balance] has another endpoint. Not a request that net/http does not send, for example because of a line
//     break in a header value;
//   - the body can be sent again: from GetBody, or from memory if it is at most 64 KiB of known length, because no try
//     has read from it, or because it turned out to be empty, of which the length was not known (as with nearly every
//     GET that a proxy gets over HTTP/3);
//   - the budget of the host allows it: each request adds a tenth of a try, each retry takes one out; the budget begins
//     at 10 and is at most 100. An outage thus adds 10 % to the load of a host and not a multiple of it. A request
//     whose first try is answered 503 with Retry-After adds nothing, unless [Balance] has another endpoint: retries
//     thus leave a host alone that refuses all that comes, though to Breaker that is no failure;
//   - the caller's deadline is not reached before the next try begins, and by then [Breaker] is no longer open, and not
//     all endpoints are ejected;
//   - no Retry is at work outside this one: the tries of nested clients would multiply. The context says so, within one
//     process.
//
// Before a retry it waits for a random time, up to 50 ms and twice as long for each further one. Retry-After, as
// seconds or as a date by the host's clock (that of its Date), is a minimum for this wait. If it is more than 10 s, or
// if another reason speaks against a retry, the caller gets the response or the error of the last try as it is. With
// [Balance], retries go to an endpoint that had no try yet, if there is one; the Retry-After of a 503 is then no
// minimum.
//
// A request that is carried out twice has the effect of one, but its answer may differ. A try whose answer was lost may
// have done its work, and the next is told that there is nothing left to delete (404), that a precondition no longer
// holds (412), or that the first one is still at work (409).
//
// It makes up to 2 tries; see [WithTries].
func Retry(opts ...RetryOption) Layer {
	cfg := retryConfig{
		key: hostOf, tries: 2, ratio: defaultBudgetRatio, maxBody: 64 << 10,
		base: 50 * time.Millisecond, limit: 2 * time.Second, maxRetryAfter: 10 * time.Second,
	}
	for i, o := range opts {
		if o == nil {
			panic(nilOption("Retry", i))
		}
		o.applyRetry(&cfg)
	}
	b := newBudgets(cfg.ratio)
	return Layer{
		place: placeRetry,
		share: func(c *composition) { c.budgets = b },
		wrap: func(next http.RoundTripper, c *composition) http.RoundTripper {
			return &retry{retryConfig: cfg, next: next, budgets: b, counts: c.counts, shut: c.shut}
		},
	}
}

// A RetryOption configures [Retry].
type RetryOption interface{ applyRetry(*retryConfig) }

type retryOption func(*retryConfig)

func (f retryOption) applyRetry(c *retryConfig) { f(c) }

type retryConfig struct {
	key           func(*http.Request) string
	tries         int
	ratio         float64
	maxBody       int64
	base, limit   time.Duration
	maxRetryAfter time.Duration
	when          func(*http.Request, *http.Response, error) bool
}

// WithTries sets how many tries a request may have, including the first: 1 to 10; default 2.
func WithTries(n int) RetryOption {
	if n < 1 || n > 10 {
		panic(fmt.Sprintf("outbound: WithTries(%d): give 1 to 10", n))
	}
	return retryOption(func(c *retryConfig) { c.tries = n })
}

// WithRetryBudget sets how many retries each request adds to the budget of its host, 0 to 1; default 0.1. With 0, each
// host has only the 10 that it begins with.
func WithRetryBudget(ratio float64) RetryOption {
	if !(ratio >= 0 && ratio <= 1) {
		panic(fmt.Sprintf("outbound: WithRetryBudget(%v): give a ratio from 0 to 1", ratio))
	}
	return retryOption(func(c *retryConfig) { c.ratio = ratio })
}

// WithBackoff sets the longest wait before the first retry and before any; defaults 50 ms and 2 s. The wait is chosen
// at random from zero up ("full jitter"), so that clients that failed together do not return together. With zeros,
// Retry waits only for what Retry-After asks.
func WithBackoff(first, limit time.Duration) RetryOption {
	if first < 0 || limit < first {
		panic(fmt.Sprintf("outbound: WithBackoff(%v, %v): give 0 <= first <= limit", first, limit))
	}
	// A year is for ever, and no sum or multiple of it is out of range.
	return retryOption(func(c *retryConfig) { c.base, c.limit = min(first, year), min(limit, year) })
}

// WithMaxRetryAfter sets the longest Retry-After that Retry waits for; default 10 s. A response that asks for more goes
// to the caller at once.
func WithMaxRetryAfter(d time.Duration) RetryOption {
	if d < 0 {
		panic(fmt.Sprintf("outbound: WithMaxRetryAfter(%v): give zero or more", d))
	}
	return retryOption(func(c *retryConfig) { c.maxRetryAfter = d })
}

// WithReplayBuffer sets the longest request body that is kept in memory for a
// retry if the request has no GetBody; default 64 KiB, 0 keeps none.
func WithReplayBuffer(bytes int64) RetryOption {
	if bytes < 0 {
		panic(fmt.Sprintf("outbound: WithReplayBuffer(%d): give zero or more", bytes))
	}
	return retryOption(func(c *retryConfig) { c.maxBody = bytes })
}

// WithRetryIf replaces the rules on methods, statuses and errors. The rules on the body, the budget, the deadline,
// nested clients and the refusals of our own layers stay. f is called with the response or the error of a try; it must
// not read or close the body.
func WithRetryIf(f func(*http.Request, *http.Response, error) bool) RetryOption {
	if f == nil {
		panic("outbound: WithRetryIf: nil; leave the option out for the usual rules")
	}
	return retryOption(func(c *retryConfig) { c.when = f })
}

type retry struct {
	retryConfig
	next    http.RoundTripper
	budgets *budgets
	counts  *counts
	shut    func(*http.Request, time.Duration) bool // of Breaker or Balance; nil for none
}

func (t *retry) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	budget := t.budgets.get(t.key(req))
	t.budgets.deposit(budget)
	if outer := triesIn(ctx); outer != nil && outer.retried {
		return t.next.RoundTrip(req) // a Hedge there may need the budget
	}
	t.counts.requests.Add(1)
	body, err := newReplay(req, t.maxBody)
	if err != nil {
		return nil, err
	}
	defer body.finish()
	tries := &tries{retried: true}
	inner := context.WithValue(ctx, triesKey{}, tries)
	var conn *sighting
	if t.tries > 1 && t.when == nil && !idempotent(req) {
		conn = new(sighting)
		inner = conn.see(inner)
	}
	out := req.WithContext(inner)
	body.prepare(out, true)
	for n := 1; ; n++ {
		resp, err := t.next.RoundTrip(out)
		switch {
		case n == 1 && err == nil && tooMuch(resp) && !tries.elsewhere():
			t.budgets.takeBack(budget) // no breaker opens where a host refuses all that comes
		case n == 1:
		case err != nil && refusedByUs(err):
			t.budgets.refund(budget) // it was not sent
		default:
			t.counts.retries.Add(1)
		}
		wait, again := t.again(req, resp, err, tries, conn, n)
		if !again || !body.again() {
			return resp, err
		}
		if !t.budgets.withdraw(budget) {
			t.counts.retriesDenied.Add(1)
			return resp, err
		}
		next := req.WithContext(inner)
		if !ask(func(*http.Request, *http.Response, error) bool { return body.prepare(next, false) }, req, resp, err) {
			t.budgets.refund(budget)
			return resp, err
		}
		discard(resp)
		if wait > 0 && !sleep(ctx, wait) {
			t.budgets.refund(budget)
			return refuse(next, context.Cause(ctx))
		}
		out = next
		conn.next()
	}
}

// again reports whether and after which wait the next try should be made, as far
// as it does not depend on the body and the budget.
func (t *retry) again(req *http.Request, resp *http.Response, err error, tries *tries, conn *sighting, n int) (time.Duration, bool) {
	if n >= t.tries || req.Context().Err() != nil || err != nil && (refusedByUs(err) || callersEnd(req) != nil) {
		return 0, false
	}
	now := time.Now()
	elsewhere := tries.elsewhere()
	var minimum time.Duration
	asked := false
	if resp != nil {
		minimum, asked = retryAfter(resp.Header, now)
	}
	if t.when != nil {
		if !ask(t.when, req, resp, err) {
			return 0, false
		}
	} else if !worthwhile(req, resp, err, asked, elsewhere, conn) {
		return 0, false
	}
	// A 503 speaks for one endpoint. A 429 speaks about us, wherever we turn.
	if elsewhere && resp != nil && resp.StatusCode != http.StatusTooManyRequests {
		minimum = 0
	}
	if minimum > t.maxRetryAfter {
		return 0, false
	}
	wait := minimum + t.backoff(n)
	if deadline, ok := req.Context().Deadline(); ok && !now.Add(wait).Before(deadline) {
		return 0, false
	}
	if t.shut != nil && ask(func(*http.Request, *http.Response, error) bool { return t.shut(req, wait) }, req, resp, err) {
		return 0, false
	}
	return wait, true
}

// backoff is a random time up to the base doubled with each retry.
func (t *retry) backoff(n int) time.Duration {
	most := min(t.base<<(n-1), t.limit)
	if most <= 0 {
		return 0
	}
	return rand.N(most + 1)
}

func worthwhile(req *http.Request, resp *http.Response, err error, asked, elsewhere bool, conn *sighting) bool {
	if err != nil {
		if malformed(req) || unsent(err) || certain(err) && !elsewhere {
			return false
		}
		return idempotent(req) || notSent(err) || conn.none()
	}
	switch resp.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return idempotent(req)
	case http.StatusTooManyRequests:
		return asked && idempotent(req)
	}
	return false
}

// idempotent reports whether a request may be carried out twice. The header is
// the one of draft-ietf-httpapi-idempotency-key-header; net/http goes by it too.
func idempotent(req *http.Request) bool {
	return safe(req.Method) || req.Method == http.MethodPut || req.Method == http.MethodDelete || req.Header.Get("Idempotency-Key") != ""
}

// safe reports whether a request asks for nothing to be changed (RFC 9110, section 9.2.1).
func safe(method string) bool {
	switch method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

const year = 365 * 24 * time.Hour

// retryAfter reads Retry-After in both its forms (RFC 9110, section 10.2.3). It
// reports false if there is none that makes sense. A date is one of the host's clock, which
// Date tells: ours may be another by more than the wait.
func retryAfter(h http.Header, now time.Time) (time.Duration, bool) {
	v := strings.TrimSpace(h.Get("Retry-After"))
	if v == "" {
		return 0, false
	}
	seconds, err := strconv.ParseUint(v, 10, 64)
	if err == nil {
		return time.Duration(min(seconds, uint64(year/time.Second))) * time.Second, true
	}
	if errors.Is(err, strconv.ErrRange) {
		return year, true
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0, false
	}
	if sent, err := http.ParseTime(h.Get("Date")); err == nil {
		now = sent
	}
	return max(0, min(at.Sub(now), year)), true
}

// sleep waits for d and reports false if ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
