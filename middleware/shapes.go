package middleware

import (
	"bufio"
	"io"
	"net"
	"net/http"
)

// A handler finds out what its ResponseWriter can do by type assertion, so a wrapper must
// have exactly the optional methods of what it wraps: one too many promises what will fail
// (Hijack on HTTP/2), one too few breaks websockets, server-sent events or sendfile. Each type
// below adds one method to the one it embeds. All are a single pointer wide: holding one in an
// interface allocates nothing.
//
// F is Flusher (and FlushError), H Hijacker, R io.ReaderFrom, P Pusher, N CloseNotifier.
type (
	recF    struct{ *recorder }
	recH    struct{ *recorder }
	recR    struct{ *recorder }
	recP    struct{ *recorder }
	recFH   struct{ recF }
	recFR   struct{ recF }
	recFP   struct{ recF }
	recHR   struct{ recH }
	recHP   struct{ recH }
	recRP   struct{ recR }
	recFHR  struct{ recFH }
	recFHP  struct{ recFH }
	recFRP  struct{ recFR }
	recHRP  struct{ recHR }
	recFHRP struct{ recFHR }

	// and those with N; of net/http FHRN is the writer of HTTP/1, and FPN that of HTTP/2
	recFN    struct{ recF }
	recFHN   struct{ recFH }
	recFRN   struct{ recFR }
	recFPN   struct{ recFP }
	recFHRN  struct{ recFHR }
	recFHPN  struct{ recFHP }
	recFRPN  struct{ recFRP }
	recFHRPN struct{ recFHRP }
)

func (r recF) Flush()            { _ = r.flush() }
func (r recF) FlushError() error { return r.flush() }

func (r recH) Hijack() (net.Conn, *bufio.ReadWriter, error)  { return r.hijack() }
func (r recFH) Hijack() (net.Conn, *bufio.ReadWriter, error) { return r.hijack() }

func (r recR) ReadFrom(src io.Reader) (int64, error)   { return r.readFrom(src) }
func (r recFR) ReadFrom(src io.Reader) (int64, error)  { return r.readFrom(src) }
func (r recHR) ReadFrom(src io.Reader) (int64, error)  { return r.readFrom(src) }
func (r recFHR) ReadFrom(src io.Reader) (int64, error) { return r.readFrom(src) }

func (rec *recorder) push(target string, o *http.PushOptions) error {
	return rec.w.(http.Pusher).Push(target, o)
}

func (r recP) Push(target string, o *http.PushOptions) error    { return r.push(target, o) }
func (r recFP) Push(target string, o *http.PushOptions) error   { return r.push(target, o) }
func (r recHP) Push(target string, o *http.PushOptions) error   { return r.push(target, o) }
func (r recRP) Push(target string, o *http.PushOptions) error   { return r.push(target, o) }
func (r recFHP) Push(target string, o *http.PushOptions) error  { return r.push(target, o) }
func (r recFRP) Push(target string, o *http.PushOptions) error  { return r.push(target, o) }
func (r recHRP) Push(target string, o *http.PushOptions) error  { return r.push(target, o) }
func (r recFHRP) Push(target string, o *http.PushOptions) error { return r.push(target, o) }

// closeNotifier is http.CloseNotifier, which is deprecated but still asserted by old handlers, and by gin for each stream: without it
// that panics. Writers that compress have it where the one below has, and no ReadFrom.
type closeNotifier interface{ CloseNotify() <-chan bool }

func (rec *recorder) closeNotify() <-chan bool { return rec.w.(closeNotifier).CloseNotify() }

func (r recFN) CloseNotify() <-chan bool    { return r.closeNotify() }
func (r recFHN) CloseNotify() <-chan bool   { return r.closeNotify() }
func (r recFRN) CloseNotify() <-chan bool   { return r.closeNotify() }
func (r recFPN) CloseNotify() <-chan bool   { return r.closeNotify() }
func (r recFHRN) CloseNotify() <-chan bool  { return r.closeNotify() }
func (r recFHPN) CloseNotify() <-chan bool  { return r.closeNotify() }
func (r recFRPN) CloseNotify() <-chan bool  { return r.closeNotify() }
func (r recFHRPN) CloseNotify() <-chan bool { return r.closeNotify() }

// shape returns rec with the optional methods of the writer it wraps.
func shape(rec *recorder) http.ResponseWriter {
	w := rec.w
	_, f := w.(http.Flusher)
	_, h := w.(http.Hijacker)
	_, r := w.(io.ReaderFrom)
	_, p := w.(http.Pusher)
	n := false
	if f {
		_, n = w.(closeNotifier)
	}
	switch {
	case n && h && r && p:
		return recFHRPN{recFHRP{recFHR{recFH{recF{rec}}}}}
	case n && h && r:
		return recFHRN{recFHR{recFH{recF{rec}}}}
	case n && h && p:
		return recFHPN{recFHP{recFH{recF{rec}}}}
	case n && r && p:
		return recFRPN{recFRP{recFR{recF{rec}}}}
	case n && h:
		return recFHN{recFH{recF{rec}}}
	case n && r:
		return recFRN{recFR{recF{rec}}}
	case n && p:
		return recFPN{recFP{recF{rec}}}
	case n:
		return recFN{recF{rec}}
	case f && h && r && p:
		return recFHRP{recFHR{recFH{recF{rec}}}}
	case f && h && r:
		return recFHR{recFH{recF{rec}}}
	case f && h && p:
		return recFHP{recFH{recF{rec}}}
	case f && r && p:
		return recFRP{recFR{recF{rec}}}
	case h && r && p:
		return recHRP{recHR{recH{rec}}}
	case f && h:
		return recFH{recF{rec}}
	case f && r:
		return recFR{recF{rec}}
	case f && p:
		return recFP{recF{rec}}
	case h && r:
		return recHR{recH{rec}}
	case h && p:
		return recHP{recH{rec}}
	case r && p:
		return recRP{recR{rec}}
	case f:
		return recF{rec}
	case h:
		return recH{rec}
	case r:
		return recR{rec}
	case p:
		return recP{rec}
	}
	return rec
}

// A writer around the layers may have Unwrap and none of the optional methods: http.ResponseController then looks further
// in, and would flush or hijack past the recorder. It meets one of these on its way. A type assertion on the recorder
// does not, and finds what it would find without.
type (
	belowF  struct{ *recorder }
	belowH  struct{ *recorder }
	belowFH struct{ belowF }
)

func (b belowF) FlushError() error                             { return b.flush() }
func (b belowH) Hijack() (net.Conn, *bufio.ReadWriter, error)  { return b.hijack() }
func (b belowFH) Hijack() (net.Conn, *bufio.ReadWriter, error) { return b.hijack() }

func (b belowF) Unwrap() http.ResponseWriter { return b.w }
func (b belowH) Unwrap() http.ResponseWriter { return b.w }

// Unwrap leads to the writer below, for [http.ResponseController].
func (rec *recorder) Unwrap() http.ResponseWriter {
	_, f := rec.w.(http.Flusher)
	_, h := rec.w.(http.Hijacker)
	if f && h {
		return rec.w
	}
	var deepF, deepH bool
	for w := rec.w; ; {
		switch w.(type) {
		case http.Flusher, interface{ FlushError() error }:
			deepF = true
		}
		if _, ok := w.(http.Hijacker); ok {
			deepH = true
		}
		u, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			break
		}
		w = u.Unwrap()
	}
	switch f, h = !f && deepF, !h && deepH; {
	case f && h:
		return belowFH{belowF{rec}}
	case f:
		return belowF{rec}
	case h:
		return belowH{rec}
	}
	return rec.w
}
