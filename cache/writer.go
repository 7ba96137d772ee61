package cache

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"time"
)

// A handler finds out what a ResponseWriter can do by asking for interfaces, so the writer that a
// fill gives it has exactly the optional ones that the writer below has. The shapes are the ones
// that net/http knows: HTTP/1 (Flush, Hijack, ReadFrom), HTTP/2 (Flush, Push), that of
// [http.TimeoutHandler] (Push), and two simpler ones. Everything else is reached through Unwrap by [http.ResponseController]; see below.

type plainWriter struct{ fl *fill }

func (w plainWriter) Header() http.Header         { return w.fl.header() }
func (w plainWriter) WriteHeader(status int)      { w.fl.writeHeader(status) }
func (w plainWriter) Write(p []byte) (int, error) { return w.fl.write(p) }
func (w plainWriter) Unwrap() http.ResponseWriter { return w.fl.below() }

// WriteString is there because net/http's writers have it; io.WriteString looks for it.
func (w plainWriter) WriteString(s string) (int, error) { return w.fl.write([]byte(s)) }

// MarkShed implements [ShedMarker].
func (w plainWriter) MarkShed(err error) { w.fl.shed = err }

// MarkFallback is what [ShedMarker] says of it.
func (w plainWriter) MarkFallback() { w.fl.spare = true }

type flushWriter struct{ plainWriter }

func (w flushWriter) Flush()            { w.fl.flush() }
func (w flushWriter) FlushError() error { return w.fl.flush() }

type http1Writer struct{ flushWriter }

func (w http1Writer) ReadFrom(src io.Reader) (int64, error) { return w.fl.readFrom(src) }

func (w http1Writer) Hijack() (net.Conn, *bufio.ReadWriter, error) { return w.fl.hijack() }

type http2Writer struct{ flushWriter }

func (w http2Writer) Push(target string, opts *http.PushOptions) error {
	return w.fl.w.(http.Pusher).Push(target, opts)
}

type pushWriter struct{ plainWriter }

func (w pushWriter) Push(target string, opts *http.PushOptions) error {
	return w.fl.w.(http.Pusher).Push(target, opts)
}

// closeNotifier is http.CloseNotifier, which is deprecated; old handlers still ask for it, and gin does for each stream.
type closeNotifier interface{ CloseNotify() <-chan bool }

type flushNotifier struct{ flushWriter }

func (w flushNotifier) CloseNotify() <-chan bool { return w.fl.closeNotify() }

type http1Notifier struct{ http1Writer }

func (w http1Notifier) CloseNotify() <-chan bool { return w.fl.closeNotify() }

type http2Notifier struct{ http2Writer }

func (w http2Notifier) CloseNotify() <-chan bool { return w.fl.closeNotify() }

// soloWriter is for a fill that has no client: it has what handlers look for that takes no connection. Many that stream panic without CloseNotify, and by ReadFrom
// it shows that a copy has failed.
type soloWriter struct{ flushNotifier }

func (w soloWriter) ReadFrom(src io.Reader) (int64, error) { return w.fl.readFrom(src) }

// closeNotify tells the handler when its context has ended, and not when the client of the run leaves: others may read what it would end there.
// It is the same channel each time, as net/http's is.
func (fl *fill) closeNotify() <-chan bool {
	fl.notifies.Do(func() {
		told := make(chan bool, 1)
		context.AfterFunc(fl.ctx, func() { told <- true })
		fl.notified = told
	})
	return fl.notified
}

// wrap gives a fill the shape of the writer below, if there is a client.
func wrap(fl *fill, w http.ResponseWriter) http.ResponseWriter {
	plain := plainWriter{fl}
	if fl.background {
		return soloWriter{flushNotifier{flushWriter{plain}}}
	}
	_, notifies := w.(closeNotifier)
	if _, ok := w.(http.Hijacker); ok {
		if notifies {
			return http1Notifier{http1Writer{flushWriter{plain}}}
		}
		return http1Writer{flushWriter{plain}}
	}
	_, flushes := w.(http.Flusher)
	_, pushes := w.(http.Pusher)
	switch {
	case pushes && flushes && notifies:
		return http2Notifier{http2Writer{flushWriter{plain}}}
	case pushes && flushes:
		return http2Writer{flushWriter{plain}}
	case pushes:
		return pushWriter{plain}
	case flushes && notifies:
		return flushNotifier{flushWriter{plain}}
	case flushes:
		return flushWriter{plain}
	}
	return plain
}

// The writer below may have Unwrap and none of the optional methods: http.ResponseController then looks further in, and would
// flush or hijack past the fill. It meets one of these on its way. A type assertion on the fill's writer
// does not, and finds what it would find without.
type (
	belowF struct{ plainWriter }
	belowH struct{ belowF }
)

func (b belowF) Unwrap() http.ResponseWriter { return b.fl.w }
func (b belowF) FlushError() error           { return b.fl.flush() }

func (b belowH) Hijack() (net.Conn, *bufio.ReadWriter, error) { return b.fl.hijack() }

