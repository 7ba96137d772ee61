package middleware

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// Rejection is a request that a layer refused.
type Rejection struct {
	// Layer is "rate", "concurrency", "breaker", "pool" or "drain".
	Layer string
	// Status is 429 if a client is over its own quota, 503 if the server cannot serve the request.
	Status int
	// RetryAfter is how long the client should wait, not yet rounded up to whole seconds or spread; 0 if it is not
	// known.
	RetryAfter time.Duration
	// Policy is the name of the rate policy that refused; empty elsewhere.
	Policy string
	// Err is the reason; errors.Is tells [limiter.ErrRateLimited], [limiter.ErrSaturated],
	// [limiter.ErrWouldMissDeadline], [breaker.ErrOpen] and the like apart.
	Err error

	body *rejectBody
}

// Write writes the response that would have been written without [WithReject]: the status and a problem document (RFC
// 9457). It sets Content-Type and, if no Content-Encoding is set, Content-Length. It writes no body in answer to
// HEAD. A Status that was changed before is used both as the status and in the document. The zero Rejection writes
// 503.
//
// A handler that is kept from its work, for example by the breaker of a transport (package outbound), says so with a
// Rejection of its own. If that has a Layer, Write also sets Retry-After and Cache-Control. If the Layer is one of
// those named above, and only then, the layers around the handler take the response for a refusal, which says nothing
// about the handler's health. With a 502 instead, the breaker of the route would count as failures what the other
// breaker refuses, even while that one lets calls in slowly after an outage, and would open again. Do the same for a
// set that has no endpoint, and with "concurrency" for a limit:
//
//	proxy.ErrorHandler = func(w http.ResponseWriter, r *http.Request, err error) {
//		if open, ok := errors.AsType[*breaker.OpenError](err); ok {
//			(&middleware.Rejection{Layer: "breaker", RetryAfter: open.RetryAfter, Err: err}).Write(w, r)
//			return
//		}
//		w.WriteHeader(http.StatusBadGateway)
//	}
func (j *Rejection) Write(w http.ResponseWriter, r *http.Request) {
	b, status := j.body, j.Status
	if b == nil {
		b = reducedCapacity
	}
	if status == 0 {
		status = http.StatusServiceUnavailable
	}
	if d := &b.problem; d.Status != status {
		b = newRejectBody(d.Type, d.Title, status, d.Detail, d.Violated) // RFC 9457, section 3.1.2: it is that of the response
	}
	h := w.Header()
	if j.body == nil && j.Layer != "" { // made by a handler
		by := rejecter{layer: j.Layer, spread: -1}
		by.setHeader(h, j.RetryAfter)
		if status >= 400 {
			j.tellCache(w, h)
		}
	}
	h["Content-Type"] = slices.Clone(problemType) // see own
	if !encodesOutside(h) {
		h["Content-Length"] = slices.Clone(b.length)
	}
	b.writeBody(w, r, status)
}

// tellCache tells a cache around the handler, where no recorder is between that would. See passRefusal.
func (j *Rejection) tellCache(w http.ResponseWriter, h http.Header) {
	m, ok := find[cache.ShedMarker](w)
	if _, tells := m.(recorded); !ok || tells || refusalOf(h["Cache-Control"]) == nil {
		return
	}
	err := j.Err
	if err == nil {
		err = errRefusedInside
	}
	m.MarkShed(err)
}

// rejectBody is a problem document with its header fields, made once.
type rejectBody struct {
	problem problem
	json    []byte
	length  []string
}

type problem struct {
	Type     string   `json:"type"`
	Title    string   `json:"title"`
	Status   int      `json:"status"`
	Detail   string   `json:"detail"`
	Violated []string `json:"violated-policies,omitempty"`
}

var problemType = []string{"application/problem+json"}
var noStore = []string{"no-store"}

// The problem types are those of draft-ietf-httpapi-ratelimit-headers.
const (
	problemQuota    = "https://iana.org/assignments/http-problem-types#quota-exceeded"
	problemCapacity = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
)

var reducedCapacity = newRejectBody(problemCapacity, "Temporary reduced capacity", http.StatusServiceUnavailable,
	"The server cannot take this request now. Retry after the time given.", nil)

