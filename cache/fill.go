package cache

import (
	"cmp"
	"context"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// mode is what a fill does with the response that the handler writes.
type mode uint8

const (
	undecided  mode = iota
	straight        // it goes to the client as if the cache were not there
	recording       // it is recorded for the store and for others, and goes to the client
	discarding      // the client gets something else: the stored response
)

// fill is one run of the handler: the ResponseWriter it writes to, until the header shows what
// the response is, and what becomes of it.
type fill struct {
	h       *route
	w       http.ResponseWriter
	r       *http.Request // as the client sent it
	asked   time.Time
	hash    uint64
	key     string
	extra   string
	since   epoch
	f       *flight // nil: nobody else waits for this run
	have    *entry  // the stored response, if there is one that cannot be used as it is
	forward string  // why the handler was asked: the fwd parameter of Cache-Status

	validating bool     // the handler was sent our conditions, not the client's
	offers     []*entry // or those of other variants, one of which it may choose
	again      bool     // it chose one that nobody offered, or means another than the stored one: ask without conditions
	deferred   bool     // the client gets its answer from the result, when that is complete
	noStore    bool     // whatever comes, do not store it
	background bool     // there is no client
	variant    bool     // of what is stored under the URL nothing is for the request
	special    bool     // the handler sees a range, a condition or a method that others do not send

	ctx    context.Context // the handler's
	lease  fillContext     // which is this one if others may wait for the run
	out    *http.Request   // what the handler gets; nil as long as a gate has not let it pass
	prompt bool            // asked is still now: the gate is the first to take time
	ours   bool            // a gate has refused, and nobody but it has seen this fill
	own    flight          // f, if this run leads one
	outer  headerSnapshot
	mode   mode
	named  int // by the handler, where nothing is decided before it writes
	status int
	shed   error
	spare  bool // nothing is learnt from it: a layer inside has refused, and answers with something else, or see unsaid
	head   *entry
	v      verdict
	length int64
	body   []byte // of a run without a flight
	held   int64  // bytes counted as recorded and not yet stored
	sent   int    // bytes of the recorded body that this goroutine wrote to the client
	pump   *pump
	handed http.Header // what the handler has for a header; nil: the one of w
	stored *entry      // what discarding serves
	gone   bool        // the handler has something else under the URL now, which is not in the answer or not for the store
	kept   bool        // the result is in memory
	saves  bool        // and is to go to the Store,
	// under the generation of when the handler was asked: one that a purge began since is not for it
	generation uint64
	broken     bool   // wrote more than it declared, or in the end less
	cut        bool   // was told that a copy had failed, and may have ended there
	implied    bool   // the handler has written without a status: so does what goes to the client
	untyped    bool   // net/http has to find a Content-Type
	sniffed    string // and finds this one
	typeless   bool   // or none, since the header went out before the first byte
	reason     string // detail for a stale answer
	empty      *entry // the result, where nothing was written

	notifies sync.Once
	notified <-chan bool // what closeNotify has given the handler
}

// run lets the handler make the response. A panic in it travels on as it is.
func (fl *fill) run() {
	c := fl.h.cache
	c.stats.fills.Add(1)
	fl.outer = snapshot(fl.w.Header())
	fl.ctx = fl.r.Context()
	if fl.f != nil {
		fl.lease.client, fl.lease.cache, fl.lease.f, fl.lease.alone = fl.ctx, c, fl.f, fl.background
		fl.ctx = &fl.lease
	}
	done, finished := false, false
	defer func() {
		defer fl.over() // also where what is called of the user's on the way panics
		if fl.out != nil {
			passBack(fl.r, fl.out)
		}
		switch {
		case !done:
			fl.abort()
		case !finished:
			fl.end(failed, nil, false) // what is called of the user's has panicked: those who wait are told
		}
	}()
	if c.backing != nil {
		fl.generation, fl.saves = c.backing.current(fl.asked)
	}
	fl.serve()
	if fl.again {
		if w, ok := find[holdsBack](fl.w); ok && fl.named != 0 {
			w.WriteHeader(http.StatusOK) // which the next answer may leave unsaid
		}
		fl.outer.restore(fl.w.Header())
		fl.handed, fl.implied, fl.cut = nil, false, false
		fl.offers, fl.mode, fl.named = nil, undecided, 0
		fl.prompt = false
		fl.out = fl.request()
		fl.serve()
	}
	done = true
	fl.finish()
	finished = true
	if fl.background && !fl.kept && fl.ctx.Err() != nil {
		fl.broken = true // its time was up
	}
	switch {
	case fl.kept && fl.saves:
		fl.save()
	case fl.gone && c.backing != nil:
		fl.unsave()
	}
}

// passBack gives r what a mux and a handler inside have found out about the request that was passed on in its place, for who logs it.
// Package middleware has one like it, for requests that pass no cache: what a later net/http finds out besides belongs in both.
func passBack(r, inner *http.Request) {
	if r.Pattern != inner.Pattern {
		r.Pattern = inner.Pattern
		for _, after, ok := strings.Cut(r.Pattern, "{"); ok; _, after, ok = strings.Cut(after, "{") {
			name, _, _ := strings.Cut(after, "}")
			if name = strings.TrimSuffix(name, "..."); name != "$" {
				r.SetPathValue(name, inner.PathValue(name))
			}
		}
	}
	r.Form, r.PostForm = inner.Form, inner.PostForm
}

// over gives back what a run has taken.
func (fl *fill) over() {
	if fl.ctx == &fl.lease {
		fl.lease.release()
	}
	c := fl.h.cache
	c.store.over(fl.hash, fl.since)
	fl.unreserve()
	c.stats.fills.Add(-1)
}

// serve has the handler write to the fill.
func (fl *fill) serve() {
	w, f := wrap(fl, fl.w), Fill{fl}
	if g := fl.h.gate; g != nil {
		g.ServeFill(w, fl.r, f)
	} else {
		fl.h.next.ServeHTTP(w, f.Request())
	}
	if fl.named != 0 && fl.mode == undecided {
		fl.settle() // a status that was held back: the handler may have to be asked again
	}
}

// request is what the handler gets: the client's request, with our conditions where there is
// something to validate, and under a context that lasts as long as somebody reads. Its header is
// a map of its own: a layer inside may take Authorization or Accept-Encoding out, and the response
// is judged by what the client sent.
func (fl *fill) request() *http.Request {
	out := fl.r.WithContext(fl.ctx)
	p := fl.h.rules
	h := make(http.Header, len(fl.r.Header)+2)
	for name, values := range fl.r.Header {
		h[name] = values
	}
	if len(h["Upgrade"]) != 0 {
		delete(h, "Upgrade")
		delete(h, "Http2-Settings")
	}
	if p.surrogate != "" {
		h["Surrogate-Capability"] = withStatus(h["Surrogate-Capability"], p.surrogate+`="Surrogate/1.0"`)
	}
	if len(fl.offers) != 0 {
		tags := make([]string, len(fl.offers))
		for i, e := range fl.offers {
			tags[i] = e.etag
		}
		h["If-None-Match"] = []string{strings.Join(tags, ", ")}
	}
	if fl.validating {
		for _, name := range [...]string{"If-None-Match", "If-Modified-Since", "If-Range", "Range"} {
			delete(h, name)
		}
		if fl.have.etag != "" && !fl.again {
			h["If-None-Match"] = []string{fl.have.etag}
		}
		if fl.have.lastModified != "" && !fl.again {
			h["If-Modified-Since"] = []string{fl.have.lastModified}
		}
	}
	out.Header = h
	return out
}

// header is the header map of the response, for the handler. A pump writes to the client on another goroutine, and a layer outside may
// look at the map and change it when it is written to, as one that compresses does. Nobody can take back the map that a handler has
// once asked for, so where there may be a pump it is another one from the start.
func (fl *fill) header() http.Header {
	if fl.handed == nil && fl.f != nil && fl.shed == nil && !fl.background && (fl.mode == undecided || fl.mode == recording) {
		fl.handHeader()
	}
	return fl.fields()
}

func (fl *fill) handHeader() {
	if fl.handed = maps.Clone(fl.w.Header()); fl.handed == nil {
		fl.handed = make(http.Header)
	}
}

// fields is header for ourselves.
func (fl *fill) fields() http.Header {
	if fl.handed != nil {
		return fl.handed
	}
	return fl.w.Header()
}

// tell gives the client's writer the header as the handler has it now.
func (fl *fill) tell() {
	if fl.handed != nil {
		h := fl.w.Header()
		clear(h)
		maps.Copy(h, fl.handed)
	}
}

// begin sends the header. Where the handler has only written so does its first byte, or its end: a layer outside may set the
// Content-Type by that.
func (fl *fill) begin() {
	fl.tell()
	if !fl.implied {
		fl.w.WriteHeader(fl.status)
	}
}

// decideImplied is decide for a handler that has named no status.
func (fl *fill) decideImplied() {
	fl.implied = true
	fl.decide(http.StatusOK)
}

func (fl *fill) writeHeader(status int) {
	if fl.mode != undecided {
		if fl.mode == straight {
			fl.late()
			fl.w.WriteHeader(status) // net/http complains, as it would without us
		}
		return
	}
	if status >= 100 && status < 200 && status != http.StatusSwitchingProtocols {
		fl.tell()
		fl.w.WriteHeader(status) // an interim response goes straight through
		if fl.handed != nil {
			clear(fl.handed)
			maps.Copy(fl.handed, fl.w.Header()) // with what a layer outside has set meanwhile
		}
		return
	}
	fl.cut = false
	if w, ok := find[holdsBack](fl.w); ok && status != http.StatusSwitchingProtocols {
		fl.tell()
		w.WriteHeader(status) // and to no other on the way: what is sent may be something else
		fl.named = status
		return
	}
	fl.decide(status)
}

// holdsBack is a writer that keeps a status for itself until the body begins, as that of gin does: its handlers name one first, and then set
// the Content-Type. So nothing is decided before that.
type holdsBack interface {
	http.ResponseWriter
	WriteHeaderNow()
}

// settle decides for a handler that goes on to write, or is done.
func (fl *fill) settle() {
	if fl.named != 0 {
		fl.decide(fl.named)
		return
	}
	fl.decideImplied()
}

// decide settles what becomes of the response, now that its header is known.
func (fl *fill) decide(status int) {
	fl.status = status
	if fl.shed != nil && fl.have == nil && len(fl.offers) == 0 {
		fl.pass("shed", false)
		return
	}
	h, p, c := fl.fields(), fl.h.rules, fl.h.cache
	now := time.Now()
	if fl.mayHideFailure(status, now) {
		fl.mode, fl.stored = discarding, fl.have
		fl.end(failed, nil, true)
		return
	}
	if status == http.StatusNotModified && len(fl.offers) != 0 {
		// The handler chose the variant for a request that none of ours was known to answer
		// (RFC 9111, section 4.3.4).
		if fl.have = fl.chosen(h); fl.have == nil {
			fl.mode, fl.again = discarding, true
			return
		}
		fl.validating = true
	}
	if status == http.StatusNotModified && fl.validating && !fl.again {
		if !fl.have.confirmedBy(h) {
			fl.supersede()
			fl.mode, fl.again = discarding, true
			return
		}
		merged := fl.have.header()
		delete(merged, "Date") // the 304 was made now, whether it says so or not
		for name, values := range h {
			switch was, stored := merged[name]; {
			case stored && fl.outer.has(name, values):
			case name == "Vary":
				merged[name] = append(slices.Clip(was), values...)
			default:
				merged[name] = values
			}
		}
		fl.v = fl.judge(fl.have.status, merged, now)
		fl.mode = discarding
		return
	}
	if fl.r.Method == http.MethodHead && status == http.StatusOK && fl.shed == nil && !fl.spare {
		fl.learn(h, now)
	}
	if fl.shed != nil {
		fl.pass("shed", false)
		return
	}
	fl.length = declared(h, status)
	fl.v = fl.judge(status, h, now)
	if fl.v.store && fl.length > c.maxObject.Load() {
		fl.v.store, fl.v.reason, fl.v.byself = false, "too-large", true
	}
	if fl.noStore && fl.v.store {
		fl.v.store, fl.v.reason = false, "request"
	}
	if fl.v.store && fl.length > 0 && !fl.reserve(fl.length) {
		fl.unreserve()
		fl.v.store, fl.v.reason = false, "busy"
	}
	if !fl.v.store {
		fl.pass(fl.v.reason, fl.v.byself)
		return
	}
	fl.head = newEntry(status, h, fl.outer, fl.v, now)
	fl.head.extra = fl.extra
	fl.head.chosen = selectFields(fl.v.vary, fl.r.Header)
	fl.head.tags, fl.head.groups = p.tagsOf(h)
	if p.stripTags {
		p.strip(fl.head, h)
	}
	fl.mode = recording
	if fl.f != nil {
		if fl.v.share {
			fl.f.publish(fl.head, fl.length)
		} else {
			// It is kept to be validated, and nobody else may have it.
			fl.end(released, nil, false)
			fl.f = nil
		}
	}
	if fl.f == nil && fl.length > 0 {
		fl.body = make([]byte, 0, fl.length)
	}
	if fl.background {
		return
	}
	if fl.deferred {
		fl.tell()
		return
	}
	fl.mark(Miss)
	member := c.name + "; fwd=" + fl.forward + "; fwd-status=" + strconv.Itoa(status)
	if c.seen == nil || fl.have != nil {
		member += "; stored" // with admission it is not known yet
	}
	h["Cache-Status"] = withStatus(h["Cache-Status"], member)
	fl.begin()
}

// learn takes from the answer to a HEAD what it says of the stored response to a GET (RFC 9111,
// section 4.3.5): that it is the same still, and for how long, or that it is not.
func (fl *fill) learn(h http.Header, now time.Time) {
	e := fl.have
	named := canonicalFields(h)
	first := func(name string) string {
		if v := named[name]; len(v) != 0 {
			return v[0]
		}
		return ""
	}
	length := first("Content-Length")
	if first("Etag") != e.etag || first("Last-Modified") != e.lastModified || length != "" && length != e.get("Content-Length") {
		e.expire(now)
		fl.gone = true // from the Store as well, which knows no soft ones
		return
	}
	if e.etag == "" && e.lastModified == "" {
		return // nothing proves that it is the same
	}
	merged := e.header()
	delete(merged, "Date")
	for name, values := range h {
		merged[name] = values
	}
	if v := fl.judge(e.status, merged, now); v.store {
		fl.keep(fl.freshen(h, v, now))
	}
}

// judge is that of the rules. The cookies that a layer outside has set for this request, as one of sessions does for a new client,
// are not of the response: they are not stored, and clients get theirs with a hit as well. But nothing is guessed of such a response,
// as where the client has brought a cookie.
func (fl *fill) judge(status int, h http.Header, now time.Time) verdict {
	cookies := h["Set-Cookie"]
	own := fl.outer.without("Set-Cookie", cookies)
	theirs := len(own) < len(cookies)
	if theirs {
		h = maps.Clone(h)
		if h["Set-Cookie"] = own; len(own) == 0 {
			delete(h, "Set-Cookie")
		}
	}
	v := fl.h.rules.judge(fl.r, status, h, fl.asked, now)
	if theirs && v.share && v.guessed {
		v.store, v.share, v.reason = false, false, "set-cookie"
	}
	return v
}

// freshen makes the entry that an answer with these fields turns the stored one into, with the tags that it has then.
func (fl *fill) freshen(h http.Header, v verdict, now time.Time) *entry {
	p := fl.h.rules
	e := fl.have.freshen(h, fl.outer, v, now)
	vary := slices.Concat(e.vary, v.vary)
	slices.Sort(vary)
	if vary = slices.Compact(vary); len(vary) > len(e.vary) {
		// It depends on more than it did. What is left out here may be left out by mistake, and the variant was chosen by it.
		e.vary, e.chosen = vary, selectFields(vary, fl.r.Header)
		e.set("Vary", strings.Join(vary, ", "))
		if v.store && len(fl.offers) == 0 {
			fl.h.cache.store.remove(fl.hash, fl.key, fl.have)
		}
	}
	p.retag(e, h)
	if p.stripTags {
		p.strip(e, h)
	}
	e.complete(e.body)
	return e
}

// chosen is the variant that a 304 to our offers is about.
func (fl *fill) chosen(h http.Header) *entry {
	tags := canonicalFields(h)["Etag"]
	if len(tags) == 0 && len(fl.offers) == 1 {
		return fl.offers[0]
	}
	for _, e := range fl.offers {
		if len(tags) == 1 && etagMatch(tags, e.etag) {
			return e
		}
	}
	return nil
}

// declared is the Content-Length that the handler set, or -1. A response without content is
// complete with none.
func declared(h http.Header, status int) int64 {
	if !bodyAllowed(status) {
		return 0
	}
	if v := h["Content-Length"]; len(v) == 1 {
		if n, err := strconv.ParseInt(v[0], 10, 64); err == nil && n >= 0 {
			return n
		}
	}
	return -1
}

// pass lets the response go to the client as it is, and everybody who waited go on alone. With
// mark, the next requests for the key will not wait at all.
func (fl *fill) pass(reason string, mark bool) {
	fl.mode = straight
	c := fl.h.cache
	fl.end(released, nil, false)
	if mark && !fl.special && fl.ctx.Err() == nil && fl.forward != "request" {
		// Not where a client insisted on asking: he would turn off the cache for everybody. Nor where
		// the handler may have given up because its time was over.
		fl.markKey()
		fl.supersede()
	} else if reason == "authorization" && !passing(fl.status) { // a failure says nothing of the next one here either
		c.mark(fl.hash^authSalt, fl.asked)
	}
	fl.markCookie()
	c.stats.refused.Add(1)
	if fl.background {
		return
	}
	fl.mark(Miss)
	h, p := fl.fields(), fl.h.rules
	if p.stripTags {
		p.strip(nil, h)
	}
	if !p.onlyExplicit {
		h["Cache-Status"] = withStatus(h["Cache-Status"],
			c.name+"; fwd="+fl.forward+"; fwd-status="+strconv.Itoa(fl.status)+"; detail="+reason)
	}
	if fl.shed != nil {
		if m, ok := find[ShedMarker](fl.w); ok {
			m.MarkShed(fl.shed)
		}
	}
	if fl.spare {
		if m, ok := find[interface{ MarkFallback() }](fl.w); ok {
			m.MarkFallback()
		}
	}
	fl.begin()
}

// markKey notes that responses for the key are not for sharing, unless others of its variants are: that
// one user has a page of his own must not turn off the cache for all who have none.
func (fl *fill) markKey() {
	c := fl.h.cache
	if !fl.spare && !c.store.inUse(fl.hash, fl.key, fl.have, time.Now()) {
		c.mark(fl.hash, fl.asked)
	}
}

// markCookie notes that a response is not for sharing where the request has a cookie: requests that have one do not wait
// for each other.
func (fl *fill) markCookie() {
	if fl.v.cookie {
		fl.h.cache.mark(fl.hash^cookSalt, fl.asked)
	}
}

// supersede forgets the stale response that the handler was asked about, once its answer shows that this is
// not what it would say now (RFC 9111, section 4.3.3): it is not to come back within a window for stale ones. Nor are older ones
// that the request selects by another Vary, and that this one has stood before.
func (fl *fill) supersede() {
	if fl.have != nil && !fl.spare {
		fl.gone = true
		fl.h.cache.store.removeMatching(fl.hash, fl.key, func(e *entry) bool {
			return e == fl.have || e.part == nil && !e.stored.After(fl.have.stored) && e.selects(fl.extra, fl.r.Header)
		})
	}
}

func (fl *fill) write(p []byte) (int, error) {
	if fl.mode == undecided {
		fl.cut = false
		fl.settle()
	}
	switch fl.mode {
	case straight:
		fl.late()
		return fl.w.Write(p)
	case discarding:
		return len(p), nil
	}
	if !bodyAllowed(fl.status) {
		return 0, http.ErrBodyNotAllowed
	}
	size := fl.size()
	if len(p) == 0 {
		if fl.implied && size == 0 && fl.pump == nil && !fl.deferred && !fl.background {
			return fl.w.Write(p) // by which the header is said to go out
		}
		return 0, nil
	}
	if fl.length >= 0 && int64(size+len(p)) > fl.length {
		fl.broken = true
		return 0, http.ErrContentLength
	}
	if size == 0 {
		fl.untyped = !fl.typeless && fl.isUntyped()
	}
	if fl.length < 0 && (int64(size+len(p)) > fl.h.cache.maxObject.Load() || !fl.reserve(int64(len(p)))) {
		fl.overflow()
		return fl.w.Write(p)
	}
	if fl.f != nil {
		fl.f.append(p)
	} else {
		fl.body = append(fl.body, p...)
	}
	switch {
	case fl.deferred || fl.background:
	case fl.f == nil:
		// Nobody waits for this run but its client.
		n, err := fl.w.Write(p)
		fl.sent += n
		return n, err
	case fl.pump == nil && size+len(p) > pumpAfter && int64(size+len(p)) != fl.length:
		fl.startPump()
	}
	return len(p), nil
}

func (fl *fill) size() int {
	if fl.f != nil {
		return len(fl.f.body) // only this goroutine changes it
	}
	return len(fl.body)
}

func (fl *fill) recordedBody() []byte {
	if fl.f != nil {
		return fl.f.body
	}
	return fl.body
}

// isUntyped reports whether net/http is about to look for a Content-Type in the body.
func (fl *fill) isUntyped() bool {
	if _, has := fl.head.values("Content-Type"); has {
		return false
	}
	if _, has := fl.head.values("Content-Encoding"); has {
		return false
	}
	_, has := fl.fields()["Content-Type"]
	return !has
}

// sniffType finds the Content-Type that net/http finds in as much of the body as it holds back: all of it so far where
// it has to send the header, by a flush or at the end, and otherwise more than it looks at.
func (fl *fill) sniffType() {
	if body := fl.recordedBody(); fl.untyped && len(body) > 0 {
		fl.untyped, fl.sniffed = false, http.DetectContentType(body)
	}
}

// reserve counts bytes that are recorded and not yet in the store. Together they may take a
// quarter of the budget; past that responses go straight through. A run without a flight goes at
// the pace of its client, and such runs leave a quarter of the room to the others.
func (fl *fill) reserve(n int64) bool {
	c := fl.h.cache
	room := c.store.maxBytes.Load() / 4
	if fl.f == nil && c.collapseWait > 0 {
		room -= room / 4
	}
	fl.held += n
	return c.recorded.Add(n) <= room
}

// unreserve takes back what reserve has counted.
func (fl *fill) unreserve() {
	fl.h.cache.recorded.Add(-fl.held)
	fl.held = 0
}

// overflow gives up recording in the middle of a response: it is larger than what is stored, or
// too much is being recorded at once. Those who wait go alone; the client gets the rest straight.
func (fl *fill) overflow() {
	body := fl.recordedBody()
	fl.end(released, nil, false)
	if int64(len(body)) > fl.h.cache.maxObject.Load()/2 {
		fl.markKey()
		fl.supersede()
	}
	switch {
	case fl.background:
	case fl.deferred:
		fl.mark(Miss)
		fl.w.WriteHeader(fl.status)
		fl.w.Write(body)
	default:
		fl.deliver(body)
	}
	fl.mode = straight
	fl.body = nil
	if fl.f != nil {
		fl.f.forget() // what comes now may take hours
	}
	fl.unreserve()
}

// readFrom keeps the copy that the writer below can do better, such as sendfile.
func (fl *fill) readFrom(src io.Reader) (int64, error) {
	var n int64
	var buf []byte
	if fl.mode == undecided {
		// The header goes out with the first byte and not before: if src fails without one, the handler
		// may still answer with an error. net/http reads as much to find the type.
		buf = make([]byte, 32<<10)
		m, err := src.Read(buf[:512])
		for m == 0 && err == nil {
			m, err = src.Read(buf[:512])
		}
		if m > 0 {
			w, werr := fl.write(buf[:m])
			n += int64(w)
			if werr != nil {
				return n, werr
			}
		}
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			fl.cut = true // where nothing is written yet, until something is: it may still answer with an error
			return n, err
		}
	}
	if fl.mode == straight {
		m, err := fl.copyStraight(src)
		return n + m, err
	}
	if buf == nil {
		buf = make([]byte, 32<<10)
	}
	for {
		m, err := src.Read(buf)
		if m > 0 {
			w, werr := fl.write(buf[:m])
			n += int64(w)
			if werr != nil {
				return n, werr
			}
			if fl.mode == straight && err == nil {
				m, err := fl.copyStraight(src)
				return n + m, err
			}
		}
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			fl.cut = true
			return n, err
		}
	}
}

