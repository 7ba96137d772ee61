package middleware

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/spillgate/spillgate/pool/jobs"
)

// Async returns a handler that gives one kind of background job an HTTP interface: POST submits a job, GET and HEAD
// ask for its state, DELETE cancels it.
//
//	reports := middleware.Async(engine, "report")
//	mux.Handle("POST /reports", reports)
//	mux.Handle("GET /reports/{id}", reports)
//	mux.Handle("DELETE /reports/{id}", reports)
//
// POST takes the payload as application/json and answers 202 Accepted with the job's Location and a Retry-After. With
// "Prefer: wait=N" (RFC 7240) it waits up to N seconds for the job to end, and then answers 200 with what GET would
// give. "Prefer: respond-async" says that the client does not want to wait. No wait is longer than the deadline of
// the request's context allows; behind somebody else's writer without Unwrap, none is longer than
// [http.Server.WriteTimeout]. Preference-Applied says what was honoured. A POST repeated with the same
// Idempotency-Key gives the same job; with another payload it is 422. A malformed payload is 400, one that is too
// large 413, one of another type than JSON 415, and a kind that the engine does not know 404. A full engine is 503,
// and a client whose own share is full is 429, both with Retry-After.
//
// GET answers with the job as JSON. It answers with a page that has a progress bar if a browser asks, and with a
// stream of server-sent events if the request has Accept: text/event-stream. The stream sends one event for each
// change, or for the latest of several, and resumes after Last-Event-ID. JSON and page have a weak ETag, and a
// Retry-After while the job is not final. An unknown job is 404, one that has expired 410.
//
// DELETE is 204 if the job had not begun, 202 if it is running and was asked to stop, 409 if it had ended.
//
// The id is the path value "id", or else the last element of the path. While a client waits for the job, by its
// preference or in a stream, its request holds no slot of a [Pool] and no permit of a [Concurrency] around the
// handler, and is not a slow call to a [Breaker]. If a writer without Unwrap is between the two, such as that of
// [http.TimeoutHandler], the request keeps them, except for the slot of the pool in which the jobs of a [jobs.Local]
// run.
//
// [http.Server.Shutdown] and [Stack.Shutdown] wait for such requests as for any other, and these wait for their jobs:
// if that takes too long, the clients are cut off without an answer. So shut an engine in memory down beside the
// server, and give it less time: then clients are told how their jobs end, also those whose jobs are dropped:
//
//	srv.RegisterOnShutdown(func() {
//		ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second) // of the 10 s that package health gives requests
//		defer cancel()
//		if err := engine.Shutdown(ctx); err != nil {
//			log.Print(err) // names what was dropped; Run below does not name the jobs that ran and have ended since
//		}
//	})
//	err := h.Run(ctx, srv, engine, stack) // of package health
//
// The server does not wait for that function. As soon as the server has ended, jobs that no client waits for would be
// dropped with the pool that they run in, or with the process. So Run shuts the engine down once more, after the
// server and before the engine's pool, and that call waits for the same end.
//
// Where jobs outlive the process, end the contexts of these requests instead. A POST is then answered with 202; a
// stream ends, and its client connects again.
//
// Async panics if e or an option is nil, or kind is empty.
func Async(e jobs.Engine, kind string, opts ...AsyncOption) http.Handler {
	if e == nil || kind == "" {
		panic("middleware: Async: it needs an engine and the kind of job that the route submits")
	}
	a := &async{engine: e, kind: kind, config: asyncConfig{
		body:      1 << 20,
		longest:   time.Minute,
		streams:   asyncPlaces,
		heartbeat: 15 * time.Second,
		location:  jobLocation,
		owner:     func(*http.Request) string { return "" },
	}}
	for i, o := range opts {
		if o == nil {
			panic(nilOption("Async", i))
		}
		o.applyAsync(&a.config)
	}
	a.open.most, a.waits.most = a.config.streams, asyncPlaces
	return a
}

// AsyncOption configures [Async].
type AsyncOption interface{ applyAsync(*asyncConfig) }

type asyncConfig struct {
	body          int64
	wait, longest time.Duration
	streams       int
	heartbeat     time.Duration
	owner         func(*http.Request) string
	location      func(r *http.Request, id string) string
	submit        func(*http.Request, *jobs.SubmitOptions)
	failed        func(*http.Request, error)
}

type asyncOption func(*asyncConfig)

func (f asyncOption) applyAsync(c *asyncConfig) { f(c) }

