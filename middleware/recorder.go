package middleware

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// recorder is the one wrapper around the ResponseWriter of a request; every layer shares it.
// It also holds what the layers tell each other about the request. A request allocates one, and one more for each
// writer of somebody else's between two layers: that may hold back what is written to it, or answer something else.
//
// It is never pooled: a goroutine that a handler left behind may hold it after the request
// has ended, and would then write into the response of another client.
//
// It is 256 bytes long, and no word more: the next size costs a quarter more to allocate.
type recorder struct {
	w http.ResponseWriter

	start     time.Time     // when the outermost layer saw the request
	at        time.Duration // the newest clock reading, since start
	firstByte time.Duration // when the final header was written, since start; see hasFirst
	bytes     int64         // of the body, as the handler wrote it
	status    int16         // the first final status (>= 200, or 101); 0 before
	connect   bool          // the request is a CONNECT: a final status of 2xx makes it a tunnel, as 101 does others
	client    presence      // of the client, when the handler began to answer, and whether net/http holds nothing of that back
	marks     atomic.Uint32 // ownTime, badBody and, above them, untaken: set by whatever goroutine

	fresh     bool // at is still now: no foreign code has run since
	wantFirst bool
	hasFirst  bool
	hijacked  bool
	flushed   bool
	lasting   bool // hijacked, switched to another protocol, an event stream, or waits for a job
	hasRoute  bool
	cache     cache.Result // and cacheRan

	shed   error     // why one of our layers refused the request; nil if none did
	shedBy *rejecter // of the layer that refused
	route  string
	routed http.Handler // what the mux found with the route, until that or anything else is called; nil: ask the mux

	outer  *recorder // the next one outside: of the client's request, if this one is of a fill of the cache for it, or beyond a foreign writer
	traces *traces
	reject RejectFunc
	holds  holds
}

const (
	ownTime uint32 = 1 << iota // the handler has set a deadline for its writes
	badBody                    // the client has not sent the body that it said it would
	untaken = iota             // from this bit on: when a write began that waited for the client and failed, in ms since start, and one more; 0 is never
)

// presence says whether a client was there.
type presence uint8

const (
	clientUnknown presence = iota // no layer that asks is around the handler
	clientThere
	clientServed // and all that was written has been sent
	clientGone
)

// heldBack is what a write has to come to more than for net/http to hold nothing of it back: it fills both buffers, of 2 and 4 KiB, and the rest does
// not fit into one.
const heldBack = 10 << 10

// sent is called after each write to say whether net/http holds nothing back now.
func (rec *recorder) sent(all bool) {
	switch {
	case rec.client == clientThere && all:
		rec.client = clientServed
	case rec.client == clientServed && !all:
		rec.client = clientThere
	}
}

type streamKind uint8

const (
	streamFlush  streamKind = iota // the first Flush
	streamEvents                   // the first Flush of a text/event-stream
	streamSwitch                   // Hijack, status 101, or the first Flush of a tunnel
	streamPool                     // the request is about to wait for a slot of a pool
	streamJob                      // the request is about to wait for a background job
)

// lasts says that the request does no more work of its own, however long it stays.
func (k streamKind) lasts() bool { return k == streamEvents || k == streamSwitch || k == streamJob }

// recorded is a writer that is a recorder in one of its shapes.
type recorded interface{ record() *recorder }

func (rec *recorder) record() *recorder { return rec }

// recorderOf finds the recorder that w is or wraps; nil if there is none.
// It does not look through a writer that keeps what is written for itself, as that of
// the cache does: what happens behind it is not yet this client's response.
func recorderOf(w http.ResponseWriter) *recorder {
	for range 16 {
		if r, ok := w.(recorded); ok {
			return r.record()
		}
		if _, ok := w.(cache.ShedMarker); ok {
			return nil
		}
		u, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return nil
		}
		w = u.Unwrap()
	}
	return nil
}