func (fl *fill) copyStraight(src io.Reader) (int64, error) {
	if rf, ok := fl.w.(io.ReaderFrom); ok {
		return rf.ReadFrom(src)
	}
	return io.Copy(onlyWriter{fl.w}, src)
}

type onlyWriter struct{ io.Writer }

// flush sends what there is so far.
func (fl *fill) flush() error {
	if fl.mode == undecided {
		fl.decide(cmp.Or(fl.named, http.StatusOK)) // the header goes out, whatever is written before the pump gets to it
	}
	if fl.mode == recording {
		fl.typeless = fl.typeless || fl.size() == 0 && fl.isUntyped()
		fl.sniffType()
	}
	switch {
	case fl.mode == discarding, fl.mode == recording && (fl.deferred || fl.background):
		return nil
	case fl.mode == recording && fl.f != nil:
		if fl.pump == nil {
			fl.startPump()
		}
		fl.pump.flush()
		return nil
	}
	return http.NewResponseController(fl.w).Flush()
}

// end settles the flight, if there is one.
func (fl *fill) end(o outcome, e *entry, unwell bool) {
	if fl.f != nil {
		fl.f.end(o, e, unwell)
		theirs := pending
		switch {
		case fl.kept:
			theirs = recalled
		case o == released && fl.shed == nil && !fl.spare && !passing(fl.status): // a failure says nothing of what the other run brings
			theirs = released
		}
		fl.h.cache.store.land(fl.hash, fl.f, theirs)
	}
}

