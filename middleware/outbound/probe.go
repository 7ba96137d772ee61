package outbound

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// A Probe is an active check of the endpoints of a [Set]: at an interval, out of band, it asks each endpoint whether it
// is up. An endpoint counts as up until it has failed often enough. A probe for which this process or its system has no
// file descriptor left, or no port of IPv4, says nothing: connections that are already there go on.
type Probe struct {
	// Path is requested with GET. It must begin with a slash, may have a query, and is appended to the path of the
	// endpoint.
	Path string
	// Interval between probes of an endpoint, spread by a fifth so that clients do not probe in step. Default 10 s.
	Interval time.Duration
	// Timeout of a probe, up to the header of its response. Default 2 s.
	Timeout time.Duration
	// Fall probes in a row must fail for the endpoint to be down; default 3.
	Fall int
	// Rise probes in a row must succeed for it to be up again; default 2.
	Rise int
	// OK judges a response; it must not close the body. The default accepts a status of 200 to 299. A panic in it ends the
	// program, as in any goroutine.
	OK func(*http.Response) bool
	// Transport sends the probes. The default opens a connection for each, so that it detects a server that accepts no
	// more connections. It shares nothing with the transport that requests go by: if that one has certificates or a dialer
	// of its own, give a Transport that has them too, with DisableKeepAlives; otherwise the probes find every endpoint
	// down.
	Transport http.RoundTripper

	path *url.URL // Path
}

func (p Probe) valid() Probe {
	if !strings.HasPrefix(p.Path, "/") {
		panic(fmt.Sprintf("outbound: WithProbe: Path is %q; it must begin with a slash", p.Path))
	}
	path, err := url.ParseRequestURI(p.Path)
	if err != nil {
		panic("outbound: WithProbe: Path is not one of a URL: " + err.Error())
	}
	p.path = path
	if p.Interval < 0 || p.Timeout < 0 || p.Fall < 0 || p.Rise < 0 {
		panic(fmt.Sprintf("outbound: WithProbe: Interval, Timeout, Fall and Rise are %v, %v, %d and %d; give positive ones, or 0 for the default",
			p.Interval, p.Timeout, p.Fall, p.Rise))
	}
	if p.Interval == 0 {
		p.Interval = 10 * time.Second
	}
	p.Interval = min(p.Interval, year)
	if p.Timeout == 0 {
		p.Timeout = 2 * time.Second
	}
	if p.Fall == 0 {
		p.Fall = 3
	}
	if p.Rise == 0 {
		p.Rise = 2
	}
	if p.OK == nil {
		p.OK = func(resp *http.Response) bool { return resp.StatusCode/100 == 2 }
	}
	if p.Transport == nil {
		p.Transport = &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}
	}
	return p
}

// startProbe begins the active check of an endpoint. The caller holds mu.
func (s *Set) startProbe(e *endpoint) {
	if s.probe == nil || s.closed {
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	e.probing = cancel
	s.probing.Go(func() {
		defer cancel()
		s.watchOver(ctx, e)
	})
}

func (s *Set) watchOver(ctx context.Context, e *endpoint) {
	p := s.probe
	row := 0 // results in a row that differ from what is known
	for {
		if up, known := p.ask(ctx, e); ctx.Err() != nil {
			return
		} else if !known {
			// The next one may tell.
		} else if up == !e.down.Load() {
			row = 0
		} else if row++; up && row >= p.Rise {
			row = 0
			s.warmUp(e)
			e.down.Store(false)
		} else if !up && row >= p.Fall {
			row = 0
			e.down.Store(true)
		}
		if !sleep(ctx, time.Duration(float64(p.Interval)*(0.8+0.4*rand.Float64()))) {
			return
		}
	}
}

// ask reports whether an endpoint is up, if that is known: of a probe that this process had no file descriptor for it is not.
func (p *Probe) ask(ctx context.Context, e *endpoint) (up, known bool) {
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	u := *e.url
	u.Path += p.path.Path
	u.RawPath = e.url.EscapedPath() + p.path.EscapedPath()
	u.RawQuery = p.path.RawQuery
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return false, true
	}
	resp, err := p.Transport.RoundTrip(req)
	if err != nil {
		return false, !scarce(err)
	}
	defer discard(resp)
	return p.OK(resp), true
}