func newRejectBody(typ, title string, status int, detail string, violated []string) *rejectBody {
	p := problem{typ, title, status, detail, violated}
	b, err := json.Marshal(p)
	if err != nil {
		panic("middleware: problem document: " + err.Error()) // strings and an int always encode
	}
	b = append(b, '\n')
	return &rejectBody{problem: p, json: b, length: []string{strconv.Itoa(len(b))}}
}

// encodesOutside reports whether a layer outside has said that it encodes what is written. Many a simple one leaves a Content-Length as it is,
// so that there must be none. Package cache has one like it.
func encodesOutside(h http.Header) bool { return len(h["Content-Encoding"]) != 0 }

func (b *rejectBody) write(w http.ResponseWriter, r *http.Request, status int) {
	h := w.Header()
	h["Content-Type"] = problemType
	if !encodesOutside(h) {
		h["Content-Length"] = b.length
	}
	b.writeBody(w, r, status)
}

func (b *rejectBody) writeBody(w http.ResponseWriter, r *http.Request, status int) {
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(b.json) // a client that has gone needs no answer
	}
}

// retryAfter holds the header values for 1 s up to its length, so that a refusal formats nothing.
var retryAfter = func() [301][]string {
	var t [301][]string
	for i := range t {
		t[i] = []string{strconv.Itoa(i)}
	}
	return t
}()

// setRetryAfter sets Retry-After to d in whole seconds, rounded up, at least 1, plus up to
// spread whole seconds at random.
func setRetryAfter(h http.Header, d, spread time.Duration) {
	s := ceilSeconds(d)
	if n := ceilSeconds(spread); spread > 0 {
		s += rand.Int64N(n + 1)
	}
	h["Retry-After"] = decimal(max(s, 1))
}

// decimals holds recent values beyond retryAfter: refusals of one limit cluster.
var decimals [64]atomic.Pointer[decimalValue]

type decimalValue struct {
	n     int64
	value []string
}

// decimal returns n as a header value, from memory if it is small or was sent lately.
func decimal(n int64) []string {
	if 0 <= n && n < int64(len(retryAfter)) {
		return retryAfter[n]
	}
	cell := &decimals[uint64(n)%uint64(len(decimals))]
	v := cell.Load()
	if v == nil || v.n != n {
		v = &decimalValue{n, []string{strconv.FormatInt(n, 10)}}
		cell.Store(v)
	}
	return v.value
}

func ceilSeconds(d time.Duration) int64 {
	if d <= 0 {
		return 0
	}
	return int64((d-1)/time.Second) + 1
}

// rejectCounts counts refusals by layer, for [Stack.Stats].
type rejectCounts struct {
	rate, concurrency, breaker, pool, drain atomic.Uint64
}

// rejecter writes the refusals of one layer.
type rejecter struct {
	layer  string
	status int
	spread time.Duration // of Retry-After; negative: half of it again, at least 2 s
	custom RejectFunc
	trace  *Trace
	count  *rejectCounts
	mark   []string // the Cache-Control of its refusals; nil is to be looked up
}

func (j *rejecter) reject(w http.ResponseWriter, r *http.Request, rec *recorder, err error, after time.Duration, policy string, body *rejectBody) {
	rec.fresh = false // it may have waited in a line, and functions of the user's are called
	rec.refusedBy(j, err)
	if j.count != nil {
		j.counter().Add(1)
	}
	j.setHeader(w.Header(), after)
	custom := j.custom
	if custom == nil {
		custom = rec.reject
	}
	if custom != nil || j.tells(rec.traces) {
		j.rejectSlow(w, r, rec, custom, Rejection{Layer: j.layer, Status: j.status, RetryAfter: after, Policy: policy, Err: err, body: body})
		return
	}
	body.write(w, r, j.status)
}

// rejectSlow is apart because its Rejection is on the heap.
func (j *rejecter) rejectSlow(w http.ResponseWriter, r *http.Request, rec *recorder, custom RejectFunc, x Rejection) {
	j.tell(r, rec, x)
	if custom != nil {
		own(w.Header())
		custom(w, r, &x)
		return
	}
	x.body.write(w, r, x.Status)
}

// own gives a response header values of its own, for a function of the user's that may edit them in place: what the
// layers set is shared by all responses.
func own(h http.Header) {
	for k, v := range h {
		h[k] = slices.Clone(v)
	}
}