// below is what Unwrap leads to.
func (fl *fill) below() http.ResponseWriter {
	if _, ok := fl.w.(http.Hijacker); ok {
		return fl.w
	}
	if _, ok := find[http.Hijacker](fl.w); ok {
		return belowH{belowF{plainWriter{fl}}}
	}
	if _, ok := fl.w.(http.Flusher); ok {
		return fl.w
	}
	if _, ok := find[http.Flusher](fl.w); ok {
		return belowF{plainWriter{fl}}
	}
	if _, ok := find[interface{ FlushError() error }](fl.w); ok {
		return belowF{plainWriter{fl}}
	}
	return fl.w
}

// hijack hands the connection over. From here on the cache is out of it.
func (fl *fill) hijack() (net.Conn, *bufio.ReadWriter, error) {
	if fl.mode == recording && fl.pump != nil {
		fl.end(released, nil, false)
		fl.pump.join()
	}
	if fl.unanswered() {
		fl.mark(Bypass)
		if fl.mode == undecided {
			fl.tell() // for who takes it over by the map
		}
	}
	if fl.mode != straight {
		fl.mode, fl.body = straight, nil
		fl.end(released, nil, false)
		fl.markKey()
	}
	return http.NewResponseController(fl.w).Hijack()
}

// find looks for an interface on a writer and on the ones below it.
func find[T any](w http.ResponseWriter) (t T, ok bool) {
	for {
		if t, ok = w.(T); ok {
			return t, true
		}
		u, more := w.(interface{ Unwrap() http.ResponseWriter })
		if !more {
			return t, false
		}
		w = u.Unwrap()
	}
}

// sink is the writer of a fill that has no client.
type sink struct{ h http.Header }

func (s *sink) Header() http.Header         { return s.h }
func (s *sink) WriteHeader(int)             {}
func (s *sink) Write(p []byte) (int, error) { return len(p), nil }
func (s *sink) Flush()                      {}

// There is no connection that these could be about, and net/http's writers have them all.
func (s *sink) SetReadDeadline(time.Time) error  { return nil }
func (s *sink) SetWriteDeadline(time.Time) error { return nil }
func (s *sink) EnableFullDuplex() error          { return nil }

// watch is around a request that may invalidate what is stored, to learn how it went. It is not
// used where a writer below can tell: see [StatusReporter].
type watch struct {
	http.ResponseWriter
	status int
}

func (w *watch) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *watch) WriteHeader(status int) {
	if w.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *watch) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

func (w *watch) Flush() { w.FlushError() }

func (w *watch) FlushError() error {
	err := http.NewResponseController(w.ResponseWriter).Flush()
	if err == nil && w.status == 0 {
		w.status = http.StatusOK
	}
	return err
}

type watch1 struct{ *watch }

func (w watch1) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return w.ResponseWriter.(http.Hijacker).Hijack()
}

func (w watch1) ReadFrom(src io.Reader) (n int64, err error) {
	if w.status == 0 {
		defer func() {
			if n > 0 || err == nil { // else the handler may still answer with an error; also where src panics, which may be in the midst
				w.status = http.StatusOK
			}
		}()
	}
	if rf, ok := w.ResponseWriter.(io.ReaderFrom); ok {
		return rf.ReadFrom(src)
	}
	return io.Copy(onlyWriter{w.ResponseWriter}, src)
}

type watch2 struct{ *watch }

func (w watch2) Push(target string, opts *http.PushOptions) error {
	return w.ResponseWriter.(http.Pusher).Push(target, opts)
}

func (w *watch) closeNotify() <-chan bool { return w.ResponseWriter.(closeNotifier).CloseNotify() }

type flushWatchNotifier struct{ *watch }

func (w flushWatchNotifier) CloseNotify() <-chan bool { return w.closeNotify() }

type watch1Notifier struct{ watch1 }

func (w watch1Notifier) CloseNotify() <-chan bool { return w.closeNotify() }

type watch2Notifier struct{ watch2 }

func (w watch2Notifier) CloseNotify() <-chan bool { return w.closeNotify() }

// watchFor gives a watch the shape of the writer below.
func watchFor(ww *watch) http.ResponseWriter {
	_, notifies := ww.ResponseWriter.(closeNotifier)
	if _, ok := ww.ResponseWriter.(http.Hijacker); ok {
		if notifies {
			return watch1Notifier{watch1{ww}}
		}
		return watch1{ww}
	}
	_, flushes := ww.ResponseWriter.(http.Flusher)
	_, pushes := ww.ResponseWriter.(http.Pusher)
	switch {
	case pushes && flushes && notifies:
		return watch2Notifier{watch2{ww}}
	case pushes && flushes:
		return watch2{ww}
	case pushes:
		return pushWatch{plainWatch{ww}}
	case flushes && notifies:
		return flushWatchNotifier{ww}
	case flushes:
		return ww
	}
	return plainWatch{ww}
}

// plainWatch hides Flush, where the writer below cannot.
type plainWatch struct{ w *watch }

func (p plainWatch) Header() http.Header         { return p.w.Header() }
func (p plainWatch) WriteHeader(status int)      { p.w.WriteHeader(status) }
func (p plainWatch) Write(b []byte) (int, error) { return p.w.Write(b) }
func (p plainWatch) Unwrap() http.ResponseWriter { return p.w.ResponseWriter }

type pushWatch struct{ plainWatch }

func (p pushWatch) Push(target string, opts *http.PushOptions) error {
	return p.w.ResponseWriter.(http.Pusher).Push(target, opts)
}
