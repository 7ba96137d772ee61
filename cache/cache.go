package cache

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Cache is a shared HTTP cache in memory. Create one with [New]; the zero value does not work. A Cache is safe for
// concurrent use.
type Cache struct {
	name      string
	store     *store
	marks     markers
	seen      *doorkeeper // nil without admission
	backing   *backing    // nil without a Store
	relayed   *relayed    // nil without a Relay
	began     time.Time
	rules     rules
	queriesMu sync.Mutex
	queries   []*queryRules // of the routes that have rules of their own, for purges
	maxObject atomic.Int64
	wantedMax int64 // WithMaxObject; 0 if that was not given
	recorded  atomic.Int64

	collapseWait      time.Duration
	revalidations     atomic.Int64
	maxRevalidations  int64
	revalidateTimeout time.Duration
	backOff           time.Duration

	trace Trace
	stats counters
}

// New returns a cache that holds at most maxBytes: bodies, header fields, keys and the cost of keeping them. It panics
// if maxBytes is less than 64 KiB, or if an option is wrong.
func New(maxBytes int64, opts ...Option) *Cache {
	if maxBytes < minBytes {
		panic(fmt.Sprintf("cache: New(%d): the budget must be at least %d bytes", maxBytes, minBytes))
	}
	cfg := config{
		name: "spillgate", maxVariants: 16, collapseWait: 5 * time.Second,
		revalidations: 16, revalidateTimeout: 30 * time.Second, backOff: time.Second, relayLimit: time.Minute,
		rules: rules{
			targets: []string{"Cdn-Cache-Control"},
			unkeyed: []string{"X-Forwarded-Host", "X-Forwarded-Scheme", "X-Forwarded-Prefix", "X-Host", "X-Original-Url",
				"X-Rewrite-Url", "X-Http-Method-Override", "Forwarded"},
			unkeyedMoves:  []string{"X-Forwarded-Proto"},
			tagFields:     []string{"Cache-Tag", "Surrogate-Key"},
			ifUnreachable: 60 * time.Second,
		},
	}
	for i, o := range opts {
		if o == nil {
			panic(fmt.Sprintf("cache: New: option %d is nil; leave it out", i))
		}
		o.applyCache(&cfg)
	}
	c := &Cache{
		name: cfg.name, store: newStore(maxBytes, 16, cfg.maxEntries, cfg.maxVariants), marks: newMarkers(),
		began: time.Now(), rules: cfg.rules, wantedMax: cfg.maxObject,
		collapseWait: cfg.collapseWait, maxRevalidations: int64(cfg.revalidations),
		revalidateTimeout: cfg.revalidateTimeout, backOff: cfg.backOff, trace: cfg.trace,
	}
	if cfg.admission {
		c.seen = newDoorkeeper()
	}
	if cfg.backing != nil {
		c.backing = newBacking(cfg.backing, cfg.backingTimeout)
	}
	if cfg.relay != nil {
		c.relayed = newRelayed(&cfg, c.began)
	}
	c.fitObject(maxBytes)
	return c
}

const minBytes = 64 << 10

// fitObject sets the largest body for a budget: not more than all that is being recorded may take together.
func (c *Cache) fitObject(maxBytes int64) {
	n := c.wantedMax
	if n == 0 {
		n = min(maxBytes/64, 8<<20)
	}
	c.maxObject.Store(min(n, maxBytes/4))
}

// SetMaxBytes changes the byte budget while the cache runs; entries beyond it are evicted at once. If n is less than 64
// KiB, SetMaxBytes returns an error and changes nothing.
func (c *Cache) SetMaxBytes(n int64) error {
	if n < minBytes {
		return fmt.Errorf("cache: SetMaxBytes(%d): the budget must be at least %d bytes", n, minBytes)
	}
	c.store.maxBytes.Store(n)
	c.fitObject(n)
	c.store.shrink(0)
	return nil
}

