package outbound

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spillgate/spillgate/breaker"
)

// Breaker stops calling hosts that fail. Each host, as the URL gives it with its port, has a breaker of its own in g; a
// nil g is a new [breaker.Group] with its defaults. The scheme is not part of the key: to give http and https without a
// port one breaker each, use [WithKey].
//
// A try is judged when the header of its response has come. 500, 502, 503, 504 and transport errors are failures. 429,
// and 503 with Retry-After, say nothing about the host, which may do all that it can while it refuses the excess. Every
// other response is a success; it becomes a failure if its body breaks off, but not if the caller closes it early.
//
// A try also says nothing about the host if:
//
//   - its caller cancels;
//   - its request body cannot be read to its end, or is not as long as its ContentLength, as when a Request is used
//     again;
//   - net/http does not send its request, for example because of a line break in a header value;
//   - it was waiting for its request body when its time was over (such waits do not count in what a try took, nor
//     towards its being overdue);
//   - this process or its system has no file descriptor left for it, or no port of IPv4 (where a name is looked up,
//     that may look like a name that does not exist);
//   - its deadline passes before it has taken as long as a slow call (see [breaker.WithSlowCalls]; without that option,
//     every try whose deadline passes is a failure).
//
// If a host was given up because it did not answer, one of the tries that probe it asks that its connection not be used
// again ([http.Request.Close]). An HTTP/2 connection can die unnoticed, for example because something on the way has
// forgotten it. Each probe would otherwise take such a connection for as long as the system sends again what is lost
// there, which can be a quarter of an hour. Without a breaker, [http.HTTP2Config.SendPingTimeout] of the base finds
// that out. Over HTTP/1.1 there may be many such connections: the tries that probe the host close the idle ones that
// they get and use a new one, unless their body cannot be had again. If a base that is not an [http.Transport] speaks
// HTTP/2 without TLS, such a try closes its connection, and fails.
//
// A breaker here has one client. With [breaker.WithMinClients] above 1 it would never open, so Breaker panics, as
// [NewSet] does.
//
// A server that answers its own requests through such calls may have a breaker around its handler. It tells that
// breaker about the refusals of this one by a Rejection of package middleware, as shown there. Any 5xx would instead
// open the outer breaker for what this one refuses.
//
// The group g knows which hosts are given up, and how often they were: packages prommw and otelmw show how to export
// it.
//
// While the breaker is open, the error is a [*breaker.OpenError] with the host and RetryAfter; no response is made up.
func Breaker(g *breaker.Group, opts ...BreakerOption) Layer {
	if g == nil {
		g = breaker.NewGroup()
	}
	oneClient("Breaker", g.Settings())
	cfg := breakerConfig{key: hostOf, spared: true}
	for i, o := range opts {
		if o == nil {
			panic(nilOption("Breaker", i))
		}
		o.applyBreaker(&cfg)
	}
	return Layer{
		place: placeBreaker,
		share: func(c *composition) {
			c.shut = func(req *http.Request, wait time.Duration) bool { return shut(g.Get(cfg.key(req)), wait) }
		},
		wrap: func(next http.RoundTripper, c *composition) http.RoundTripper {
			return &breaking{breakerConfig: cfg, group: g, next: next, counts: c.counts, clock: newClock(), shared: c.shared, mute: newHosts(func() *mute { return new(mute) })}
		},
	}
}

// A BreakerOption configures [Breaker].
type BreakerOption interface{ applyBreaker(*breakerConfig) }

type breakerConfig struct {
	key     func(*http.Request) string
	spared  bool // a host that refuses what is too much
	outcome func(*http.Request, *http.Response, error) breaker.Outcome
}

// WithKey sets the key by which [Breaker], [Limit], [Retry] and [Hedge] keep state, in place of the host; for example
// the host and the first part of the path, if they lead to different services. Keys are kept in bounded memory.
func WithKey(key func(*http.Request) string) KeyOption {
	if key == nil {
		panic("outbound: WithKey: nil; leave the option out to go by host")
	}
	return KeyOption{key}
}

// A KeyOption is an option of several layers; see [WithKey]. The zero value stands for the host.
type KeyOption struct{ key func(*http.Request) string }

func (o KeyOption) applyBreaker(c *breakerConfig) { c.key = o.orHost() }
func (o KeyOption) applyLimit(c *limitConfig)     { c.key = o.orHost() }
func (o KeyOption) applyRetry(c *retryConfig)     { c.key = o.orHost() }
func (o KeyOption) applyHedge(c *hedgeConfig)     { c.key = o.orHost() }

func (o KeyOption) orHost() func(*http.Request) string {
	if o.key == nil {
		return hostOf
	}
	return o.key
}

// WithOutcome replaces the rules by which [Breaker] and [Balance] judge a try.
// f is called with the response or the error; it must not read or close the body.
func WithOutcome(f func(*http.Request, *http.Response, error) breaker.Outcome) OutcomeOption {
	if f == nil {
		panic("outbound: WithOutcome: nil; leave the option out for the usual rules")
	}
	return OutcomeOption{f}
}

// An OutcomeOption is an option of [Breaker] and [NewSet]; see [WithOutcome]. The zero value stands for the usual rules.
type OutcomeOption struct {
	outcome func(*http.Request, *http.Response, error) breaker.Outcome
}

func (o OutcomeOption) applyBreaker(c *breakerConfig) { c.outcome = o.outcome }
func (o OutcomeOption) applySet(c *setConfig)         { c.outcome = o.outcome }

// oneClient panics where a breaker would wait for the failures of several clients: to a host all calls are of one, which is us.
func oneClient(where string, s breaker.Settings) {
	if s.MinClients > 1 {
		panic(fmt.Sprintf("outbound: %s: breaker.WithMinClients(%d) would keep the breaker closed whatever fails, as all calls are ours; leave it out", where, s.MinClients))
	}
}

