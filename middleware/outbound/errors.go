package outbound

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/limiter"
)

// ErrNoEndpoint says that a [Set] has no endpoint to send a request to.
var ErrNoEndpoint = errors.New("outbound: no endpoint")

// TimeoutError says that [Timeout] gave up a try. The request may have been carried out. errors.Is(err,
// context.DeadlineExceeded) holds, and the method Timeout returns true, as for other time-outs of net/http.
type TimeoutError struct {
	// Host is the host that the try went to.
	Host string
	// After is the limit that was exceeded.
	After time.Duration
	// Stalled says that the response had begun and its body stopped coming.
	Stalled bool
}

// Error names the host and the limit.
func (e *TimeoutError) Error() string {
	if e.Stalled {
		return "outbound: response of " + e.Host + " stalled for " + e.After.String()
	}
	return "outbound: no response of " + e.Host + " within " + e.After.String()
}

// Timeout returns true; it makes the error a [net.Error].
func (e *TimeoutError) Timeout() bool { return true }

// Temporary returns true; it makes the error a [net.Error].
func (e *TimeoutError) Temporary() bool { return true }

// Is reports whether target is [context.DeadlineExceeded].
func (e *TimeoutError) Is(target error) bool { return target == context.DeadlineExceeded }

// outcome is what a try says about its host, whose breaker is b.
func outcome(req *http.Request, resp *http.Response, err error, took time.Duration, b *breaker.Breaker) breaker.Outcome {
	if err == nil {
		switch resp.StatusCode {
		case http.StatusInternalServerError, http.StatusBadGateway,
			http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return breaker.Failure
		case http.StatusTooManyRequests:
			return breaker.Ignored // it says something about us
		}
		return breaker.Success
	}
	switch callersEnd(req) {
	case context.Canceled:
		return breaker.Ignored
	case context.DeadlineExceeded:
		// A caller in a hurry says nothing about the host.
		if took < b.Settings().SlowCall {
			return breaker.Ignored
		}
		return breaker.Failure
	}
	if refusedByUs(err) || malformed(req) || unsent(err) || readBefore(err) || scarce(err) {
		return breaker.Ignored
	}
	return breaker.Failure
}

// callersEnd is how the caller has ended a request: [context.Canceled],
// [context.DeadlineExceeded], or nil. [http.Client] has two timers for its Timeout,
// and cancels the request by the other one before the context says so.
func callersEnd(req *http.Request) error {
	ctx := req.Context()
	if err := ctx.Err(); err != nil {
		return err
	}
	if deadline, ok := ctx.Deadline(); ok && !time.Now().Before(deadline) {
		return context.DeadlineExceeded
	}
	return nil
}

// refusedByUs reports whether a try was never made.
func refusedByUs(err error) bool {
	return errors.Is(err, breaker.ErrOpen) || errors.Is(err, ErrNoEndpoint) ||
		errors.Is(err, limiter.ErrRateLimited) || errors.Is(err, limiter.ErrSaturated) ||
		errors.Is(err, limiter.ErrWouldMissDeadline) || errors.Is(err, limiter.ErrStoreFailed)
}

// malformed reports whether net/http refuses to send a request, for a control character in its
// header or URL, a method or field name that is none, a host that is none or cannot be encoded, or a body that is not as long as it says. Its errors have no type to
// tell that by, and over HTTP/1 there may be another one: it closes the connection to which it could write nothing, and its reader may be
// the first to say so.
func malformed(req *http.Request) bool {
	if strings.ContainsFunc(req.Method, notToken) || misfit(req) {
		return true
	}
	for name, values := range req.Header {
		if name == "" || strings.ContainsFunc(name, notToken) {
			return true
		}
		for _, v := range values {
			if strings.ContainsFunc(v, func(c rune) bool { return isControl(c) && c != '\t' }) {
				return true
			}
		}
	}
	if strings.ContainsFunc(req.URL.RequestURI(), isControl) {
		return true
	}
	bare := http.Request{URL: req.URL, Host: req.Host}
	return bare.WriteProxy(io.Discard) != nil // which also refuses a host that net/http, without a proxy, sends as none
}

// misfit reports whether a request has a ContentLength and no body, or one from memory of another length. Any other is watched
// while it is read (see upload).
func misfit(req *http.Request) bool {
	switch {
	case req.ContentLength == 0:
		return false
	case req.Body == nil:
		return true
	case req.ContentLength < 0 || req.GetBody == nil || !fromMemory(req.Body):
		return false
	}
	body, err := req.GetBody()
	if err != nil {
		return false
	}
	defer body.Close()
	n, err := io.Copy(io.Discard, body)
	return err == nil && n != req.ContentLength
}

// unsentTexts are how the errors begin by which net/http and quic-go refuse what malformed does not see: what HTTP/2 or a proxy
// has no place for or its server would not take, a scheme that it does not speak, a host that cannot be encoded, and none. They have no type either. Of
// a malformed trailer they tell as well: whoever still reads the body may be setting the trailer.
var unsentTexts = [...]string{
	"net/http: invalid trailer", "invalid HTTP trailer",
	"invalid Upgrade request header", "invalid Connection request header", "invalid Transfer-Encoding request header",
	"invalid Host header", "http: invalid Host header", "invalid request :path", "request header list larger than peer's advertised limit", "unsupported protocol scheme",
	"idna: ", "http: no Host in request URL",
	"server didn't enable Extended CONNECT", "no Host in request URL", "nil Request.Header", // of quic-go
}

// unsent reports whether err is such an error.
func unsent(err error) bool {
	text := strings.TrimPrefix(strings.TrimPrefix(textOf(err), "http2: "), "http3: ")
	for _, begin := range unsentTexts {
		if strings.HasPrefix(text, begin) {
			return true
		}
	}
	return false
}

// readBefore reports whether err says that a body from memory was shorter than the one it was made with, as where a Request is
// used again whose body has been read. Another try, which has it from GetBody, may well succeed.
func readBefore(err error) bool {
	text := strings.TrimPrefix(textOf(err), "net/http: HTTP/1.x transport connection broken: ")
	return strings.HasPrefix(text, "http: ContentLength=")
}

// textOf returns what err says, and nothing if it is of a connection, which cannot be printed where a fake has left Err out.
func textOf(err error) string {
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return ""
	}
	return err.Error()
}

func isControl(c rune) bool { return c < ' ' || c == 0x7f }

// notToken reports whether a method or a field name cannot have c (RFC 9110, section 5.6.2).
func notToken(c rune) bool {
	return c <= ' ' || c >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, c)
}

// notSent reports whether an error proves that the server has seen nothing of
// the request, so that sending it again is safe whatever its method.
func notSent(err error) bool {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		switch op.Op {
		case "dial", "proxyconnect", "socks connect": // the latter two of net/http, for all that fails on the way to a proxy
			return true
		}
	}
	// The HTTP/2 code in net/http lets itself be read as any error type with
	// the fields of golang.org/x/net/http2.StreamError.
	stream, ok := errors.AsType[streamError](err)
	return ok && stream.Code == refusedStream
}

type streamError struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

func (streamError) Error() string { return "" }

// refusedStream is REFUSED_STREAM of RFC 9113, section 7: "the stream was
// refused before any processing".
const refusedStream = 7

// certain reports whether the same host would fail in the same way again: its
// name does not exist, or its certificate or TLS settings do not fit ours.
func certain(err error) bool {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return dns.IsNotFound
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return true
	}
	// What the other side's TLS thinks of us arrives in this form.
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return true
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return true
	}
	_, ok := errors.AsType[x509.HostnameError](err)
	return ok
}