// Handler returns a handler that answers from the cache where it may, and otherwise calls next. Options given here hold
// for this handler and override those of [New].
//
// The handler next runs on the goroutine of the request that needs it, and a panic in it travels on. Other requests may wait for
// the response of a run. The context of such a run ends when nobody is left who reads the response; if the response can
// be stored and little of it is missing, the context ends 5 s after that.
//
// Handler panics if next or an option is nil.
func (c *Cache) Handler(next http.Handler, opts ...RouteOption) http.Handler {
	if next == nil {
		panic("cache: Handler(nil): give it the handler to cache")
	}
	p := c.rules
	for i, o := range opts {
		if o == nil {
			panic(fmt.Sprintf("cache: Handler: option %d is nil; leave it out", i))
		}
		o.applyRoute(&p)
	}
	if p.query != c.rules.query {
		c.queriesMu.Lock()
		if !slices.ContainsFunc(c.queries, p.query.equal) {
			c.queries = append(c.queries, p.query)
		}
		c.queriesMu.Unlock()
	}
	gate, _ := next.(Gate)
	return &route{cache: c, next: next, gate: gate, rules: &p}
}

// route is a handler behind the cache.
type route struct {
	cache *Cache
	next  http.Handler
	gate  Gate // next, if it is one
	rules *rules
}

// mark notes that responses for a key are not for sharing.
func (c *Cache) mark(hash uint64, now time.Time) { c.marks.add(hash, c.second(now)) }

func (c *Cache) second(now time.Time) int64 { return int64(now.Sub(c.began) / time.Second) }

// ServeHTTP answers one request.
func (h *route) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.serveOther(w, r)
		return
	}
	var stack [512]byte
	h.serveGet(w, r, h.rules.appendKey(stack[:0], r), false)
}

// serveGet answers a GET or a HEAD whose key is known, and of which it may be known that it has no body and does not bypass the cache.
func (h *route) serveGet(w http.ResponseWriter, r *http.Request, key []byte, bodiless bool) {
	c, p := h.cache, h.rules
	now := clock(w)
	hash := maphash.Bytes(c.store.seed, key)
	second := c.second(now)
	left := c.marks.left(hash, second)
	if left >= markAgain && (p.ignoreClient || len(r.Header["Cache-Control"]) == 0) {
		h.passOn(w, r) // whatever else the request says, but for only-if-cached
		return
	}
	if !bodiless && p.bypass != nil && p.bypass(r) || len(p.hosts) != 0 && !p.hosted(r) {
		h.passOn(w, r)
		return
	}
	cc := plainRequest
	if !p.ignoreClient {
		cc = parseRequest(r.Header)
	}
	unsaid := r.ContentLength < 0 && r.ProtoMajor == 3
	if cc.noStore || r.ContentLength != 0 && !unsaid || len(r.TransferEncoding) != 0 || upgrades(r.Header) ||
		originConditional(r.Header) || otherUnit(r.Header["Range"]) || len(key) > maxKey {
		if cc.onlyIfCached { // nothing stored answers this, and the handler is not to be asked
			h.refuse(w, r)
			return
		}
		h.passOn(w, r)
		return
	}
	if unsaid {
		h.serveUnsaid(w, r, key, cc.onlyIfCached)
		return
	}
	if !cc.onlyIfCached {
		if left > 0 {
			h.passOn(w, r)
			switch {
			case left >= markAgain:
			case r.Method == http.MethodHead || len(r.Header["Range"]) != 0 || conditional(r.Header):
				// The answer may be an error or a 304, which says nothing of the others.
			case p.stillRefused(w.Header()):
				// As long as there is traffic, no request has to find out again, with others waiting.
				c.mark(hash, time.Now())
			default:
				c.marks.remove(hash) // before one that is one user's alone renews it
			}
			return
		}
		if len(r.Header["Authorization"]) != 0 && c.marks.left(hash^authSalt, second) > 0 {
			h.passOn(w, r)
			return
		}
	}
	extra := p.extra(r)
	if c.backing != nil {
		c.backing.remind(now)
	}

	for attempt := 0; ; attempt++ {
		res := c.store.get(hash, key)
		e := res.variant(extra, r.Header)
		if e != nil {
			at, age := now, e.age(now)
			if e.fresh(now) && cc.accepts(e, age) {
				if attempt > 0 {
					at = time.Now() // it has waited, maybe for longer than this lasts
					age = e.age(at)
				}
				if e.fresh(at) {
					h.serveHit(w, r, e, age)
					return
				}
			}
			if cc.acceptsStale(e, age) {
				c.count(w, r, Stale)
				h.serveStale(w, r, e, at, "hit", "max-stale")
				return
			}
			if cc == plainRequest && p.staleAllowed(e, at, revalidating) {
				rests := e.busy.Load() || int64(at.Sub(c.began)) < e.retry.Load()
				if rests || !reuses(w, r) {
					c.count(w, r, Stale)
					h.serveStale(w, r, e, at, "hit", "stale-while-revalidate")
					if !rests {
						h.revalidate(r, hash, key, extra, res, e, at)
					}
					return
				}
			}
		}
		if r.Method == http.MethodGet && len(r.Header["Range"]) != 0 {
			if p := res.partial(extra, r.Header); p != nil && p.fresh(now) && cc.accepts(p, p.age(now)) {
				c.count(w, r, Hit)
				s := p.stamped(c, p.age(now))
				writePartial(w, r, p, s.age, s.status)
				return
			}
		}
		if cc.onlyIfCached {
			if attempt == 0 && h.recallAlone(r, now, hash, key, extra, res, e) {
				continue
			}
			h.refuse(w, r)
			return
		}
		if h.fetch(w, r, cc, now, hash, key, extra, res, e, attempt) {
			return
		}
	}
}