// WithOwner says whose a request is: a user's name, an account. A job belongs to the owner who submitted it, and is
// 404 to all others. Idempotency keys and the engine's shares are per owner. [jobs.Local] takes names of at most 255
// bytes; a POST with a longer one is 413. Without WithOwner anybody who knows the id of a job, 128 random bits, may
// see and cancel it. It panics if f is nil.
func WithOwner(f func(*http.Request) string) AsyncOption {
	if f == nil {
		panic("middleware: WithOwner: f is nil; leave the option out")
	}
	return asyncOption(func(c *asyncConfig) { c.owner = f })
}

// WithWait makes a POST wait up to d for the job to end if the client states no preference. No POST waits longer than
// longest, whatever the client prefers. The defaults are 0 and one minute. At most 1,000 requests wait at a time, and
// at most a quarter of that for one owner ([WithOwner]); beyond that a POST is answered at once. It panics unless 0
// <= d <= longest.
func WithWait(d, longest time.Duration) AsyncOption {
	if d < 0 || longest < d {
		panic(fmt.Sprintf("middleware: WithWait(%v, %v): the times must not be negative and in order", d, longest))
	}
	return asyncOption(func(c *asyncConfig) { c.wait, c.longest = d, longest })
}

// WithMaxPayload bounds the body of a POST, in bytes. The default is 1 MiB; the engine has a bound of its own. It
// panics if n is less than 1.
func WithMaxPayload(n int64) AsyncOption {
	if n < 1 {
		panic(fmt.Sprintf("middleware: WithMaxPayload(%d): a payload has at least 1 byte", n))
	}
	return asyncOption(func(c *asyncConfig) { c.body = n })
}

// WithStreams bounds how many event streams are open at a time; the default is 1,000. One owner ([WithOwner]) may
// have a quarter of them, but always at least one. Beyond the bound a client gets the job as JSON, once. It panics if
// n is negative.
func WithStreams(n int) AsyncOption {
	if n < 0 {
		panic(fmt.Sprintf("middleware: WithStreams(%d): the number must not be negative", n))
	}
	return asyncOption(func(c *asyncConfig) { c.streams = n })
}

// WithLocation says where a job is found, for the Location field. The default adds the id to the path of the POST as
// the client sent it, with one slash at its start; that is right unless a proxy changes paths. It panics if f is nil.
func WithLocation(f func(r *http.Request, id string) string) AsyncOption {
	if f == nil {
		panic("middleware: WithLocation: f is nil; leave the option out")
	}
	return asyncOption(func(c *asyncConfig) { c.location = f })
}

// WithSubmit lets f set priority, time and attempts of a job from the request that submits it. Key and Client are set
// already. It panics if f is nil.
func WithSubmit(f func(*http.Request, *jobs.SubmitOptions)) AsyncOption {
	if f == nil {
		panic("middleware: WithSubmit: f is nil; leave the option out")
	}
	return asyncOption(func(c *asyncConfig) { c.submit = f })
}

// WithEngineFailure calls f with each error of the engine that no client is told of, such as a database that does not
// answer. The client gets a 500, or its wait or event stream ends before the job does. f runs on the request's
// goroutine. It panics if f is nil.
func WithEngineFailure(f func(*http.Request, error)) AsyncOption {
	if f == nil {
		panic("middleware: WithEngineFailure: f is nil; leave the option out")
	}
	return asyncOption(func(c *asyncConfig) { c.failed = f })
}

type async struct {
	engine jobs.Engine
	kind   string
	config asyncConfig
	open   places // event streams
	waits  places // POSTs that wait for their job, or for the client to take the answer after that
	shown  shown
}

// asyncPlaces bounds how many POSTs wait for their jobs, and how many event streams are open unless WithStreams does: they hold no permit that would.
const asyncPlaces = 1000

func (a *async) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodPost:
		a.submit(w, r)
	case http.MethodGet, http.MethodHead:
		a.status(w, r)
	case http.MethodDelete:
		a.cancel(w, r)
	default:
		w.Header().Set("Allow", "GET, HEAD, POST, DELETE")
		asyncProblem(w, r, http.StatusMethodNotAllowed, "Use POST to submit a job, GET to ask how it is and DELETE to cancel it.")
	}
}

