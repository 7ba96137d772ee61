package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Run listens on srv.Addr, serves until SIGTERM, SIGINT or the end of ctx, and then leaves as [Health.Drain] does. It
// puts [Health.Handler] around srv.Handler, so srv needs nothing else. It serves TLS if srv.TLSConfig has
// certificates.
//
// SIGTERM comes from an orchestrator, which has proxies in front: the drain is run in full, as it is when ctx ends.
// SIGINT comes from a terminal, where nobody wants to wait for a proxy: the drain wait is skipped. From then on a
// signal ends the process at once, unless something else catches it, as the ctx of [signal.NotifyContext] does until
// its stop function is called.
//
// Run returns nil after a clean drain. If it cannot listen, it returns an error at once; if serving fails, it returns
// an error after it has shut down the rest. The checks of h are stopped when it returns. It panics if srv or one of
// last is nil.
func (h *Health) Run(ctx context.Context, srv *http.Server, last ...Shutdowner) error {
	checkServer("Run", srv)
	addr := srv.Addr
	if addr == "" {
		addr = ":http"
		if secure(srv) {
			addr = ":https"
		}
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		h.Close()
		return fmt.Errorf("health: cannot listen: %w", err)
	}
	return h.Serve(ctx, l, srv, last...)
}

// checkServer panics on the caller's goroutine, and not on that which serves.
func checkServer(method string, srv *http.Server) {
	if srv == nil {
		panic("health: " + method + ": srv is nil; give the server to run")
	}
}

// Serve is [Health.Run] on a listener that is already open. If other processes have its socket too,
// [WithSharedListener] is needed.
//
// Both do more than [Health.Drain] can do for a server that is served by others. Before Shutdown they stop listening,
// answer what the system had accepted in our name until then (on Linux, if l is as net.Listen returned it), and let
// requests that were just read reach their handler. Shutdown alone drops such requests without an answer, and a proxy
// must not send them again if they are POSTs.
//
// It panics if l, srv or one of last is nil.
func (h *Health) Serve(ctx context.Context, l net.Listener, srv *http.Server, last ...Shutdowner) error {
	checkServer("Serve", srv)
	if l == nil {
		panic("health: Serve: l is nil; give what net.Listen returned, if that was no error")
	}
	checkLast("Serve", last)
	defer h.Close()
	srv.Handler = h.Handler(srv.Handler)
	conns := &connections{}
	conns.follow(srv, h)
	listener := newListener(l)
	listener.shared = h.shared

	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	defer signal.Stop(signals)

	served := make(chan error, 1)
	go func() {
		if secure(srv) {
			served <- srv.ServeTLS(listener, "", "")
			return
		}
		served <- srv.Serve(listener)
	}()

	var got os.Signal
	select {
	case err := <-served:
		// Shutdown or Close called by someone else is their drain, not a failure.
		// What the requests used is still to be released.
		signal.Stop(signals)
		h.beginDrain()
		if errors.Is(err, http.ErrServerClosed) {
			err = nil
		}
		return errors.Join(err, h.stopAll(context.WithoutCancel(ctx), srv, last))
	case got = <-signals:
	case <-ctx.Done():
	}
	signal.Stop(signals) // the next one has its default effect
	if got == nil {
		// A context of signal.NotifyContext ends by the same signal.
		select {
		case got = <-signals:
		default:
		}
	}
	h.beginDrain()
	// That ctx has ended, or does now, is the request to leave, not to hurry.
	ctx = context.WithoutCancel(ctx)
	if got != os.Interrupt {
		h.awaitProxies(ctx)
	}
	over := time.After(time.Second) // for both
	listener.stop()
	conns.settle(listener, over)
	return h.stopAll(ctx, srv, last)
}

func secure(srv *http.Server) bool {
	c := srv.TLSConfig
	return c != nil && (len(c.Certificates) > 0 || c.GetCertificate != nil || c.GetConfigForClient != nil)
}