// finish does what remains when the handler has returned.
func (fl *fill) finish() {
	unwritten := fl.mode == undecided
	switch {
	case unwritten && fl.unsaid():
		fl.status, fl.implied, fl.spare = http.StatusOK, true, true
		fl.pass("unwritten", false)
	case unwritten:
		fl.decideImplied()
	}
	switch fl.mode {
	case recording:
		fl.finishRecording()
	case discarding:
		fl.finishDiscarding()
	}
	if fl.handed != nil && fl.mode != discarding {
		fl.tellTrailers()
	}
	if unwritten && fl.mode != discarding && !fl.deferred {
		fl.mode, fl.handed = straight, nil // for an answer that comes after all
	}
}

// late takes back an empty response that was kept, since the handler seemed to have written nothing: it is answered now.
func (fl *fill) late() {
	if fl.empty == nil {
		return
	}
	fl.h.cache.store.remove(fl.hash, fl.key, fl.empty)
	if fl.empty = nil; fl.saves {
		fl.unsave()
	}
}

// unsaid reports whether nothing is to be learnt from a handler that has returned and written nothing, not even a status. To net/http that is an
// empty 200. It is also what a handler does that returns an error, which is answered when we have returned, to our writer or to the one
// below: echo does so, as does many a func(w, r) error. So its own header has to say how long it lasts: no option gives it a lifetime, and it says
// nothing of what is stored.
func (fl *fill) unsaid() bool {
	if fl.shed != nil || fl.have == nil && fl.h.rules.ttl == nil {
		return false // the last: there is nothing to be kept, and no option that would keep it
	}
	h := fl.fields()
	if fl.r.Method == http.MethodHead {
		named := canonicalFields(h) // a HEAD has nothing to write, but fields to tell of what a GET would bring
		if len(named["Etag"]) != 0 || len(named["Last-Modified"]) != 0 || len(named["Content-Length"]) != 0 {
			return false
		}
	}
	own := *fl.h.rules
	own.ttl = nil
	v := own.judge(fl.r, http.StatusOK, h, fl.asked, time.Now())
	return !v.store && (v.reason == "not-fresh" || v.reason == "not-addressed" || v.reason == "authorization")
}

