package middleware

import (
	"context"
	"net/http"
	"os"
	"time"

	"github.com/spillgate/spillgate/breaker"
)

// asksForLong says that a request wants what lasts: a websocket, another protocol, an event stream. If
// it were a probe, the breaker would learn little from it, and late.
func asksForLong(r *http.Request) bool {
	if r.Method == http.MethodConnect { // RFC 8441 upgrades so, in HTTP/2
		return true
	}
	if _, ok := r.Header["Upgrade"]; ok {
		return true
	}
	return isEventStreamType(r.Header["Accept"])
}

// latency is the time until the first byte; until now if there was none, and nothing for a request that
// one of ours refused: the time went into our queue.
func latency(rec *recorder, begun, now time.Time) time.Duration {
	if rec.shed != nil {
		return 0
	}
	if rec.hasFirst {
		now = rec.start.Add(rec.firstByte)
	}
	return max(0, now.Sub(begun))
}

// outcome is what the request says about its handler.
func (h *breakerHandler) outcome(r *http.Request, rec *recorder, finished bool, now time.Time) breaker.Outcome {
	if rec.shed != nil {
		return breaker.Ignored
	}
	status := int(rec.status)
	if status == 0 && finished {
		status = http.StatusOK
	}
	// The value of a panic is not looked at: ReverseProxy throws the same http.ErrAbortHandler
	// for a backend that died and for a client that left. The context tells the two apart.
	var err error
	switch r.Context().Err() {
	case nil:
		if !finished {
			err = ErrPanicked
		}
	case context.Canceled:
		if !writeTimedOut(r, rec, now) {
			return breaker.Ignored
		}
		err = os.ErrDeadlineExceeded
	default:
		err = context.Cause(r.Context())
		if !finished {
			err = ErrPanicked
		}
	}
	if h.config.classify != nil {
		return h.config.classify(r, status, err)
	}
	if err != nil {
		return breaker.Failure
	}
	switch status {
	case http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return breaker.Failure
	case http.StatusTooManyRequests:
		return breaker.Ignored // a quota further in says nothing about health
	}
	return breaker.Success
}

// writeTimedOut tells a handler that was too slow from a client that left. Both look the same: a write
// after Server.WriteTimeout fails, and net/http cancels the context as if the client had gone.
func writeTimedOut(r *http.Request, rec *recorder, now time.Time) bool {
	srv, ok := r.Context().Value(http.ServerContextKey).(*http.Server)
	if !ok || srv.WriteTimeout <= 0 {
		return false
	}
	// net/http's clock started when it had read the header, a little before ours.
	const ahead = 20 * time.Millisecond
	return now.Sub(rec.start)+min(ahead, srv.WriteTimeout/20) >= srv.WriteTimeout
}

// becameLong reports a request that may last for hours when that begins. What merely flushes,
// or waits for a pool, is judged at its end.
func (h *breakerHandler) becameLong(rec *recorder, x *callHold, k streamKind) {
	if k != streamEvents && k != streamSwitch {
		return
	}
	now := rec.read()
	x.call.DoneAt(h.outcome(x.request, rec, true, now), latency(rec, rec.start.Add(x.begun), now), now)
}