// serveUnsaid answers a request over HTTP/3 that does not say whether it has a body. quic-go gives each request without a Content-Length
// the length -1, and so nearly every GET; net/http does so only where a body follows. What comes first tells, as it does to the
// Transport of net/http; with nearly all clients, the end has come with the header. If it is the end, the handler gets a request
// that says so: others may share its run, which goes on when the stream of this body is gone.
func (h *route) serveUnsaid(w http.ResponseWriter, r *http.Request, key []byte, onlyIfCached bool) {
	markCalled(w) // a client may take its time
	inner := r.WithContext(r.Context())
	defer passBack(r, inner)
	if r.Body != nil {
		var first [1]byte
		if n, err := io.ReadFull(r.Body, first[:]); err != io.EOF || len(r.Trailer) != 0 {
			if onlyIfCached {
				h.refuse(w, r)
				return
			}
			inner.Body = &begun{r.Body, first[:n], r, inner}
			h.passOn(w, inner)
			return
		}
	}
	inner.Body, inner.ContentLength = http.NoBody, 0
	h.serveGet(w, inner, key, true)
}

// begun is the body of a request of which a byte was read.
type begun struct {
	io.ReadCloser
	first    []byte
	r, inner *http.Request // quic-go gives r another map of trailers when its body has ended
}

func (b *begun) Read(p []byte) (int, error) {
	if n := copy(p, b.first); n > 0 {
		b.first = b.first[n:]
		return n, nil
	}
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.inner.Trailer = b.r.Trailer
	}
	return n, err
}

// reuses reports whether w is of a router that gives what it keeps of a request, and its handlers go by, to another one as soon as
// we return: echo, whose writer has Before, gin, whose has WriteHeaderNow, and chi, which is in the context. Nothing runs there in the background: it
// would answer that other request, or be answered for it.
func reuses(w http.ResponseWriter, r *http.Request) bool {
	if _, ok := find[interface{ Before(func()) }](w); ok {
		return true
	}
	if _, ok := find[holdsBack](w); ok {
		return true
	}
	return inChi(r.Context())
}

// inChi reports whether one of the values in a context is chi's, or may be. What its key is know those alone who import chi; but the
// contexts of package context say what types their values have, down to the first one. One of somebody else's may say anything, hides
// what is below it, and is not to be printed: that reads what it keeps under a lock.
func inChi(ctx context.Context) bool {
	for f, ok := ctx.(*fillContext); ok; f, ok = ctx.(*fillContext) {
		ctx = f.client
	}
	if _, ok := ctx.(fmt.Stringer); !ok {
		return true
	}
	text := fmt.Sprint(ctx) // which survives a value whose String panics
	first := strings.TrimPrefix(text, "signal.NotifyContext(")
	return strings.Contains(text, ", *chi.Context)") || !strings.HasPrefix(first, "context.")
}

