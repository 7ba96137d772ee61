// Package health tells a load balancer when to send work to this process, and takes the process out of service
// without failing a request.
//
// Three questions have three answers. Livez: is the process beyond saving, and should it be restarted? Startupz: has
// it finished starting? Readyz: should new requests come here now? [Health.Handler] serves them at /livez, /startupz
// and /readyz, in front of every limiter, so that a full server is not mistaken for a dead one.
//
// # What readiness should follow
//
// A process is ready when it has started, is not draining, and the checks given with [WithCheck] pass. Such a check
// should look at this process only: a warm-up that is not finished, a disk that is full, a queue of its own that
// cannot take more.
//
// Readiness does not follow a circuit breaker or a dependency that all replicas share, and checks should not make it
// do so. When that dependency fails, it fails for all replicas in the same second, and all of them would report not
// ready. Kubernetes then sends nothing to any of them, not even the requests that never needed the dependency or that
// a cache or a fallback could have answered. AWS ALB and Envoy decide that all of them cannot be down, and send to
// all. Neither helps. An open breaker answers 503 with Retry-After, which a proxy can be told to retry elsewhere;
// that is the right place.
//
// # Leaving
//
// [Health.Drain] and [Health.Run] leave in the order that proxies need: readiness first, then a wait in which the
// server goes on serving while the proxies notice, then [http.Server.Shutdown], then everything that requests were
// using. A server that calls Shutdown first refuses connections while the proxy still sends them.
package health

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Health holds the state of one process: started, ready, draining. Make one
// with [New]; the zero value is not usable. It is safe for concurrent use.
//
// A Health with checks runs a goroutine for each of them until [Health.Close],
// which [Health.Run] calls.
type Health struct {
	config

	manual   atomic.Bool   // start awaits Started
	draining atomic.Bool   // set once, by beginDrain
	leaving  chan struct{} // closed with it
	arrived  atomic.Int64  // time of the last request since draining began, as nanoseconds since born
	born     time.Time

	ready, live []*checker
	stop        context.CancelFunc
	running     sync.WaitGroup
}

// New returns a Health and starts its checks. It panics if an option holds a
// value that cannot work.
func New(opts ...Option) *Health {
	h := &Health{config: defaultConfig(), born: time.Now(), leaving: make(chan struct{})}
	for i, o := range opts {
		if o == nil {
			panic(fmt.Sprintf("health: New: option %d is nil; leave it out", i))
		}
		o.apply(&h.config)
	}
	h.manual.Store(h.manualStart)
	ctx, stop := context.WithCancel(context.Background())
	h.stop = stop
	h.ready = h.start(ctx, h.readyChecks)
	h.live = h.start(ctx, h.liveChecks)
	return h
}

func (h *Health) start(ctx context.Context, checks []Check) []*checker {
	var started []*checker
	for _, c := range checks {
		k := &checker{Check: c}
		started = append(started, k)
		h.running.Go(func() { k.loop(ctx) })
	}
	return started
}

// Close stops the checks; their last results stay. It does not wait for a check
// that ignores its context. Close may be called more than once.
func (h *Health) Close() {
	h.stop()
	h.running.Wait()
}

// Started declares that start-up is over. It matters only with [WithManualStart].
func (h *Health) Started() { h.manual.Store(false) }

// Draining returns a channel that is closed when [Health.Drain] begins. Handlers of long responses (event streams,
// long polls, websockets) should end them then: Shutdown would wait for them until its timeout. Requests that wait
// for a background job end with the job; [github.com/spillgate/spillgate/middleware.Async] says how to end the job in
// time.
func (h *Health) Draining() <-chan struct{} { return h.leaving }

// started reports whether start-up is over: Started was called if it had to be,
// and each readiness check has passed once.
func (h *Health) started() bool {
	if h.manual.Load() {
		return false
	}
	for _, c := range h.ready {
		if !c.passedOnce.Load() {
			return false
		}
	}
	return true
}

// Ready reports whether the process wants new requests now.
func (h *Health) Ready() bool {
	return !h.draining.Load() && h.started() && passing(h.ready)
}

// Stats is the state of a Health at one moment.
type Stats struct {
	Started  bool         `json:"started"`
	Ready    bool         `json:"ready"`
	Live     bool         `json:"live"`
	Draining bool         `json:"draining"`
	Checks   []CheckStats `json:"checks,omitempty"`
}

// Stats returns the current state. Unlike the probes, it holds the error texts of checks: they can name hosts and
// users, so do not publish them.
func (h *Health) Stats() Stats {
	s := Stats{
		Started:  h.started(),
		Ready:    h.Ready(),
		Live:     passing(h.live),
		Draining: h.draining.Load(),
	}
	for _, c := range h.ready {
		s.Checks = append(s.Checks, c.stats(false))
	}
	for _, c := range h.live {
		s.Checks = append(s.Checks, c.stats(true))
	}
	return s
}

// Handler serves the three probes at their paths and passes every other request to next. Put it outermost, in front
// of limiters. A nil next means [http.DefaultServeMux].
//
// Once draining has begun, each HTTP/1 response carries "Connection: close", so that a proxy's kept connections end
// one by one, each after a response and none under a request. HTTP/2 needs no header: Shutdown sends GOAWAY. That
// tells clients which of the requests then on their way were not carried out, and may be sent again; the client of
// net/http sends those again whose body it has ([http.Request.GetBody]). Until draining begins, the cost is one
// atomic load.
func (h *Health) Handler(next http.Handler) http.Handler {
	if next == nil {
		next = http.DefaultServeMux
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "": // of CONNECT, or of a URL that is only a host; a probe that is off has no path either
		case h.livePath:
			h.Livez(w, r)
			return
		case h.readyPath:
			h.Readyz(w, r)
			return
		case h.startPath:
			h.Startupz(w, r)
			return
		}
		if h.draining.Load() {
			h.arrived.Store(int64(time.Since(h.born)))
			if r.ProtoMajor == 1 && !upgrades(r) {
				w.Header().Set("Connection", "close")
			}
		}
		next.ServeHTTP(w, r)
	})
}

// upgrades reports whether the answer to r may be an upgrade, which has a
// Connection header of its own. That to h2c is offered with each request by some
// clients, and who takes it up writes to the connection.
func upgrades(r *http.Request) bool {
	u := r.Header.Get("Upgrade")
	return u != "" && !strings.EqualFold(u, "h2c")
}