func (a *async) submit(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" && !strings.HasSuffix(t, "+json") {
		asyncProblem(w, r, http.StatusUnsupportedMediaType, "The payload of a job is application/json.")
		return
	}
	payload, err := io.ReadAll(http.MaxBytesReader(w, r.Body, a.config.body))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			asyncProblem(w, r, http.StatusRequestEntityTooLarge, fmt.Sprintf("The payload has more than %d bytes.", a.config.body))
		} else {
			asyncProblem(w, r, http.StatusBadRequest, "The payload could not be read.")
		}
		return
	}
	key, ok := idempotencyKey(r.Header)
	if !ok {
		asyncProblem(w, r, http.StatusBadRequest, "The Idempotency-Key is one string of at most 255 bytes.")
		return
	}
	o := jobs.SubmitOptions{Key: key, Client: a.config.owner(r)}
	if a.config.submit != nil {
		a.config.submit(r, &o)
	}
	j, _, err := a.engine.Submit(r.Context(), a.kind, payload, o)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	p := parsePrefer(r.Header)
	wait := a.config.wait
	if p.async {
		wait = 0
	}
	if p.hasWait {
		wait = p.wait
	}
	h := w.Header()
	h.Add("Vary", "Prefer")
	if wait = min(wait, a.config.longest); wait > 0 && !j.State.Final() {
		if a.waits.take(o.Client) {
			defer a.waits.leave(o.Client) // not before the answer is written: that holds no permit either
			var waited bool
			j, waited = a.await(w, r, j, began, wait)
			p.hasWait = p.hasWait && waited
		} else {
			wait, p.hasWait = 0, false
		}
	}
	location := a.config.location(r, j.ID)
	var applied []string
	if p.async && !j.State.Final() {
		applied = append(applied, "respond-async")
	}
	if p.hasWait && p.wait <= a.config.longest {
		applied = append(applied, "wait="+strconv.FormatInt(int64(p.wait/time.Second), 10))
	}
	if applied != nil {
		h.Set("Preference-Applied", strings.Join(applied, ", "))
	}
	h.Set("Location", location)
	if j.State.Final() && wait > 0 {
		h.Set("Content-Location", location)
		a.write(w, r, j, http.StatusOK, formJSON)
		return
	}
	a.write(w, r, j, http.StatusAccepted, formJSON)
}