// upgrades reports whether a request asks for another protocol. Some clients, as Java's and curl --http2, offer HTTP/2 without TLS (h2c) with each request, and
// take any answer: it is not passed on with a fill, which is not for one connection alone.
func upgrades(h http.Header) bool {
	v := h["Upgrade"]
	return len(v) > 1 || len(v) == 1 && !strings.EqualFold(v[0], "h2c")
}

// accepts reports whether a request is content with a response that is fresh (RFC 9111, section
// 5.2.1).
func (cc *requestDirectives) accepts(e *entry, age time.Duration) bool {
	return !cc.noCache && (cc.maxAge == noDelta || age <= cc.maxAge) &&
		(cc.minFresh == noDelta || e.lifetime-age >= cc.minFresh)
}

// acceptsStale reports whether a request asks for a stale response that the response itself does
// not forbid to be used.
func (cc *requestDirectives) acceptsStale(e *entry, age time.Duration) bool {
	return (cc.anyStale || cc.maxStale != noDelta) && !cc.noCache && !e.mustValidate && !e.purged() &&
		(cc.maxAge == noDelta || age <= cc.maxAge) && (cc.anyStale || age-e.lifetime <= cc.maxStale)
}

// variant finds the stored response that a request selects.
func (r *resource) variant(extra string, h http.Header) *entry {
	if r == nil {
		return nil
	}
	for _, e := range r.variants {
		if e.part == nil && e.selects(extra, h) {
			return e
		}
	}
	return nil
}

func (p *rules) hosted(r *http.Request) bool {
	hosts := p.hosts
	if r.TLS != nil {
		hosts = p.secureHosts
	}
	return slices.Contains(hosts, withoutPort(strings.ToLower(r.Host), r.TLS != nil))
}

// passOn lets the handler answer as if the cache were not there.
func (h *route) passOn(w http.ResponseWriter, r *http.Request) {
	h.cache.count(w, r, Bypass)
	h.calls(w)
	h.next.ServeHTTP(w, r)
}

// refuse answers a request that wants a stored response or none (RFC 9111, section 5.2.1.7).
func (h *route) refuse(w http.ResponseWriter, r *http.Request) {
	h.cache.count(w, r, Miss)
	hd := w.Header()
	hd["Cache-Status"] = []string{h.cache.name + "; detail=only-if-cached"}
	hd.Set("Cache-Control", "no-store")
	if !encodesOutside(hd) {
		hd.Set("Content-Length", "0")
	}
	w.WriteHeader(http.StatusGatewayTimeout)
}

