package middleware

import (
	"context"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spillgate/spillgate/breaker"
)

// asksForLong says that a request wants what lasts: a websocket, another protocol, an event stream. If
// it were a probe, the breaker would learn little from it, and late.
func asksForLong(r *http.Request) bool {
	if r.Method == http.MethodConnect { // RFC 8441 upgrades so, in HTTP/2
		return true
	}
	if v := r.Header["Upgrade"]; len(v) != 0 && !strings.EqualFold(v[0], "h2c") { // which Java's client and others offer with each request
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

// outcome is what the request says about its handler. misnamed is what [misnamed] said of its trailer before that ran.
func (h *breakerHandler) outcome(r *http.Request, rec *recorder, finished, misnamed bool) breaker.Outcome {
	if rec.shed != nil {
		return breaker.Ignored
	}
	status := int(rec.status)
	if status == 0 && finished {
		status = http.StatusOK
	}
	err, gone := ending(r, rec, finished)
	if gone {
		return breaker.Ignored
	}
	if h.config.classify != nil {
		return h.config.classify(r, status, err)
	}
	if err != nil {
		return breaker.Failure
	}
	switch {
	case failed(status) && (misnamed || malformed(r)):
		return breaker.Ignored
	case failed(status):
		return breaker.Failure
	case status == http.StatusTooManyRequests:
		return breaker.Ignored // a quota further in says nothing about health
	}
	return breaker.Success
}

// malformed reports whether a request has a method that is none, or a character in its host that none has (RFC 3986, section
// 3.2.2), or in the name of another protocol, or a host that cannot be encoded, or a target such as mailto:a. net/http takes such requests, the first two over
// HTTP/2 alone, and does not send them, nor does ReverseProxy such protocols: it can only fail.
func malformed(r *http.Request) bool {
	notInProtocol := func(c rune) bool { return c < ' ' || c > '~' }
	notInHost := func(c rune) bool { return c <= ' ' || c == 0x7f || strings.ContainsRune("\"#/<>?@\\^`{|}", c) } // other letters are encoded
	sent, err := http.NewRequest(r.Method, "/", nil)                                                              // looks at the method
	if err != nil || r.URL.Opaque != "" || strings.ContainsFunc(r.Host, notInHost) || strings.ContainsFunc(r.Header.Get("Upgrade"), notInProtocol) {
		return true
	}
	sent.Host = r.Host
	return sent.Write(io.Discard) != nil // encodes the host
}

// misnamed reports whether a request announces a trailer by a name that is none, likewise. It is asked before the handler runs: whoever
// still reads the body then may be setting the trailer.
func misnamed(r *http.Request) bool {
	for name := range r.Trailer {
		if _, err := http.NewRequest(name, "/", nil); err != nil || name == "" { // the rules are those for a method
			return true
		}
	}
	return false
}

// failed says that a handler answered that it could not do its work, and not what was wrong with the request.
func failed(status int) bool {
	switch status {
	case http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// headAfter is how much of a body a handler writes before net/http sends the header over HTTP/2, if it does not flush. Before that it is the client that
// has ended the context, and a proxy answers 502 then.
const headAfter = 4 << 10

// ending is what made a request fail whatever its handler answered, nil if nothing did. gone says that its client
// left, or did not send the body that it said it would, so that it says nothing about the handler.
//
// The value of a panic is not looked at: ReverseProxy throws the same http.ErrAbortHandler for a backend that died and
// for a client that left. The context tells the two apart.
func ending(r *http.Request, rec *recorder, finished bool) (err error, gone bool) {
	ctx := r.Context()
	end := ctx.Err()
	switch {
	case end != context.Canceled:
	case r.Method == http.MethodHead && r.ProtoMajor >= 2 && (rec.flushed || rec.bytes >= headAfter) && rec.client != clientGone:
		end = nil // the header is all of the answer: net/http ends the context when it is sent
	case rec.client == clientServed && finished && rec.whole(r):
		end = nil // who has all of the answer may leave, while the handler still has something to do; a proxy panics then
	}
	switch {
	case end == context.Canceled && !writeTimedOut(r, rec):
		return nil, true
	case end == context.Canceled:
		return os.ErrDeadlineExceeded, false
	case end == nil && rec.marks.Load()&badBody != 0:
		return nil, true
	case !finished:
		return ErrPanicked, false
	case end != nil:
		return context.Cause(ctx), false
	}
	return nil, false
}

// whole reports that what was written is all of the answer, of which its client knows how long it is.
func (rec *recorder) whole(r *http.Request) bool {
	if r.Method == http.MethodHead {
		return rec.flushed // its header
	}
	if rec.status == http.StatusNoContent || rec.status == http.StatusNotModified {
		return true
	}
	v := rec.w.Header()["Content-Length"]
	if len(v) != 1 {
		return false
	}
	n, err := strconv.ParseInt(v[0], 10, 64)
	return err == nil && n == rec.bytes
}

// writeTimedOut tells a handler that was too slow from a client that left. Both look the same: a write
// after Server.WriteTimeout fails, and net/http cancels the context as if the client had gone. Of a handler
// with a deadline of its own the time says nothing, and a client that had not taken what was written to it by then made it late itself.
func writeTimedOut(r *http.Request, rec *recorder) bool {
	began := time.Duration(rec.marks.Load()>>untaken) * time.Millisecond
	start := rec.start
	for rec.outer != nil {
		rec = rec.outer // that of the client's request, which may have waited in a cache for another one
	}
	if rec.marks.Load()&ownTime != 0 {
		return false
	}
	srv, ok := r.Context().Value(http.ServerContextKey).(*http.Server)
	if !ok || srv.WriteTimeout <= 0 {
		return false
	}
	if began > 0 && start.Add(began).Sub(rec.start) <= srv.WriteTimeout {
		return false // the handler was in time, and the client did not take what it wrote
	}
	// net/http's clock started when it had read the header, a little before ours.
	const ahead = 20 * time.Millisecond
	return time.Since(rec.start)+min(ahead, srv.WriteTimeout/20) >= srv.WriteTimeout
}

// becameLong reports a request that may last for hours when that begins. What merely flushes,
// or waits for a pool, is judged at its end.
func (h *breakerHandler) becameLong(rec *recorder, x *callHold, k streamKind) {
	if !k.lasts() {
		return
	}
	now := rec.read()
	x.call.DoneAt(h.outcome(x.request, rec, true, false), latency(rec, rec.start.Add(x.begun), now), now)
}