// record returns the recorder of the request, and the writer to pass on.
func record(w http.ResponseWriter, r *http.Request) (http.ResponseWriter, *recorder) {
	if in, ok := w.(recorded); ok { // the usual case, without the loop
		return w, in.record()
	}
	if out := recorderOf(w); out != nil {
		w, rec := newRecorder(w, r, out, out.start)
		out.fresh, rec.fresh = false, false // somebody else's wrapper lies between: its code has run
		return w, rec
	}
	return newRecorder(w, r, enclosing(w), time.Now())
}

// newRecorder returns a recorder around w, for the request r. out is the one outside, if there is one.
func newRecorder(w http.ResponseWriter, r *http.Request, out *recorder, start time.Time) (http.ResponseWriter, *recorder) {
	rec := &recorder{w: w, start: start, fresh: true, connect: r.Method == http.MethodConnect}
	if out != nil {
		rec.outer, rec.traces, rec.reject = out, out.traces, out.reject
	}
	return shape(rec), rec
}

// enclosing finds the recorder around a writer that [recorderOf] does not look through.
func enclosing(w http.ResponseWriter) *recorder {
	for range 16 {
		u, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return nil
		}
		w = u.Unwrap()
		if r, ok := w.(recorded); ok {
			return r.record()
		}
	}
	return nil
}

// now returns the time, without a clock read where no foreign code ran since the last one.
func (rec *recorder) now() time.Time {
	if !rec.fresh {
		rec.at = time.Since(rec.start)
		rec.fresh = true
	}
	if rec.at == 0 {
		return rec.start // which is what Add would come to, and not for nothing
	}
	return rec.start.Add(rec.at)
}

// read reads the clock. time.Now reads two, that on the wall and the monotonic one; the second is
// enough once the first is known, and half the price.
func (rec *recorder) read() time.Time { return rec.start.Add(time.Since(rec.start)) }

// Now implements [cache.Clock].
func (rec *recorder) Now() time.Time { return rec.now() }

func (rec *recorder) becameLong(k streamKind) {
	rec.lasting = rec.lasting || k.lasts()
	rec.holds.becameLong(rec, k)
	if k == streamPool || k == streamJob { // the others come by the writer between
		if out := rec.beyond(); out != nil {
			out.becameLong(k)
		}
	}
}

// beyond returns the recorder beyond a foreign writer; nil if there is none.
func (rec *recorder) beyond() *recorder {
	if rec.outer == nil {
		return nil
	}
	return recorderOf(rec.w)
}

func (rec *recorder) Header() http.Header { return rec.w.Header() }

func (rec *recorder) WriteHeader(code int) {
	if rec.status == 0 && (code >= 200 || code == http.StatusSwitchingProtocols) {
		rec.wroteFinal(code)
		switch {
		case code == http.StatusSwitchingProtocols:
			rec.becameLong(streamSwitch)
		case code >= 400:
			rec.passRefusal()
		}
	} else if rec.status == 0 && code >= 100 { // goes out at once
		began := rec.mayWait(atOnce+1, false)
		rec.w.WriteHeader(code)
		rec.written(began, nil)
		return
	}
	rec.w.WriteHeader(code)
}

func (rec *recorder) wroteFinal(code int) {
	rec.status = int16(code)
	rec.client = rec.holds.client()
	if rec.wantFirst {
		rec.answered(rec.read())
	}
}

// answered notes that the first byte of the final response goes out, and tells the breakers.
func (rec *recorder) answered(now time.Time) {
	rec.firstByte, rec.hasFirst = now.Sub(rec.start), true
	rec.holds.answered()
}

func (rec *recorder) Write(b []byte) (int, error) {
	first := rec.status == 0
	if first {
		rec.wroteFinal(http.StatusOK)
	}
	began := rec.mayWait(len(b), first)
	n, err := rec.w.Write(b)
	rec.bytes += int64(n)
	rec.sent(n > heldBack && err == nil)
	rec.written(began, err)
	return n, err
}

