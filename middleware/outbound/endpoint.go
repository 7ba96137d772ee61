package outbound

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spillgate/spillgate/breaker"
)

// An Endpoint is one of the servers that a [Set] sends requests to.
type Endpoint struct {
	// URL has a scheme and a host, with a port unless it is the scheme's default, and perhaps a path that is put in front
	// of the path of each request. It has no user, query or fragment.
	URL string `json:"url"`
	// Weight is the endpoint's share of the work relative to the others, 1 to 1,000,000; zero means 1. To give an endpoint
	// no work, leave it out of the list.
	Weight int `json:"weight,omitempty"`
	// Tier is 0 for endpoints that are used first. Those of the next tier are used when too few of the lower tiers are in
	// service. Tier is at most 1,000.
	Tier int `json:"tier,omitempty"`
}

// parse checks an endpoint and brings its URL into the form by which endpoints
// are told apart.
func (e Endpoint) parse() (Endpoint, *url.URL, error) {
	u, err := url.Parse(e.URL)
	i := strings.LastIndexByte(e.URL, '@') // what is before may hold a password
	switch {
	case err != nil && i >= 0: // and err quotes it
		return e, nil, fmt.Errorf("outbound: endpoint %q: not a URL; only scheme, host and path are allowed", e.URL[i:])
	case err != nil:
		return e, nil, fmt.Errorf("outbound: endpoint %q: %w", e.URL, err)
	case u.Scheme != "http" && u.Scheme != "https":
		return e, nil, fmt.Errorf("outbound: endpoint %q: scheme must be http or https", e.URL[i+1:])
	case u.Host == "" || u.Hostname() == "":
		return e, nil, fmt.Errorf("outbound: endpoint %q: no host", e.URL[i+1:])
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return e, nil, fmt.Errorf("outbound: endpoint %q: only scheme, host and path are allowed", u.Redacted())
	case e.Weight < 0 || e.Weight > 1_000_000:
		return e, nil, fmt.Errorf("outbound: endpoint %q: weight %d; give 1 to 1000000, or 0 for 1", e.URL, e.Weight)
	case e.Tier < 0 || e.Tier > 1000:
		return e, nil, fmt.Errorf("outbound: endpoint %q: tier %d; give 0 to 1000", e.URL, e.Tier)
	}
	if e.Weight == 0 {
		e.Weight = 1
	}
	host, _, _ := strings.Cut(u.Host, "%") // whose name of an interface may be Ethernet or enP4p1s0
	u.Host = strings.ToLower(host) + u.Host[len(host):]
	switch port := u.Port(); {
	case port == "", u.Scheme == "http" && port == "80", u.Scheme == "https" && port == "443":
		u.Host = strings.TrimSuffix(u.Host, ":"+port) // the same endpoint without
	default:
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return e, nil, fmt.Errorf("outbound: endpoint %q: port %s; give 1 to 65535", e.URL, port)
		}
	}
	u.Path, u.RawPath = strings.TrimSuffix(u.Path, "/"), strings.TrimSuffix(u.RawPath, "/")
	e.URL = u.String()
	return e, u, nil
}

// endpoint is what a Set knows of an Endpoint. It lives on through updates as
// long as its URL stays in the list.
type endpoint struct {
	name    string
	url     *url.URL
	seed    uint64 // for rendezvous hashing
	breaker *breaker.Breaker
	probing context.CancelFunc // stops its active check; nil if there is none

	weight   atomic.Int64
	tier     atomic.Int64
	inflight atomic.Int64
	out      atomic.Int64 // when its breaker may let calls in again, as time on the clock of the Set
	warm     atomic.Int64 // when its slow start ends, likewise; 0 for none
	ramp     atomic.Int64 // when the ramp of its breaker ends, as far as that has refused calls there
	down     atomic.Bool  // its active check says so
	mute     mute

	sent, failed atomic.Uint64

	turn float64 // of smooth round robin, guarded by Set.turns
}

func newEndpoint(e Endpoint, u *url.URL, opts []breaker.Option) *endpoint {
	opts = append(opts[:len(opts):len(opts)], breaker.WithName(u.Host))
	n := &endpoint{name: e.URL, url: u, seed: hash(e.URL), breaker: breaker.New(opts...)}
	n.weight.Store(int64(e.Weight))
	n.tier.Store(int64(e.Tier))
	return n
}

// in reports whether the endpoint is in service.
func (e *endpoint) in(at time.Duration) bool {
	return int64(at) >= e.out.Load() && !e.down.Load()
}

// share is the part of its work that an endpoint gets on its slow start.
func (e *endpoint) share(at, slowStart time.Duration) float64 {
	left := time.Duration(e.warm.Load()) - at
	if left <= 0 || slowStart <= 0 {
		return 1
	}
	return max(0.1, 1-float64(left)/float64(slowStart))
}

// rewritten is a request with its URL, in one allocation.
type rewritten struct {
	req http.Request
	url url.URL
}

// address makes a copy of a request that goes to the endpoint.
func (e *endpoint) address(req *http.Request, ownHost bool) *http.Request {
	r := &rewritten{req: *req, url: *req.URL}
	r.req.URL = &r.url
	r.url.Scheme, r.url.Host = e.url.Scheme, e.url.Host
	if e.url.Path != "" {
		if r.url.RawPath != "" || e.url.RawPath != "" {
			r.url.RawPath = e.url.EscapedPath() + rooted(r.url.EscapedPath())
		}
		r.url.Path = e.url.Path + rooted(r.url.Path)
	}
	switch {
	case ownHost:
		r.req.Host = ""
	case req.Host == "": // it is that of the URL then, as when http.Client follows a redirect
		r.req.Host = req.URL.Host
	}
	return &r.req
}

func rooted(path string) string {
	if strings.HasPrefix(path, "/") {
		return path
	}
	return "/" + path
}