// fetch has the handler asked, by this request or by another one that is already at it. It reports
// false if the caller should look into the store again.
func (h *route) fetch(w http.ResponseWriter, r *http.Request, cc requestDirectives, now time.Time,
	hash uint64, key []byte, extra string, res *resource, e *entry, attempt int) bool {
	c := h.cache
	flightKey := string(append(append(key, 0), extra...)) // one string for both
	fl := fills.Get().(*fill)
	fl.h, fl.w, fl.r, fl.asked, fl.hash, fl.key, fl.extra, fl.have = h, w, r, now, hash, flightKey[:len(key)], extra, e
	fl.forward = "uri-miss"
	reason := &c.stats.missURL
	fl.validating = e != nil && (e.etag != "" || e.lastModified != "")
	switch {
	case e != nil && (cc.noCache || cc.maxAge != noDelta || cc.minFresh != noDelta) && e.fresh(now):
		fl.forward, reason = "request", &c.stats.missRequest
	case e != nil:
		fl.forward, reason = "stale", &c.stats.missStale
	case res != nil && res.onlyParts():
		fl.forward = "partial"
	case res != nil:
		fl.forward, reason = "vary-miss", &c.stats.missVary
	}
	fl.variant = res != nil && e == nil

	ranged := len(r.Header["Range"]) != 0
	head := r.Method == http.MethodHead
	if head {
		fl.noStore, fl.validating = true, false
	}
	fl.special = head || !fl.validating && (ranged || conditional(r.Header))
	alone := fl.special || c.collapseWait == 0 ||
		len(r.Header["Authorization"]) != 0 && !(e != nil && h.rules.forAnybody(e)) || // whose response may be his alone
		e != nil && (e.noCache || e.lifetime == 0) || // each use is to be validated for itself
		len(r.Header["Cookie"]) != 0 && c.marks.left(hash^cookSalt, c.second(now)) > 0
	if alone && attempt == 0 && !cc.noCache && h.recallAlone(r, now, hash, key, extra, res, e) {
		return false
	}
	if head && e == nil {
		// Nothing that a HEAD brings is stored; but it may be answered stale.
		h.passOn(w, r)
		return true
	}
	if !alone && r.Context().Value(filling{c}) != nil {
		h.passOn(w, r) // we are inside a fill of this very cache
		return true
	}
	if e == nil && !fl.special {
		fl.offers = res.offers(extra, r.Header["Accept-Encoding"])
	}
	fl.deferred = fl.validating && (ranged || conditional(r.Header))

	waited := false
	names := res.varyNames(extra, e)
	for round := 0; !alone; round++ {
		f, leader, again := c.store.join(fl, flightKey+secondary(names, r.Header), res)
		if again {
			if attempt < 8 {
				return false
			}
			break
		}
		if leader {
			if waited {
				fl.asked = time.Now() // also for the Store, of which more may have been purged meanwhile
			}
			if attempt == 0 && !cc.noCache && c.mayRecall(res, e, fl.asked) && fl.recall() {
				fl.end(recalled, nil, false)
				c.store.over(hash, fl.since)
				return false
			}
			fl.prompt = round == 0 && attempt == 0 && c.backing == nil && !h.rules.asks()
			reason.Add(1)
			fl.run()
			fl.recycle()
			return true
		}
		waited = true
		switch vary, next := h.follow(w, r, hash, f, e, extra, fl.forward, reason); {
		case next == served:
			return true
		case next == lookAgain && attempt < 8:
			return false
		case next == waitedOut && time.Since(now)/2 < c.collapseWait:
			continue // the first of those who have waited runs the handler again, and the others wait for either
		case next == otherVariant && round == 0:
			names = vary
			continue
		}
		break
	}
	if waited {
		fl.asked = time.Now() // waiting made nothing older that the handler will say now
	}
	fl.since = c.store.beginAlone(hash)
	reason.Add(1)
	fl.run()
	fl.recycle()
	return true
}

// varyNames are the request fields on which the variant depends that a request is likely to get:
// those of the stored one it selects, or of the newest.
func (r *resource) varyNames(extra string, e *entry) []string {
	if e != nil {
		return e.vary
	}
	if r != nil {
		for _, v := range r.variants {
			if v.extra == extra {
				return v.vary
			}
		}
	}
	return nil
}

// offers are the variants whose entity tags are shown to the handler when none is known to answer
// a request: if it chooses one of them, it need not send it. Variants by user are left out: an entity
// tag that is not as unique as it should be would show one user's page to another. So are those in a coding
// that the client does not name, and those without one where it names one and their own client did not: many a layer that compresses
// leaves the entity tag as it was.
func (r *resource) offers(extra string, acceptEncoding []string) (out []*entry) {
	if r == nil {
		return nil
	}
	coded := namesCoding(acceptEncoding)
	for _, e := range r.variants {
		if e.extra == extra && e.part == nil && e.status == http.StatusOK && !(coded && e.madePlain()) && (strong(e.etag) || strings.HasPrefix(e.etag, `W/"`)) &&
			!slices.Contains(e.vary, "Cookie") && !slices.Contains(e.vary, "Authorization") && e.decodable(acceptEncoding) {
			out = append(out, e)
		}
	}
	return out
}

// whatNext is what a request does after it waited for another one.
type whatNext uint8

const (
	served       whatNext = iota
	goAlone               // the other one's response is not for this request
	otherVariant          // nor is it, but others may wait for the same one
	lookAgain             // it was found in the Store, or made by another run, and is in memory now
	waitedOut             // it took too long
)