// tellTrailers gives the client's writer the trailers that the handler has set since the header went out.
func (fl *fill) tellTrailers() {
	h := fl.w.Header()
	for name, values := range fl.handed {
		if strings.HasPrefix(name, http.TrailerPrefix) {
			h[name] = values
		}
	}
	for _, names := range h["Trailer"] {
		for name := range strings.SplitSeq(names, ",") {
			name = http.CanonicalHeaderKey(trimOWS(name))
			if values, ok := fl.handed[name]; ok {
				h[name] = values
			}
		}
	}
}

func (fl *fill) finishRecording() {
	c := fl.h.cache
	body := fl.recordedBody()
	short := fl.length >= 0 && int64(len(body)) != fl.length
	// A handler whose context ended, or what it copied from, may have stopped early; only a declared length tells.
	if fl.status == http.StatusPartialContent {
		if first, last, _, _ := parseContentRange(fl.fields()["Content-Range"]); int64(len(body)) > last-first+1 {
			short = true // more than it says it is
		}
	}
	trailers := hasTrailers(fl.fields())
	whole := !short && !fl.broken && (fl.length >= 0 || fl.ctx.Err() == nil && !fl.cut) && !trailers
	if !whole {
		if trailers && !fl.special {
			fl.markKey() // the next ones need not wait to the end to hear of it
			fl.supersede()
		}
		fl.broken = !trailers
		fl.end(failed, nil, false)
		if !fl.background {
			if fl.deferred {
				fl.mark(Miss)
				fl.w.WriteHeader(fl.status)
			}
			fl.deliver(body)
		}
		return
	}
	e := fl.head
	if fl.f != nil {
		// The flight has published the header and readers hold it; the stored entry is another.
		e = fl.head.clone()
	}
	switch fl.sniffType(); {
	case fl.sniffed != "":
		e.set("Content-Type", fl.sniffed)
	case fl.typeless && bodyAllowed(e.status):
		e.set("Content-Type") // else net/http would find one in a hit
	}
	if cap(body)-len(body) > len(body)/8 {
		body = slices.Clone(body)
	}
	if e.status == http.StatusPartialContent {
		e = fl.finishPart(e, slices.Clip(body))
	} else {
		e.complete(slices.Clip(body))
	}
	if fl.keep(e) {
		if len(body) == 0 && fl.implied {
			fl.empty = e
		}
		fl.unreserve() // before it is sent: the client may take its time
	}
	fl.end(complete, e, false)
	if fl.background {
		return
	}
	if fl.deferred {
		fl.mark(Miss)
		fl.h.serve(fl.w, fl.r, e, e.age(time.Now()), c.name+"; fwd="+fl.forward+"; fwd-status="+strconv.Itoa(fl.status)+"; stored")
		return
	}
	fl.deliver(body)
}

