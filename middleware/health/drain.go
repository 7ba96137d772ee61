package health

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// A Shutdowner stops taking work and waits for the work it has, until ctx ends.
// [http.Server], pools and job queues are Shutdowners.
type Shutdowner interface {
	Shutdown(ctx context.Context) error
}

// Drain takes the process out of service:
//
//  1. readyz fails and HTTP/1 responses carry "Connection: close";
//  2. the server goes on serving for the drain wait, while proxies notice;
//  3. srv.Shutdown: no new connections, requests in flight end within the
//     shutdown timeout, then what is left is cut with srv.Close;
//  4. each of last is shut down, in the order given, within the release
//     timeout. Requests use pools, so pools outlive requests.
//
// Drain returns when all of this is done. The error joins what went wrong in 3
// and 4; every step is tried whatever the others returned. If ctx ends, the wait
// is over at once and each step has no more time than it needs to begin: srv is
// closed, and each of last is called with an ended context.
//
// If it is possible, use [Health.Run] or [Health.Serve], which also save requests
// that arrive at the very moment of step 3. A nil srv skips it; Drain panics if
// one of last is nil. Hijacked connections are not the server's any more: stop
// them with [http.Server.RegisterOnShutdown]. The process can not be made ready
// again.
func (h *Health) Drain(ctx context.Context, srv *http.Server, last ...Shutdowner) error {
	checkLast("Drain", last)
	h.beginDrain()
	h.awaitProxies(ctx)
	return h.stopAll(ctx, srv, last)
}

// checkLast panics before anything is served or drained, and not amid the release.
func checkLast(method string, last []Shutdowner) {
	for i, s := range last {
		if s == nil {
			panic(fmt.Sprintf("health: %s: last[%d] is nil; leave it out", method, i))
		}
	}
}

func (h *Health) beginDrain() {
	if h.draining.CompareAndSwap(false, true) {
		close(h.leaving)
	}
}

// awaitProxies returns after the drain wait, or once no request has arrived for
// the idle time, or when ctx ends.
func (h *Health) awaitProxies(ctx context.Context) {
	over := time.After(h.wait)
	quiet := time.NewTimer(h.idle)
	if h.idle == 0 {
		quiet.C = nil
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-over:
			return
		case <-quiet.C:
			since := time.Since(h.born) - time.Duration(h.arrived.Load())
			if since >= h.idle {
				return
			}
			quiet.Reset(h.idle - since)
		}
	}
}

func (h *Health) stopAll(ctx context.Context, srv *http.Server, last []Shutdowner) error {
	var errs []error
	if srv != nil {
		timed, cancel := context.WithTimeout(ctx, h.shutdown)
		if err := srv.Shutdown(timed); err != nil {
			errs = append(errs, fmt.Errorf("health: requests still running after the shutdown timeout were cut: %w", err))
			srv.Close()
		}
		cancel()
	}
	timed, cancel := context.WithTimeout(ctx, h.release)
	defer cancel()
	for _, s := range last {
		if err := s.Shutdown(timed); err != nil {
			errs = append(errs, fmt.Errorf("health: shutting down %T: %w", s, err))
		}
	}
	return errors.Join(errs...)
}