// shut reports whether b will still refuse whatever comes after wait.
func shut(b *breaker.Breaker, wait time.Duration) bool {
	switch b.State() {
	case breaker.ForcedOpen:
		return true
	case breaker.Open:
		return b.RetryAfter() > wait && !inShadow(b)
	}
	return false
}

// inShadow says that b refuses nothing in the state that it is in.
func inShadow(b *breaker.Breaker) bool {
	return b.State() != breaker.ForcedOpen && b.Settings().Shadow
}

// admit asks b. A hedge is no probe: where b is open or half-open it is refused, or in shadow passes uncounted.
func admit(b *breaker.Breaker, r breaker.Request, hedge bool) (breaker.Call, error) {
	if hedge {
		switch b.State() {
		case breaker.HalfOpen, breaker.Open, breaker.ForcedOpen:
			if inShadow(b) {
				return breaker.Call{}, nil
			}
			return breaker.Call{}, breaker.ErrOpen
		}
	}
	return b.Admit(r)
}

// asksForLong says that a request wants a connection that lasts, and not the offer of HTTP/2 that Java's client and others make with each and a reverse proxy hands on.
func asksForLong(req *http.Request) bool {
	v := req.Header["Upgrade"]
	return len(v) != 0 && !strings.EqualFold(v[0], "h2c")
}

type breaking struct {
	breakerConfig
	group  *breaker.Group
	next   http.RoundTripper
	counts *counts
	clock  clock
	shared bool // connections are: see composition
	mute   *hosts[*mute]
}

func (t *breaking) RoundTrip(req *http.Request) (*http.Response, error) {
	key := t.key(req)
	b := t.group.Get(key)
	hedge := isHedge(req.Context())
	began := t.clock.now()
	call, err := admit(b, breaker.Request{Arrived: began, Long: asksForLong(req)}, hedge)
	if err != nil {
		if !hedge { // one is held back on the ramp, too
			t.counts.open.Add(1)
		}
		return refuse(req, err)
	}
	passing := b.Passing()
	if !passing { // a function of the user's may have been told of a change
		began = t.clock.now()
	}
	out, up := req, uploading(req, t.clock, call, !passing)
	returned, lost := false, breaker.Failure
	defer func() {
		if !returned { // a panic, which travels on
			up.ended(call).Done(lost, -1)
		}
	}()
	if up != nil {
		out = req.WithContext(req.Context())
		out.Body = up
	}
	probe := !passing && call != (breaker.Call{})
	if probe {
		out = t.mute.get(key).probe(out, t.shared)
	}
	resp, err := t.next.RoundTrip(out)
	now := t.clock.now()
	lost = breaker.Ignored // a panic is one of WithOutcome now
	o, took := t.judge(req, resp, err, up, now.Sub(began), b)
	if o != breaker.Success || probe {
		t.mute.get(key).note(err)
	}
	call = up.ended(call)
	returned = true
	report(call, o, took, now, resp)
	if err == nil && o == breaker.Success {
		watch(resp, judged{call, req, up})
	}
	return resp, err
}

// judge says what a try that took so long means for its host, whose breaker is b, and how much of that time was the host's.
func (c *breakerConfig) judge(req *http.Request, resp *http.Response, err error, up *upload, took time.Duration, b *breaker.Breaker) (o breaker.Outcome, own time.Duration) {
	own = max(0, took-up.wait())
	switch {
	case up.broke(err):
		return breaker.Ignored, own
	case c.outcome != nil:
		return ask(c.outcome, req, resp, err), own
	case c.spared && err == nil && tooMuch(resp):
		return breaker.Ignored, own
	case late(req, err, took, own):
		return breaker.Ignored, own
	}
	return outcome(req, resp, err, own, b), own
}

// tooMuch reports whether a response says that the host can not take the request now, and lives.
func tooMuch(resp *http.Response) bool {
	return resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != ""
}

// A mute host is one whose last try that was no success had no answer, and that has answered no probe since.
type mute struct{ silent, last atomic.Bool } // last: the next probe is to be the last on its connection

func (m *mute) note(err error) {
	m.silent.Store(err != nil)
	m.last.Store(err != nil)
}

// probe returns the request to send as a probe in place of out, by a connection that is not dead if it can. shared says that
// connections are.
func (m *mute) probe(out *http.Request, shared bool) *http.Request {
	if !m.silent.Load() {
		return out
	}
	ctx := out.Context()
	if !shared && (out.Body == nil || out.Body == http.NoBody || out.GetBody != nil) { // which net/http can send again
		ctx = unused(ctx)
	}
	out = out.WithContext(ctx)
	if out.Header["Upgrade"] == nil && m.last.Swap(false) {
		out.Close = true
	}
	return out
}

// unused returns a context for a try by a connection that nothing has been sent by: each that was idle is closed when the try has it, so that net/http takes
// another. Of one that others use, as over HTTP/2, nothing is known, and
// net/http takes no other for it: without TLS that protocol does not show here.
func unused(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		if secure, ok := got.Conn.(*tls.Conn); ok && secure.ConnectionState().NegotiatedProtocol == "h2" {
			return
		}
		if got.Reused && got.WasIdle {
			got.Conn.Close()
		}
	}})
}

// judged makes a success a failure if its body breaks off.
type judged struct {
	call breaker.Call
	req  *http.Request
	up   *upload
}

func (j judged) ended(err error) {
	if err != nil && callersEnd(j.req) == nil && !j.up.spoiled(err) {
		j.call.Fail()
	}
}