// finishPart completes a part, and joins it with what is stored of the same representation.
func (fl *fill) finishPart(e *entry, body []byte) *entry {
	first, last, total, _ := parseContentRange(fl.fields()["Content-Range"])
	e.part = &span{first: first, total: total, asked: strings.Clone(fl.r.Header["Range"][0]), whole: int64(len(body)) == last-first+1}
	e.complete(body)
	res := fl.h.cache.store.get(fl.hash, []byte(fl.key))
	if res == nil {
		return e
	}
	for _, old := range res.variants {
		if n := combine(e, old, fl.h.cache.maxObject.Load()); n != nil {
			e = n
			if e.part == nil {
				break
			}
		}
	}
	return e
}

// deliver writes the rest of the recorded body to the client.
func (fl *fill) deliver(body []byte) {
	switch {
	case fl.pump != nil:
		fl.pump.join()
	case len(body) > fl.sent:
		fl.w.Write(body[fl.sent:])
	}
}

// hasTrailers finds trailers that were announced by their name alone.
func hasTrailers(h http.Header) bool {
	for name := range h {
		if len(name) > len(http.TrailerPrefix) && name[:len(http.TrailerPrefix)] == http.TrailerPrefix {
			return true
		}
	}
	return false
}

// keep puts an entry into the store, unless a purge came in between.
func (fl *fill) keep(e *entry) bool {
	c := fl.h.cache
	if !c.admit(fl.hash, fl.have) {
		return false
	}
	if !c.store.put(fl.hash, fl.key, e, fl.have, fl.since) {
		return false
	}
	fl.kept = true
	c.marks.remove(fl.hash)
	c.stats.stored.Add(1)
	return true
}

