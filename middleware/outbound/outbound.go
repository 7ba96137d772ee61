// Package outbound protects the calls that a server makes with the same protections as the calls it receives, as an
// [http.RoundTripper].
//
// [New] puts layers around a transport in the right order, whatever order they were given in; outermost first:
//
//	retry > hedge > balance > limit > breaker > timeout > base
//
// or, as an equation, with the ones that were given:
//
//	Retry(Hedge(Balance(Limit(Breaker(Timeout(base))))))
//
// The reasons:
//
//   - retry and hedge are outermost: each try is balanced, limited, judged and timed by itself.
//   - balance chooses the endpoint of a try; limits and breakers go by endpoint. Its endpoints have breakers of their
//     own, so [Balance] and [Breaker] exclude each other.
//   - limit outside breaker: a try that we hold back ourselves is no failure of a host.
//   - timeout inside breaker: a try that we gave up on is a failure.
//
// The result is for [http.Client.Transport] and for [net/http/httputil.ReverseProxy.Transport]. No layer changes the
// request it was given, makes up a response, or reads a response further than it must. Errors that a caller can branch
// on are [ErrNoEndpoint], [*TimeoutError], [*github.com/spillgate/spillgate/breaker.OpenError] and those of package
// limiter; [http.Client] wraps them in a [*net/url.Error], so use [errors.As].
//
// Constructors of layers, options and sets panic at a number or time that they cannot work with, and if a function, a
// limiter or an option is nil. Only the list of endpoints, which may come from outside, is checked with an error.
package outbound

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// A Layer is one protection around outgoing calls. Layers are values; make them with [Retry], [Hedge], [Balance],
// [Limit], [Breaker] and [Timeout], and put them together with [New]. The zero value is not usable. One Layer may be
// given to several transports, which then share what it counts and limits.
type Layer struct {
	place place
	share func(*composition)
	wrap  func(http.RoundTripper, *composition) http.RoundTripper
}

// place is where a layer stands, outermost first.
type place int

const (
	placeRetry place = iota + 1
	placeHedge
	placeBalance
	placeLimit
	placeBreaker
	placeTimeout
)

var placeNames = map[place]string{
	placeRetry: "Retry", placeHedge: "Hedge", placeBalance: "Balance",
	placeLimit: "Limit", placeBreaker: "Breaker", placeTimeout: "Timeout",
}

// A composition is what the layers of one transport know of each other.
type composition struct {
	counts  *counts
	shared  bool     // connections are: the base speaks HTTP/2 alone
	budgets *budgets // of Retry, for Hedge
	limits  *limits  // of Limit, for Balance, which applies them to the endpoint chosen
	// shut is of Breaker or Balance, for Retry: it reports whether they will still refuse a request after a wait. nil for none.
	shut func(*http.Request, time.Duration) bool
}

// RoundTripper puts only this layer around next, as [New] does with one layer. It is for callers who need an order of
// their own. Layers that were put on one by one do not share a retry budget.
func (l Layer) RoundTripper(next http.RoundTripper) http.RoundTripper { return New(next, l) }

// Transport is a base transport with layers around it, made by [New]. It is safe
// for concurrent use.
type Transport struct {
	base   http.RoundTripper
	outer  http.RoundTripper
	counts counts
}

// New puts layers around base in the order that the package comment gives. Without layers it uses [Defaults].
//
// If base is nil, New uses a copy of [http.DefaultTransport] that keeps up to 64 idle connections to a host instead of
// 2: with two, a busy client opens a connection for nearly every request.
//
// It panics if a layer is given twice, or if both [Balance] and [Breaker] are given.
func New(base http.RoundTripper, layers ...Layer) *Transport {
	if base == nil {
		base = newBase()
	}
	if len(layers) == 0 {
		layers = Defaults()
	}
	layers = slices.Clone(layers)
	slices.SortStableFunc(layers, func(a, b Layer) int { return int(b.place - a.place) })
	t := &Transport{base: base, outer: base}
	c := &composition{counts: &t.counts, shared: sharesOnly(base)}
	given := map[place]bool{}
	for _, l := range layers {
		if l.wrap == nil {
			panic("outbound: New: a zero Layer; make layers with Retry, Breaker, …")
		}
		if given[l.place] {
			panic("outbound: New: " + placeNames[l.place] + " is given twice; give it once, with all its options")
		}
		given[l.place] = true
		if l.share != nil {
			l.share(c)
		}
	}
	if given[placeBalance] && given[placeBreaker] {
		panic("outbound: New: Balance has a breaker for each endpoint (WithEjection); give Balance or Breaker, not both")
	}
	for _, l := range layers { // innermost first
		if l.place == placeLimit && given[placeBalance] {
			continue // applied by Balance
		}
		t.outer = l.wrap(t.outer, c)
	}
	return t
}

// sharesOnly reports whether base is known to have no connections but of HTTP/2, also without TLS.
func sharesOnly(base http.RoundTripper) bool {
	switch t := base.(type) {
	case *Transport:
		return sharesOnly(t.base)
	case *http.Transport:
		return t.Protocols != nil && !t.Protocols.HTTP1() && (t.Protocols.HTTP2() || t.Protocols.UnencryptedHTTP2())
	}
	return false
}

// nilOption is the text of a panic.
func nilOption(of string, i int) string {
	return fmt.Sprintf("outbound: %s: option %d is nil; leave it out", of, i)
}

// Defaults returns the layers that [New] uses when it is given none: [Retry] and [Breaker] with their defaults. They
// include no timeout, since only the caller knows how long a call may take.
func Defaults() []Layer { return []Layer{Retry(), Breaker(nil)} }

func newBase() http.RoundTripper {
	t, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return http.DefaultTransport
	}
	t = t.Clone()
	t.MaxIdleConnsPerHost = 64
	t.MaxIdleConns = 1024
	return t
}

var errHollow = errors.New("outbound: RoundTrip: the request has no URL or no Header; make it with http.NewRequestWithContext")

// RoundTrip sends one request through the layers. Response.Request is req, and not what a layer made of it: it has the
// caller's URL and the caller's context, since the contexts of the layers end with the response. A request without a
// URL or without a Header, which [http.NewRequest] never makes, is an error, and no layer sees it.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL == nil || req.Header == nil {
		return refuse(req, errHollow)
	}
	resp, err := t.outer.RoundTrip(req)
	if err == nil && resp.Request != nil {
		resp.Request = req
	}
	return resp, err
}

// CloseIdleConnections closes the idle connections of the base transport, if that can do so.
func (t *Transport) CloseIdleConnections() {
	if c, ok := t.base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}