// WriteString is there whatever lies below: io.WriteString does the right thing with both kinds.
func (rec *recorder) WriteString(s string) (int, error) {
	first := rec.status == 0
	if first {
		rec.wroteFinal(http.StatusOK)
	}
	began := rec.mayWait(len(s), first)
	n, err := io.WriteString(rec.w, s)
	rec.bytes += int64(n)
	rec.sent(false) // a string goes through the buffers, however long it is
	rec.written(began, err)
	return n, err
}

// atOnce is what net/http takes of an answer without a wait for the client, at least.
const atOnce = 2 << 10

// mayWait returns the time at which a write begins that may have to wait for the client, and 0 for one that has not. first is that it has
// just made the header go out, so that the clock may have been read.
func (rec *recorder) mayWait(n int, first bool) time.Duration {
	if rec.bytes+int64(n) <= atOnce {
		return 0
	}
	began := rec.firstByte
	if !first || !rec.hasFirst {
		began = time.Since(rec.start)
	}
	rec.holds.writes(rec, rec.start.Add(began))
	return max(began, 1)
}

// written is called after a write with what mayWait returned.
func (rec *recorder) written(began time.Duration, err error) {
	if began == 0 {
		return
	}
	rec.holds.wrote()
	if err != nil {
		rec.writeFailed(began)
	}
}

// writeFailed notes a write that has failed, and began at that time, if it waited: where the client was gone when it began it failed at
// once.
func (rec *recorder) writeFailed(began time.Duration) {
	if time.Since(rec.start)-began >= time.Millisecond && rec.marks.Load()>>untaken == 0 {
		rec.marks.Or(uint32(began/time.Millisecond+1) << untaken)
	}
}

func (rec *recorder) flush() error {
	if rec.status == 0 {
		rec.wroteFinal(http.StatusOK)
	}
	if !rec.flushed {
		rec.flushed = true
		k := streamFlush
		switch {
		case rec.connect && rec.status < 300:
			k = streamSwitch
		case isEventStream(rec.w.Header()): // where a cache inside flushes meanwhile, the handler has another map
			k = streamEvents
		}
		rec.becameLong(k)
	}
	began := rec.mayWait(atOnce+1, false) // also for a header alone: the client may have left others before it
	err := http.NewResponseController(rec.w).Flush()
	rec.sent(err == nil)
	rec.written(began, err)
	return err
}

// SetWriteDeadline is for [http.ResponseController], and may be called by any goroutine. It is there whatever lies below: what cannot
// be done is an error either way.
func (rec *recorder) SetWriteDeadline(at time.Time) error {
	err := http.NewResponseController(rec.w).SetWriteDeadline(at)
	if err == nil {
		rec.marks.Or(ownTime)
	}
	return err
}

func (rec *recorder) hijack() (net.Conn, *bufio.ReadWriter, error) {
	if rec.status == http.StatusSwitchingProtocols {
		// The handler has written the header. gin's writer holds it back, and drops it here: a handler that knows that asks for its
		// WriteHeaderNow, as coder/websocket does, and does not find it on ours.
		if w, ok := find[interface{ WriteHeaderNow() }](rec.w); ok {
			w.WriteHeaderNow()
		}
	}
	c, rw, err := http.NewResponseController(rec.w).Hijack()
	if err == nil && !rec.hijacked {
		rec.hijacked = true
		if rec.status == 0 {
			rec.wroteFinal(http.StatusSwitchingProtocols)
		}
		told := false
		defer func() {
			if !told { // a function of the user's has panicked: nobody gets the connection
				c.Close()
			}
		}()
		rec.becameLong(streamSwitch)
		told = true
	}
	return c, rw, err
}