// finishDiscarding answers from the store after the handler said nothing new, or failed.
func (fl *fill) finishDiscarding() {
	c := fl.h.cache
	now := time.Now()
	if fl.stored != nil {
		if !fl.background {
			fl.outer.restore(fl.w.Header())
			fl.serveStale(now)
		}
		return
	}
	h := fl.fields()
	e := fl.freshen(h, fl.v, now)
	if len(fl.offers) != 0 {
		e.chosen = selectFields(e.vary, fl.r.Header) // it answers this request from now on
		e.complete(e.body)
	}
	cookies := h["Set-Cookie"]
	fl.outer.restore(fl.w.Header())
	fl.markCookie()
	if fl.v.store {
		fl.keep(e)
	} else if fl.v.byself && fl.forward == "stale" {
		fl.supersede()
	}
	if fl.v.share {
		fl.end(complete, e, false)
	} else {
		fl.end(released, nil, false)
	}
	if fl.background {
		return
	}
	if !fl.h.rules.storeSetCookie && len(cookies) != 0 {
		fl.w.Header()["Set-Cookie"] = cookies // for this client alone
	}
	fl.mark(Revalidated)
	fl.h.serve(fl.w, fl.r, e, e.age(now), c.name+"; fwd="+fl.forward+"; fwd-status=304") // and no hit: RFC 9211, section 2.1
}