// await returns the job as it is when it has ended or the time is over. waited is false where the engine failed before, or the request's own
// time is over sooner.
func (a *async) await(w http.ResponseWriter, r *http.Request, j jobs.Job, began time.Time, wait time.Duration) (now jobs.Job, waited bool) {
	rec := recorderOf(w)
	if rec != nil {
		rec.becameLong(streamJob)
	}
	whole := true
	// Who has set an end to the request may answer himself then, or cut it off, and the client would not know the id of the job.
	before := func(end time.Time) {
		left := time.Until(end)
		if left -= min(left/10, time.Second); left < wait {
			wait, whole = left, false
		}
	}
	if end, ok := r.Context().Deadline(); ok { // as of http.TimeoutHandler
		before(end)
	}
	if srv, ok := r.Context().Value(http.ServerContextKey).(*http.Server); ok && srv.WriteTimeout > 0 {
		// The server's own end can be put off, but not every writer can be told so.
		if http.NewResponseController(w).SetWriteDeadline(time.Now().Add(wait).Add(srv.WriteTimeout)) != nil {
			if rec != nil {
				began = rec.start
			}
			before(began.Add(srv.WriteTimeout))
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	for next, err := range a.engine.Watch(ctx, j.ID) {
		if err != nil {
			a.engineFailed(ctx, r, err)
			break // or the time is over, or the client has gone
		}
		j = next
	}
	return j, j.State.Final() || whole && ctx.Err() != nil
}

// jobLocation is the default of WithLocation.
func jobLocation(r *http.Request, id string) string {
	p := r.URL.EscapedPath()
	if u, err := url.ParseRequestURI(r.RequestURI); err == nil {
		p = u.EscapedPath() // as it was before anybody stripped a prefix
	}
	p = "/" + strings.TrimLeft(p, "/") // two at the start would make a host of what follows (RFC 3986, section 4.2)
	return strings.TrimSuffix(p, "/") + "/" + url.PathEscape(id)
}

// idempotencyKey returns the Idempotency-Key, which the draft of the IETF's httpapi group makes
// a string in quotes and most clients send without.
func idempotencyKey(h http.Header) (string, bool) {
	all := h.Values("Idempotency-Key")
	if len(all) == 0 {
		return "", true
	}
	k := strings.TrimSpace(all[0])
	if len(k) >= 2 && k[0] == '"' && k[len(k)-1] == '"' {
		k = k[1 : len(k)-1]
	}
	return k, len(all) == 1 && k != "" && len(k) <= 255
}

// find returns the job that the request is about, if it is the client's.
func (a *async) find(r *http.Request) (jobs.Job, error) {
	id := r.PathValue("id")
	if id == "" {
		id = path.Base(r.URL.Path)
	}
	j, err := a.engine.Get(r.Context(), id)
	if err == nil && (j.Kind != a.kind || j.Client != a.config.owner(r)) {
		return jobs.Job{}, jobs.ErrNotFound
	}
	return j, err
}

func (a *async) cancel(w http.ResponseWriter, r *http.Request) {
	j, err := a.find(r)
	if err == nil {
		j, err = a.engine.Cancel(r.Context(), j.ID)
	}
	switch {
	case errors.Is(err, jobs.ErrFinal):
		asyncProblem(w, r, http.StatusConflict, "The job has ended already: "+string(j.State)+".")
	case err != nil:
		a.fail(w, r, err)
	case j.State.Final():
		w.Header()["Cache-Control"] = noStore
		w.WriteHeader(http.StatusNoContent)
	default:
		a.write(w, r, j, http.StatusAccepted, formJSON)
	}
}

var shareFull = newRejectBody(problemQuota, "Too many unfinished jobs", http.StatusTooManyRequests,
	"Your unfinished jobs are as many, or as large, as they may be. Retry after the time given.", nil)

// fail answers an error of the engine.
func (a *async) fail(w http.ResponseWriter, r *http.Request, err error) {
	var after time.Duration
	if e, ok := errors.AsType[*jobs.Error](err); ok {
		after = e.RetryAfter
	}
	refuse := func(status int, body *rejectBody) {
		w, rec := record(w, r)
		j := rejecter{layer: "pool", status: status, spread: -1}
		j.reject(w, r, rec, err, after, "", body)
	}
	switch {
	case errors.Is(err, jobs.ErrShareFull):
		refuse(http.StatusTooManyRequests, shareFull)
	case errors.Is(err, jobs.ErrFull), errors.Is(err, jobs.ErrShutdown):
		refuse(http.StatusServiceUnavailable, reducedCapacity)
	case errors.Is(err, jobs.ErrNotFound):
		asyncProblem(w, r, http.StatusNotFound, "There is no such job.")
	case errors.Is(err, jobs.ErrUnknownKind):
		asyncProblem(w, r, http.StatusNotFound, "There is no such kind of job.")
	case errors.Is(err, jobs.ErrExpired):
		asyncProblem(w, r, http.StatusGone, "The job has ended and is no longer kept.")
	case errors.Is(err, jobs.ErrMalformed):
		asyncProblem(w, r, http.StatusBadRequest, "The payload is not the JSON that this job takes.")
	case errors.Is(err, jobs.ErrTooLarge):
		asyncProblem(w, r, http.StatusRequestEntityTooLarge, "The payload is too large.")
	case errors.Is(err, jobs.ErrKeyReused):
		asyncProblem(w, r, http.StatusUnprocessableEntity, "This Idempotency-Key was used for another payload.")
	case r.Context().Err() != nil:
		// Perhaps nobody is there to be answered, but a client whose time is over is, and must not take silence for success.
		asyncProblem(w, r, http.StatusServiceUnavailable, "The time for the request was over before the job engine had answered.")
	default:
		a.engineFailed(r.Context(), r, err)
		asyncProblem(w, r, http.StatusInternalServerError, "The job engine failed.")
	}
}

// engineFailed tells of an error of the engine, unless it is that ctx has ended, which was given to it.
func (a *async) engineFailed(ctx context.Context, r *http.Request, err error) {
	if a.config.failed != nil && ctx.Err() == nil {
		a.config.failed(r, err)
	}
}

// asyncProblem answers with a problem document of no particular type (RFC 9457, section 4.2.1).
func asyncProblem(w http.ResponseWriter, r *http.Request, status int, detail string) {
	w.Header()["Cache-Control"] = noStore
	title := http.StatusText(status)
	switch status { // where package http has an older name than RFC 9110, section 15.5
	case http.StatusRequestEntityTooLarge:
		title = "Content Too Large"
	case http.StatusUnprocessableEntity:
		title = "Unprocessable Content"
	}
	newRejectBody("about:blank", title, status, detail, nil).write(w, r, status)
}