func (rec *recorder) readFrom(src io.Reader) (n int64, err error) {
	// Whether a header goes out depends on src: if it fails before its first byte, the handler
	// may still answer with an error. So the status follows from n, but the time is now: what
	// is copied is the answer, and it may take long.
	open := rec.status == 0
	if open {
		rec.client = rec.holds.client()
	}
	if open && rec.wantFirst {
		rec.answered(rec.read())
	}
	to := rec.w.(io.ReaderFrom)
	pipe := isPipe(src)
	from := fetched(src, rec, pipe)
	if atHand(src) && !pipe {
		began := rec.mayWait(atOnce+1, open)
		n, err = to.ReadFrom(from)
		rec.written(began, err)
	} else {
		n, err = to.ReadFrom(from)
		rec.holds.wrote()
	}
	if open {
		if n > 0 {
			rec.status = http.StatusOK
		} else {
			rec.hasFirst = false
		}
	}
	rec.bytes += n
	if n > 0 {
		rec.sent(n >= sniffed && err == nil)
	}
	return n, err
}

// sniffed is how much net/http reads of what is copied before it empties its buffers, and copies the rest past them.
const sniffed = 512

// atHand reports whether a copy from src is taken to wait for nobody but the client: src is a file, or in memory.
func atHand(src io.Reader) bool {
	_, ok := limited(src).(io.Seeker)
	return ok
}

// isPipe reports that src is an *os.File and no file, as the output of a command: that has the methods of one, and may take any time.
func isPipe(src io.Reader) bool {
	f, ok := limited(src).(interface {
		io.Seeker
		syscall.Conn
	})
	if !ok {
		return false
	}
	_, err := f.Seek(0, io.SeekCurrent)
	return err != nil
}

// limited returns what src reads from, if it is the first part of something.
func limited(src io.Reader) io.Reader {
	if l, ok := src.(*io.LimitedReader); ok {
		return l.R
	}
	return src
}

// refusedBy says which layer refuses the request, and why.
func (rec *recorder) refusedBy(j *rejecter, err error) {
	rec.shedBy, rec.routed = j, nil
	rec.outer.refusedInside(j)
	rec.MarkShed(err)
}

// refusedInside says which layer refuses the request further in. It counts if the refusal gets there: a cache between may have
// something better.
func (rec *recorder) refusedInside(j *rejecter) {
	for ; rec != nil; rec = rec.outer {
		rec.shedBy = j
	}
}

// MarkShed implements [cache.ShedMarker]: a layer of ours refuses the request with the
// response that is about to be written. The mark travels outwards to whoever keeps one.
func (rec *recorder) MarkShed(err error) {
	if rec.shed == nil {
		rec.shed = err
	}
	if m, ok := find[cache.ShedMarker](rec.w); ok {
		m.MarkShed(err)
	}
}

// markFallback tells a cache around, if there is one, what [cache.ShedMarker] says of MarkFallback.
func (rec *recorder) markFallback() {
	if m, ok := find[interface{ MarkFallback() }](rec.w); ok {
		m.MarkFallback()
	}
}

// find returns the first writer outwards from w that is a T.
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

// Status implements [cache.StatusReporter].
func (rec *recorder) Status() int { return int(rec.status) }

// MarkCache implements [cache.ResultMarker].
func (rec *recorder) MarkCache(r cache.Result) {
	for ; rec != nil; rec = rec.beyond() {
		rec.cache = r
	}
}

// MarkCalled implements what [cache.ResultMarker] says of it.
func (rec *recorder) MarkCalled() { rec.fresh = false }

// MarkRun implements what [cache.ResultMarker] says of it. There is no word left for it.
func (rec *recorder) MarkRun() {
	for ; rec != nil; rec = rec.beyond() {
		rec.cache |= cacheRan
	}
}

// cacheRan in recorder.cache says that the handler ran.
const cacheRan cache.Result = 1 << 7

func isEventStream(h http.Header) bool { return isEventStreamType(h["Content-Type"]) }

// isEventStreamType says that the first of the values begins with the media type of event streams.
func isEventStreamType(v []string) bool {
	const want = "text/event-stream"
	if len(v) == 0 || len(v[0]) < len(want) {
		return false
	}
	t := v[0]
	for i := range len(want) {
		c := t[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != want[i] {
			return false
		}
	}
	return len(t) == len(want) || t[len(want)] == ';' || t[len(want)] == ' ' || t[len(want)] == ','
}