func (fl *fill) serveStale(now time.Time) {
	fl.mark(Stale)
	how := "hit"
	if fl.shed == nil {
		how = "fwd=" + fl.forward
		if fl.mode == discarding {
			how += "; fwd-status=" + strconv.Itoa(fl.status)
		}
		if m, ok := find[interface{ MarkRun() }](fl.w); ok {
			m.MarkRun()
		}
	}
	fl.h.serveStale(fl.w, fl.r, fl.stored, now, how, fl.reason)
}

// abort ends a fill whose handler panicked or called Goexit. Nothing is stored; nothing is
// recovered: the panic goes on when abort returns. What the handler has written is written, as without us: whoever recovers outside
// may end the response as if it were whole.
func (fl *fill) abort() {
	unwell := fl.unanswered()
	fl.end(failed, nil, unwell)
	if fl.background {
		return
	}
	if !unwell {
		switch body := fl.recordedBody(); {
		case fl.mode != recording:
		case fl.pump != nil:
			<-fl.pump.done // where that panics, too, the handler's panic goes on
		case len(body) > fl.sent:
			fl.w.Write(body[fl.sent:])
		}
		return
	}
	// The client can still have a whole, stale response before its connection breaks.
	now := time.Now()
	if fl.have == nil || !fl.h.rules.staleAllowed(fl.have, now, panicked) {
		fl.mark(Miss)
		if fl.mode == undecided {
			fl.tell()
		} else { // nor will the header of what there was to be, and whoever recovers outside answers with an error
			fl.outer.restore(fl.w.Header())
		}
		return
	}
	fl.outer.restore(fl.w.Header())
	fl.stored, fl.reason = fl.have, "panic"
	if fl.r.ProtoMajor == 1 {
		// The server is about to break the connection off, and nobody is to send another request on it. In HTTP/2 it
		// breaks off the stream alone.
		fl.w.Header()["Connection"] = []string{"close"}
	}
	fl.serveStale(now)
	http.NewResponseController(fl.w).Flush()
}

// unanswered says that nothing has gone to the client yet.
func (fl *fill) unanswered() bool {
	return fl.mode == undecided || fl.deferred && fl.mode == recording || fl.mode == discarding
}

func (fl *fill) mark(res Result) {
	if !fl.background {
		fl.h.cache.count(fl.w, fl.r, res)
	}
}