// rejectLean is reject for a request without a recorder, where nobody is to be told: no other layer of
// ours, no trace, no function of the user's. See canLean.
func (j *rejecter) rejectLean(w http.ResponseWriter, r *http.Request, after time.Duration, body *rejectBody) {
	if j.count != nil {
		j.counter().Add(1)
	}
	j.setHeader(w.Header(), after)
	body.write(w, r, j.status)
}

func (j *rejecter) canLean(w http.ResponseWriter) bool {
	if j.custom != nil || j.trace != nil {
		return false
	}
	_, marks := find[cache.ShedMarker](w)
	return !marks
}

// rejectFill is reject inside a fill of the cache, for a request that needed no recorder of its own so far. It
// reports false, and has done nothing, if somebody is to be told who asks for one.
func (j *rejecter) rejectFill(w http.ResponseWriter, r *http.Request, f cache.Fill, out *recorder, err error, after time.Duration, body *rejectBody) bool {
	if j.custom != nil || j.tells(nil) {
		return false
	}
	if out != nil {
		if out.reject != nil || j.tells(out.traces) {
			return false
		}
		out.refusedInside(j)
	}
	f.Refuse(err)
	j.rejectLean(w, r, after, body)
	return true
}

// setHeader says when to come back, and that nobody keeps the answer.
func (j *rejecter) setHeader(h http.Header, after time.Duration) {
	spread := j.spread
	if spread < 0 {
		spread = max(2*time.Second, after/2)
	}
	setRetryAfter(h, after, spread)
	h["Cache-Control"] = j.noStore()
}

// refusals are what tells a refusal by a layer from a handler's answer where no writer leads from one recorder to the
// next, as through http.TimeoutHandler: a Cache-Control that is this very slice, and not one that is equal. There is
// one for each layer. It goes wherever header values go within the process, and not beyond.
var refusals = func() (t [5]refusal) {
	for i, layer := range []string{"rate", "concurrency", "breaker", "pool", "drain"} {
		t[i] = refusal{rejecter{layer: layer}, []string{"no-store"}}
	}
	return t
}()

type refusal struct {
	by      rejecter // no more of it than the name of the layer
	noStore []string
}

func (j *rejecter) noStore() []string {
	if j.mark == nil {
		return noStoreOf(j.layer)
	}
	return j.mark
}

// noStoreOf is the Cache-Control of the refusals of a layer.
func noStoreOf(layer string) []string {
	for i := range refusals {
		if refusals[i].by.layer == layer {
			return refusals[i].noStore
		}
	}
	return noStore
}

var errRefusedInside = errors.New("middleware: a layer inside refused the request")

// passRefusal is called before an error is answered. It sees to it that a refusal is known for one by the recorders around this
// one, and finds out whether the error is a refusal itself.
func (rec *recorder) passRefusal() {
	h := rec.w.Header()
	v := h["Cache-Control"]
	if len(v) != 1 || v[0] != "no-store" {
		return
	}
	if rec.shed != nil && rec.shedBy != nil {
		if mark := rec.shedBy.noStore(); &mark[0] != &v[0] {
			h["Cache-Control"] = mark // in place of what own gave to the user's function
		}
		return
	}
	if r := refusalOf(v); r != nil {
		rec.refusedBy(&r.by, errRefusedInside)
	}
}

// refusalOf returns whose refusals have this very value of Cache-Control; nil if none have.
func refusalOf(v []string) *refusal {
	for i := range refusals {
		if r := &refusals[i]; &v[0] == &r.noStore[0] {
			return r
		}
	}
	return nil
}

// tells says that somebody is to be told of refusals.
func (j *rejecter) tells(all *traces) bool {
	if t := j.trace; t != nil && t.Rejected != nil {
		return true
	}
	for ; all != nil; all = all.outer {
		if all.t.Rejected != nil {
			return true
		}
	}
	return false
}

// tell calls the traces of the layer and of the stacks.
func (j *rejecter) tell(r *http.Request, rec *recorder, x Rejection) {
	if t := j.trace; t != nil && t.Rejected != nil {
		t.Rejected(r, x)
	}
	for all := rec.traces; all != nil; all = all.outer {
		if t := all.t; t != j.trace && t.Rejected != nil {
			t.Rejected(r, x)
		}
	}
}

func (j *rejecter) counter() *atomic.Uint64 {
	switch j.layer {
	case "rate":
		return &j.count.rate
	case "concurrency":
		return &j.count.concurrency
	case "breaker":
		return &j.count.breaker
	case "pool":
		return &j.count.pool
	}
	return &j.count.drain
}
