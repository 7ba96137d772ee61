package main

import (
	"context"
	"errors"
	"net/http"
	"net/http/httputil"
	"time"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/middleware/outbound"
)

// gateway is everything in this example but the listening socket.
type gateway struct {
	replicas  []*replica
	set       *outbound.Set
	transport *outbound.Transport
	handler   http.Handler
}

func newGateway() (*gateway, error) {
	g := &gateway{}
	var endpoints []outbound.Endpoint
	for _, name := range []string{"a", "b", "c"} {
		r, err := newReplica(name)
		if err != nil {
			g.close()
			return nil, err
		}
		g.replicas = append(g.replicas, r)
		endpoints = append(endpoints, outbound.Endpoint{URL: "http://" + r.addr})
	}
	var err error
	// Times are shorter than one would have them, to be watched.
	g.set, err = outbound.NewSet(endpoints,
		outbound.WithEjection(
			breaker.WithOpenTime(time.Second, 5*time.Second),
			breaker.WithRamp(time.Second),
		),
		outbound.WithSlowStart(time.Second),
		outbound.WithProbe(outbound.Probe{Path: "/readyz", Interval: 200 * time.Millisecond, Fall: 1, Rise: 1}),
	)
	if err != nil {
		g.close()
		return nil, err
	}
	g.transport = outbound.New(nil,
		outbound.Balance(g.set),
		outbound.Retry(outbound.WithTries(3)),
		outbound.Timeout(5*time.Second),
	)
	proxy := &httputil.ReverseProxy{
		Transport: g.transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "backend" // the set says where that is
			r.SetXForwarded()
		},
		ErrorHandler: explain,
	}
	g.handler = middleware.Wrap(proxy, middleware.Concurrency(limiter.NewConcurrency(256)))
	return g, nil
}

// explain answers a request for which no replica did, also where the client seems to have left: to write nothing
// would be status 200, and a client that only closes its half of the connection reads on.
func explain(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, outbound.ErrNoEndpoint) { // no replica was asked: to the layers around it is a refusal, and no failure
		(&middleware.Rejection{Layer: "breaker", RetryAfter: time.Second, Err: err}).Write(w, r)
		return
	}
	status := http.StatusBadGateway
	if errors.Is(err, context.DeadlineExceeded) {
		status = http.StatusGatewayTimeout
	}
	http.Error(w, http.StatusText(status), status)
}

func (g *gateway) close() {
	if g.set != nil {
		g.set.Close()
	}
	if g.transport != nil {
		g.transport.CloseIdleConnections()
	}
	for _, r := range g.replicas {
		r.kill()
	}
}