// follow waits for the response of a flight, and answers with it if it may. What it answers is counted by reason.
func (h *route) follow(w http.ResponseWriter, r *http.Request, hash uint64, f *flight, have *entry, extra, forward string, reason *atomic.Int64) (vary []string, next whatNext) {
	c := h.cache
	ctx := r.Context()
	left := false
	leave := func(cause error) {
		if !left {
			left = true
			f.leave(cause)
		}
	}
	defer leave(errLeft)
	timer := time.NewTimer(c.collapseWait)
	defer timer.Stop()
	seen := reader{offset: -1, nudged: -1}
	for {
		n, err := f.await(ctx, timer.C, &seen)
		if err != nil {
			leave(err)
			if errors.Is(err, errWaited) {
				// Whoever comes from now on waits for another run, and not for as long again for this one.
				c.store.land(hash, f, pending)
				return nil, waitedOut
			}
			reason.Add(1)
			return nil, h.giveUp(w, r)
		}
		if n.head != nil && !seen.head {
			seen.head = true
			if !n.head.selects(extra, r.Header) {
				return n.head.vary, otherVariant
			}
			if n.outcome == pending && n.length >= 0 && r.Method == http.MethodGet &&
				!conditional(r.Header) && len(r.Header["Range"]) == 0 {
				reason.Add(1)
				h.stream(w, r, f, n.head, n.length, forward)
				return nil, served
			}
		}
		switch n.outcome {
		case complete:
			if !n.entry.selects(extra, r.Header) {
				return n.entry.vary, otherVariant
			}
			reason.Add(1)
			c.count(w, r, Collapsed)
			h.serve(w, r, n.entry, n.entry.age(time.Now()), c.name+"; fwd="+forward+"; collapsed")
			return nil, served
		case failed:
			now := time.Now()
			if n.unwell && have != nil && h.rules.staleAllowed(have, now, refused) {
				reason.Add(1)
				c.count(w, r, Stale)
				h.serveStale(w, r, have, now, "hit", "collapsed")
				return nil, served
			}
			return nil, goAlone
		case released:
			return nil, goAlone
		case recalled:
			return nil, lookAgain
		}
	}
}

var errLeft = errors.New("cache: nobody waits for the response any more")

// giveUp ends a request whose own context ended while it waited. Its client may be there still, where its time is up or the
// server gives up its requests, and would take silence for a 200.
func (h *route) giveUp(w http.ResponseWriter, r *http.Request) whatNext {
	h.cache.count(w, r, Miss)
	status := http.StatusServiceUnavailable
	if r.Context().Err() == context.DeadlineExceeded {
		status = http.StatusGatewayTimeout
	}
	hd := w.Header()
	hd.Set("Cache-Control", "no-store")
	if !encodesOutside(hd) {
		hd.Set("Content-Length", "0")
	}
	w.WriteHeader(status)
	return served
}

// stream sends a response while it is being recorded. Its length is known, so that breaking off is
// as visible to this client as it is to the leader's.
func (h *route) stream(w http.ResponseWriter, r *http.Request, f *flight, head *entry, length int64, forward string) {
	c := h.cache
	c.count(w, r, Collapsed)
	hd := w.Header()
	encoded := encodesOutside(hd)
	for i := range head.fields {
		f := field{head.fields[i].name, slices.Clip(head.fields[i].values)}
		f.put(hd)
	}
	if bodyAllowed(head.status) && !encoded {
		hd["Content-Length"] = []string{fmt.Sprint(length)}
	}
	hd["Age"] = []string{fmt.Sprint(int64(head.age(time.Now()) / time.Second))}
	earlier, _ := head.values("Cache-Status")
	hd["Cache-Status"] = withStatus(earlier, c.name+"; fwd="+forward+"; collapsed")
	w.WriteHeader(head.status)
	seen := reader{head: true}
	for {
		nudged := seen.nudged
		n, err := f.await(r.Context(), nil, &seen)
		if err != nil {
			return // the client is gone
		}
		if len(n.body) > 0 {
			m, err := w.Write(n.body)
			if seen.offset += m; err != nil {
				return
			}
		}
		if seen.nudged != nudged {
			http.NewResponseController(w).Flush()
		}
		switch {
		case len(n.body) > 0: // there may be more
		case n.outcome == complete:
			return
		case n.outcome != pending:
			panic(http.ErrAbortHandler) // the response broke off
		}
	}
}

// trouble is why a stale response might be served.
type trouble uint8

const (
	revalidating trouble = iota
	erring               // 500 or 503 of the handler
	unreachable          // 502 or 504
	refused              // by a protecting layer
	panicked
)

// staleAllowed reports whether a stale response may be served (RFC 9111, section 4.2.4; RFC 5861).
func (p *rules) staleAllowed(e *entry, now time.Time, why trouble) bool {
	if e.mustValidate || e.noCache || e.status >= 500 {
		return false
	}
	window := time.Duration(0)
	switch {
	case why == revalidating:
		if window = e.whileStale; window == noDelta {
			window = p.whileStale
		}
	case e.ifError != noDelta:
		window = e.ifError
	case why == erring:
		window = p.ifError
	default:
		window = max(p.ifError, p.ifUnreachable)
	}
	return window > 0 && e.age(now)-e.ends() <= window
}

// mayHideFailure reports whether the client gets the stored response in place of a failure.
func (fl *fill) mayHideFailure(status int, now time.Time) bool {
	if fl.have == nil {
		return false
	}
	why := refused
	switch {
	case fl.shed != nil:
		fl.reason = "shed"
	case status == http.StatusBadGateway || status == http.StatusGatewayTimeout:
		why, fl.reason = unreachable, "unreachable"
	case status == http.StatusInternalServerError || status == http.StatusServiceUnavailable:
		why, fl.reason = erring, "stale-if-error"
	default:
		return false
	}
	return fl.h.rules.staleAllowed(fl.have, now, why)
}

// revalidate begins a background validation of a stale response, unless one is under way, too many
// are, or the last one failed just now.
func (h *route) revalidate(r *http.Request, hash uint64, key []byte, extra string, res *resource, e *entry, now time.Time) {
	c := h.cache
	if !e.busy.CompareAndSwap(false, true) {
		return
	}
	began := false
	defer func() {
		if !began {
			e.busy.Store(false)
		}
	}()
	if int64(now.Sub(c.began)) < e.retry.Load() { // one has begun and failed since
		return
	}
	if c.revalidations.Add(1) > c.maxRevalidations {
		c.revalidations.Add(-1)
		return
	}
	flightKey := string(append(append(key, 0), extra...))
	fl := &fill{h: h, w: &sink{make(http.Header)}, asked: now, hash: hash, key: flightKey[:len(key)], extra: extra,
		have: e, forward: "stale", background: true, validating: e.etag != "" || e.lastModified != ""}
	f, leader, _ := c.store.join(fl, flightKey+secondary(e.vary, r.Header), res)
	if !leader {
		if f != nil {
			f.leave(errLeft)
		}
		c.revalidations.Add(-1)
		return
	}
	c.stats.revalidations.Add(1)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), c.revalidateTimeout)
	fl.r = r.Clone(ctx)
	fl.r.Method = http.MethodGet
	for _, name := range [...]string{"If-None-Match", "If-Modified-Since", "If-Range", "Range"} {
		delete(fl.r.Header, name)
	}
	began = true
	go fl.revalidate(cancel)
}

// revalidate runs the handler without a client. A panic in it has no server above to log it: it is
// counted and given to the trace, and the key is left alone for a while, as after any failure.
func (fl *fill) revalidate(cancel context.CancelFunc) {
	c, stale := fl.h.cache, fl.have // another one may be chosen by the handler, or recalled
	good := false
	defer func() {
		cancel()
		c.revalidations.Add(-1)
		if v := recover(); v != nil {
			good = false
			if v != http.ErrAbortHandler {
				c.stats.revPanics.Add(1)
				if c.trace.RevalidationPanic != nil {
					c.trace.RevalidationPanic(fl.r, v, debug.Stack())
				}
			}
		}
		if !good {
			c.stats.revErrors.Add(1)
			wait := min(c.backOff, maxDelta*time.Second>>5) << min(fl.have.tries.Add(1)-1, 5)
			fl.have.retry.Store(int64(time.Since(c.began) + wait))
		}
		stale.busy.Store(false)
	}()
	if c.backing != nil && c.doubted(fl.have) && fl.recall() {
		fl.end(recalled, nil, false)
		c.store.over(fl.hash, fl.since)
		good = true
		return
	}
	fl.run()
	good = fl.shed == nil && !fl.spare && fl.status < 500 && fl.status != 0 && !passing(fl.status) && !fl.broken
}
