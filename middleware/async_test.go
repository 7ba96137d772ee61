package middleware_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
	"github.com/spillgate/spillgate/pool/jobs"
)

// asyncServer is a mux with a route whose jobs take as many milliseconds as they are told.
type asyncServer struct {
	http.Handler
	engine *jobs.Local
}

type asyncArgs struct {
	MS int `json:"ms"`
}

func newAsync(t *testing.T, local []jobs.LocalOption, opts ...middleware.AsyncOption) asyncServer {
	t.Helper()
	m := jobs.NewMux()
	jobs.Register(m, "report", func(ctx context.Context, a asyncArgs) (string, error) {
		for i := range 4 {
			jobs.Report(ctx, jobs.Progress{Done: int64(i), Total: 4, Note: "part " + fmt.Sprint(i)})
			select {
			case <-time.After(time.Duration(a.MS) * time.Millisecond / 4):
			case <-ctx.Done():
				return "", context.Cause(ctx)
			}
		}
		if a.MS < 0 {
			panic("password hunter2")
		}
		return "<b>ready</b>", nil
	})
	e := jobs.NewLocal(m, pool.New(pool.WithSlots(1)), local...)
	t.Cleanup(func() { e.Close() })
	h := middleware.Async(e, "report", opts...)
	mux := http.NewServeMux()
	mux.Handle("POST /reports", h)
	mux.Handle("/reports/{id}", h)
	return asyncServer{mux, e}
}

func (s asyncServer) do(method, target, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if method == "POST" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// status fails unless w has the status; a refusal must be a problem document.
func status(t *testing.T, w *httptest.ResponseRecorder, want int) {
	t.Helper()
	if w.Code != want {
		t.Fatalf("status %d, want %d: %s", w.Code, want, w.Body)
	}
	if want >= 400 {
		var p struct {
			Status int    `json:"status"`
			Title  string `json:"title"`
		}
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Status != want || w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("no problem document: %v, %s", err, w.Body)
		}
		if cc := w.Header().Get("Cache-Control"); cc != "no-store" {
			t.Errorf("Cache-Control of a refusal: %q", cc)
		}
	}
}

type asyncJob struct {
	ID         string          `json:"id"`
	State      string          `json:"state"`
	Result     json.RawMessage `json:"result"`
	Fraction   float64         `json:"fraction"`
	RetryAfter int             `json:"retry_after"`
	Cancelling bool            `json:"cancelling"`
}

func decodeJob(t *testing.T, b []byte) asyncJob {
	t.Helper()
	var j asyncJob
	if err := json.Unmarshal(b, &j); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return j
}

func TestAsyncLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAsync(t, nil)
		w := s.do("POST", "/reports", `{"ms":1000}`)
		status(t, w, 202)
		j := decodeJob(t, w.Body.Bytes())
		at := w.Header().Get("Location")
		if at != "/reports/"+j.ID || w.Header().Get("Retry-After") == "" {
			t.Errorf("Location %q, Retry-After %q", at, w.Header().Get("Retry-After"))
		}
		if w.Header().Get("Preference-Applied") != "" {
			t.Error("a preference was applied that was not stated")
		}
		if !bytes.Contains(w.Body.Bytes(), []byte("\n  \"state\"")) {
			t.Errorf("not for a person to read: %s", w.Body)
		}
		time.Sleep(600 * time.Millisecond) // in a synctest bubble
		w = s.do("GET", at, "")
		status(t, w, 200)
		if j := decodeJob(t, w.Body.Bytes()); j.State != "running" || j.Fraction != 0.5 || j.RetryAfter < 1 || w.Header().Get("Retry-After") == "" {
			t.Errorf("half way: %s", w.Body)
		}
		tag := w.Header().Get("ETag")
		if w := s.do("GET", at, "", "If-None-Match", `"x", `+tag); w.Code != 304 || w.Body.Len() != 0 || w.Header().Get("ETag") != tag {
			t.Errorf("unchanged: %d %v", w.Code, w.Header())
		}
		time.Sleep(time.Second) // in a synctest bubble
		w = s.do("GET", at, "", "If-None-Match", tag)
		status(t, w, 200)
		if j := decodeJob(t, w.Body.Bytes()); j.State != "succeeded" || string(j.Result) != `"\u003cb\u003eready\u003c/b\u003e"` && string(j.Result) != `"<b>ready</b>"` || j.Fraction != 1 || w.Header().Get("Retry-After") != "" {
			t.Errorf("ended: %s", w.Body)
		}
		w = s.do("HEAD", at, "")
		if w.Code != 200 || w.Body.Len() != 0 || w.Header().Get("Content-Length") == "" {
			t.Errorf("HEAD: %d, %d bytes", w.Code, w.Body.Len())
		}
		status(t, s.do("DELETE", at, ""), 409)
		status(t, s.do("GET", "/reports/unknown", ""), 404)
		status(t, s.do("DELETE", "/reports/unknown", ""), 404)
		time.Sleep(2 * time.Hour) // in a synctest bubble
		status(t, s.do("GET", at, ""), 410)
		status(t, s.do("DELETE", at, ""), 410)
		w = s.do("PUT", at, "")
		status(t, w, 405)
		if w.Header().Get("Allow") == "" {
			t.Error("405 without Allow")
		}
	})
}

// Who waits for a job holds nothing that others need meanwhile: it is the client's own choice, and may take a minute.
func TestAsyncWaitHoldsNothing(t *testing.T) {
	for name, l := range map[string]*limiter.Concurrency{"fixed": limiter.NewConcurrency(2), "adaptive": limiter.NewAdaptive()} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newAsync(t, nil)
				slots := pool.New(pool.WithSlots(1))
				g := breaker.NewGroup(breaker.WithSlowCalls(100*time.Millisecond, 0.5), breaker.WithConsecutiveFailures(2))
				s.Handler = middleware.Wrap(s.Handler, middleware.Concurrency(l), middleware.Breaker(g), middleware.Pool(slots))
				var all [20]*httptest.ResponseRecorder
				var wg sync.WaitGroup
				for i := range all {
					wg.Go(func() { all[i] = s.do("POST", "/reports", `{"ms":200}`, "Prefer", "wait=60") })
					synctest.Wait()
				}
				if n, used := l.Stats().InFlight, slots.Stats().Used; n != 0 || used != 0 {
					t.Errorf("20 clients that wait for their jobs hold %d permits and %d slots, want none", n, used)
				}
				wg.Wait()
				for i, w := range all {
					if w.Code != 200 || decodeJob(t, w.Body.Bytes()).State != "succeeded" {
						t.Errorf("client %d is answered %d: %s", i, w.Code, w.Body)
					}
				}
				if b := g.Get("POST /reports").Stats(); b.Successes != 20 || b.Slow != 0 {
					t.Errorf("breaker: %d successes, %d slow calls; want 20 and none", b.Successes, b.Slow)
				}
			})
		})
	}
}

// Behind a writer that hides the layers outside, who waits has the slot of the pool that the job is to run in, and does not keep that from it.
func TestAsyncWaitsInTheSlotOfTheJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, p := jobs.NewMux(), pool.New(pool.WithSlots(1))
		jobs.Register(m, "report", func(context.Context, asyncArgs) (string, error) { return "ready", nil })
		e := jobs.NewLocal(m, p)
		defer e.Close()
		s := asyncServer{middleware.Wrap(http.TimeoutHandler(middleware.Async(e, "report"), time.Minute, ""), middleware.Pool(p)), e}
		if w := s.do("POST", "/reports", `{}`, "Prefer", "wait=10"); w.Code != 200 || decodeJob(t, w.Body.Bytes()).State != "succeeded" {
			t.Errorf("answered %d: %s", w.Code, w.Body)
		}
		synctest.Wait() // a job has ended a moment before its slot is left
		if n := p.Stats().Used; n != 0 {
			t.Errorf("%d slots are used in the end", n)
		}
	})
}

// The server's WriteTimeout is for its own work: who is cut off in the wait has a job of which he does not know the id. Behind a writer that hides
// how to put that off, as many a one that only notes the status, the wait ends before it.
func TestAsyncWaitsLongerThanWriteTimeout(t *testing.T) {
	var reports asyncServer
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("hidden") {
			w = struct{ http.ResponseWriter }{w}
		}
		if r.URL.Query().Has("wrapped") {
			middleware.Wrap(reports).ServeHTTP(w, r)
			return
		}
		reports.ServeHTTP(w, r)
	})
	onEachProtocol(t, protocolsOfRules, nil, nil, h, func(s *guarded) {
		reports = newAsync(s.T, nil)
		s.server.WriteTimeout = 3 * time.Second
		for _, c := range []struct {
			path, prefer string
			want         int
			applied      string
		}{
			{"/reports", "wait=60", 200, "wait=60"},
			{"/reports", "wait=5", 202, "wait=5"},
			{"/reports?hidden", "wait=60", 202, ""},
			{"/reports?hidden", "wait=1", 202, "wait=1"},
			{"/reports?hidden&wrapped", "wait=5", 202, ""},
		} {
			code, h := s.get(c.path, func(r *http.Request) {
				r.Method, r.Body = "POST", io.NopCloser(strings.NewReader(`{"ms":10000}`))
				r.Header.Set("Content-Type", "application/json")
				r.Header.Set("Prefer", c.prefer)
			})
			if code != c.want || h.Get("Location") == "" || h.Get("Preference-Applied") != c.applied {
				s.Errorf("%s, %s: status %d, want %d; %v", c.path, c.prefer, code, c.want, h)
			}
		}
	})
}

// Likewise the time that something outside gives a request: it answers with an error then.
func TestAsyncWaitsNoLongerThanItsRequestMay(t *testing.T) {
	for _, within := range []time.Duration{time.Millisecond, time.Second, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			s := newAsync(t, nil)
			s.Handler = http.TimeoutHandler(s.Handler, within, "too late")
			w := s.do("POST", "/reports", `{"ms":1800000}`, "Prefer", "wait=60")
			if w.Code != 202 || w.Header().Get("Location") == "" || w.Header().Get("Preference-Applied") != "" {
				t.Errorf("within %v: %d, %v; want 202 with a Location, and that it did not wait for as long", within, w.Code, w.Header())
			}
			w = s.do("POST", "/reports", `{"ms":1}`, "Prefer", "wait=0")
			if w.Code != 202 || w.Header().Get("Preference-Applied") != "wait=0" {
				t.Errorf("within %v: %d, %v", within, w.Code, w.Header())
			}
		})
	}
}

// A server that is shut down while clients wait for a job of an hour, as the documentation says: with its engine, or where the engine stays.
func TestAsyncEndsBeforeItsServer(t *testing.T) {
	for _, test := range []struct {
		name   string
		engine bool
		status int
		state  string
		takes  time.Duration
	}{
		{"the engine is shut down beside it", true, 200, "failed", 8 * time.Second},
		{"the contexts of the requests end", false, 202, "running", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			var reports asyncServer
			var leaving context.Context
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				ctx, cancel := context.WithCancel(r.Context())
				defer context.AfterFunc(leaving, cancel)()
				reports.ServeHTTP(w, r.WithContext(ctx))
			})
			onEachProtocol(t, []string{"HTTP/1.1", "h2c"}, nil, nil, h, func(s *guarded) {
				reports = newAsync(s.T, nil)
				var leave context.CancelFunc
				leaving, leave = context.WithCancel(s.Context())
				s.server.RegisterOnShutdown(func() {
					if !test.engine {
						leave()
						return
					}
					ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
					defer cancel()
					reports.engine.Shutdown(ctx)
				})
				post := s.request("POST", "/reports", func(r *http.Request) {
					r.Body = io.NopCloser(strings.NewReader(`{"ms":3600000}`))
					r.Header.Set("Content-Type", "application/json")
					r.Header.Set("Prefer", "wait=60")
					r.Header.Set("Idempotency-Key", "one")
				})
				again := reports.do("POST", "/reports", `{"ms":3600000}`, "Idempotency-Key", "one")
				events := s.request("GET", again.Header().Get("Location"), func(r *http.Request) { r.Header.Set("Accept", "text/event-stream") })
				var clients sync.WaitGroup
				for _, r := range []*http.Request{post, events} {
					clients.Go(func() {
						resp, err := s.client.Do(r)
						if err != nil {
							s.Errorf("%s was cut off: %v", r.Method, err)
							return
						}
						defer resp.Body.Close()
						b, err := io.ReadAll(resp.Body)
						want := 200
						if r == post {
							want = test.status
						}
						if err != nil || resp.StatusCode != want {
							s.Errorf("%s: %d, want %d, and the body ends with %v", r.Method, resp.StatusCode, want, err)
						}
						if _, data, ok := bytes.Cut(b[max(0, bytes.LastIndex(b, []byte("data: "))):], []byte("data: ")); ok {
							b = data // of the last event
						}
						if last := decodeJob(s.T, b); last.State != test.state {
							s.Errorf("%s: the last of the job is %q, want %q", r.Method, last.State, test.state)
						}
					})
				}
				pass(time.Second)
				began := time.Now()
				ctx, cancel := context.WithTimeout(s.Context(), 10*time.Second)
				defer cancel()
				if err := s.server.Shutdown(ctx); err != nil {
					s.Errorf("requests were left: %v", err)
				}
				if d := time.Since(began); d < test.takes || d > test.takes+time.Second {
					s.Errorf("the server took %v, want %v and the second in which it may see that", d, test.takes)
				}
				clients.Wait()
			})
		})
	}
}

// Beyond a thousand a POST is answered at once, whatever it prefers.
func TestAsyncWaitsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAsync(t, nil)
		post := func() *httptest.ResponseRecorder {
			return s.do("POST", "/reports", `{"ms":1000}`, "Prefer", "wait=10", "Idempotency-Key", "one")
		}
		for range 1000 {
			go post()
		}
		synctest.Wait()
		began := time.Now()
		w := post()
		status(t, w, 202)
		if d := time.Since(began); d != 0 || w.Header().Get("Preference-Applied") != "" {
			t.Errorf("one more is answered after %v, with Preference-Applied %q; want at once, with none", d, w.Header().Get("Preference-Applied"))
		}
		pass(2 * time.Second)
		status(t, post(), 200) // there is room again
	})
}

// Clients that do not take the answer they waited for count as long as it is written.
func TestAsyncWaitsAreBoundedByTheirAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAsync(t, nil)
		post := func(w http.ResponseWriter, key string) {
			ctx := context.WithValue(t.Context(), http.ServerContextKey, &http.Server{WriteTimeout: time.Hour})
			r := httptest.NewRequestWithContext(ctx, "POST", "/reports", strings.NewReader(`{"ms":1000}`))
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Prefer", "wait=10")
			r.Header.Set("Idempotency-Key", key)
			s.ServeHTTP(w, r)
		}
		for range 1000 {
			go post(&stuckWriter{header: http.Header{}}, "stuck")
		}
		pass(2 * time.Second)
		one, two := httptest.NewRecorder(), httptest.NewRecorder()
		post(one, "one")
		pass(2 * time.Hour)
		post(two, "two")
		status(t, one, 202)
		status(t, two, 200) // there is room again
	})
}

// One owner cannot take all the event streams, nor all the places of those who wait.
func TestAsyncSharesOfOwners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAsync(t, nil, middleware.WithOwner(func(r *http.Request) string { return r.Header.Get("X-User") }))
		post := func(user string) *httptest.ResponseRecorder {
			return s.do("POST", "/reports", `{"ms":60000}`, "X-User", user, "Prefer", "wait=1", "Idempotency-Key", "one")
		}
		stream := func(user, at string, wait time.Duration) string {
			ctx, cancel := context.WithTimeout(context.Background(), wait)
			defer cancel()
			r := httptest.NewRequestWithContext(ctx, "GET", at, nil)
			r.Header.Set("Accept", "text/event-stream")
			r.Header.Set("X-User", user)
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			return w.Header().Get("Content-Type")
		}
		at := map[string]string{}
		for _, user := range []string{"greedy", "other"} {
			at[user] = post(user).Header().Get("Location")
		}
		for range 1200 {
			go post("greedy")
			go stream("greedy", at["greedy"], time.Second)
		}
		synctest.Wait()
		for _, user := range []string{"greedy", "other"} {
			want := map[string]string{"greedy": "application/json", "other": "text/event-stream"}[user]
			if got := stream(user, at[user], time.Millisecond); got != want {
				t.Errorf("to one more event stream of the %s owner: %s, want %s", user, got, want)
			}
			if got, want := post(user).Header().Get("Preference-Applied") != "", user == "other"; got != want {
				t.Errorf("one more POST of the %s owner waits: %v, want %v", user, got, want)
			}
		}
		pass(time.Minute)
		if got := stream("greedy", at["greedy"], time.Millisecond); got != "text/event-stream" { // there is room again
			t.Errorf("after that: %s", got)
		}
	})
}

func TestAsyncPrefer(t *testing.T) {
	for _, c := range []struct {
		name, prefer string
		status       int
		applied      string
		took         time.Duration
	}{
		{"none", "", 202, "", 0},
		{"respond-async", "respond-async", 202, "respond-async", 0},
		{"wait, long enough", "wait=10", 200, "wait=10", time.Second},
		{"wait, too short", "respond-async, wait=0", 202, "respond-async, wait=0", 0},
		{"in one field with others", `foo; wait=3, RESPOND-ASYNC ;x, Wait = "5"`, 200, "wait=5", time.Second},
		{"twice: the first counts", "wait=0, wait=10", 202, "wait=0", 0},
		{"malformed", "wait=soon", 202, "", 0},
		{"inside quotes", `a="\", wait=10"`, 202, "", 0},
		{"negative", "wait=-1", 202, "", 0},
		{"longer than allowed: as long as that, and not called applied", "wait=86400", 200, "", time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newAsync(t, nil)
				began := time.Now()
				w := s.do("POST", "/reports", `{"ms":1000}`, "Prefer", c.prefer)
				status(t, w, c.status)
				if got := w.Header().Get("Preference-Applied"); got != c.applied {
					t.Errorf("Preference-Applied %q, want %q", got, c.applied)
				}
				if d := time.Since(began); d != c.took {
					t.Errorf("took %v, want %v", d, c.took)
				}
				if w.Header().Get("Location") == "" {
					t.Error("no Location")
				}
				if c.status == 200 && decodeJob(t, w.Body.Bytes()).State != "succeeded" {
					t.Errorf("%s", w.Body)
				}
			})
		})
	}
	t.Run("respond-async where the route waits", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newAsync(t, nil, middleware.WithWait(time.Second, 2*time.Second))
			began := time.Now()
			w := s.do("POST", "/reports", `{"ms":10}`, "Prefer", "respond-async")
			status(t, w, 202)
			if d := time.Since(began); d != 0 || w.Header().Get("Preference-Applied") != "respond-async" {
				t.Errorf("took %v, Preference-Applied %q", d, w.Header().Get("Preference-Applied"))
			}
		})
	})
	t.Run("the time is over before the job", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newAsync(t, nil, middleware.WithWait(time.Second, 2*time.Second))
			began := time.Now()
			w := s.do("POST", "/reports", `{"ms":60000}`)
			status(t, w, 202)
			if d := time.Since(began); d != time.Second {
				t.Errorf("took %v", d)
			}
			if j := decodeJob(t, w.Body.Bytes()); j.State != "running" {
				t.Errorf("%s", w.Body)
			}
		})
	})
}

// What keeps an answer about a job the client's own, and as fresh and harmless as it is.
func TestAsyncFields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAsync(t, nil, middleware.WithLocation(func(_ *http.Request, id string) string { return "https://example.com/jobs/" + id }))
		w := s.do("POST", "/reports", `{"ms":10}`, "Prefer", "wait=1")
		status(t, w, 200)
		id := decodeJob(t, w.Body.Bytes()).ID
		job := map[string]string{"Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff"}
		at := "https://example.com/jobs/" + id
		for name, c := range map[string]struct {
			w    *httptest.ResponseRecorder
			want map[string]string
		}{
			"POST": {w, map[string]string{"Location": at, "Content-Location": at, "Vary": "Prefer"}},
			"GET":  {s.do("GET", "/reports/"+id, ""), map[string]string{"Vary": "Accept"}},
			"a page": {s.do("GET", "/reports/"+id, "", "Accept", "text/html"), map[string]string{
				"Vary": "Accept", "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}},
			"unchanged": {s.do("GET", "/reports/"+id, "", "If-None-Match", "*"), map[string]string{"Vary": "Accept"}},
		} {
			for of, want := range map[string]map[string]string{"job": job, name: c.want} {
				for k, v := range want {
					if got := c.w.Header().Get(k); got != v {
						t.Errorf("%s: %s is %q, want that of a %s: %q", name, k, got, of, v)
					}
				}
			}
			if (c.w.Code == 304) != (name == "unchanged") {
				t.Errorf("%s: status %d", name, c.w.Code)
			}
		}
		w = s.do("GET", "/reports/"+id, "", "Accept", "text/event-stream", "Last-Event-ID", "1000000")
		if got := w.Header().Get("Cache-Control"); got != "no-store" {
			t.Errorf("Cache-Control of an event stream: %q", got)
		}
	})
}

func TestAsyncSubmitOptionsByRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAsync(t, nil, middleware.WithOwner(func(*http.Request) string { return "owner" }),
			middleware.WithSubmit(func(r *http.Request, o *jobs.SubmitOptions) {
				if o.Client != "owner" || o.Key != "key" {
					t.Errorf("%+v", o)
				}
				o.MaxAttempts = 7
			}))
		w := s.do("POST", "/reports", `{"ms":10}`, "Idempotency-Key", "key")
		j, err := s.engine.Get(t.Context(), decodeJob(t, w.Body.Bytes()).ID)
		if err != nil || j.MaxAttempts != 7 {
			t.Errorf("%d attempts, %v; want 7", j.MaxAttempts, err)
		}
	})
}

// failingEngine takes no job.
type failingEngine struct{ jobs.Engine }

func (failingEngine) Submit(context.Context, string, []byte, jobs.SubmitOptions) (jobs.Job, bool, error) {
	return jobs.Job{}, false, errors.New("no disk at /var/lib")
}

func TestAsyncFailures(t *testing.T) {
	var told []error
	post := func(body io.Reader) *httptest.ResponseRecorder {
		r := httptest.NewRequest("POST", "/reports", body)
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		middleware.Async(failingEngine{}, "report", middleware.WithEngineFailure(func(_ *http.Request, err error) { told = append(told, err) })).ServeHTTP(w, r)
		return w
	}
	cut, client := io.Pipe()
	client.CloseWithError(io.ErrUnexpectedEOF)
	status(t, post(cut), 400)
	w := post(strings.NewReader("{}"))
	status(t, w, 500)
	if strings.Contains(w.Body.String(), "/var/lib") {
		t.Errorf("what the engine says goes out: %s", w.Body)
	}
	if len(told) != 1 || told[0].Error() != "no disk at /var/lib" {
		t.Errorf("the server is told %v", told)
	}
}

func TestAsyncRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAsync(t, []jobs.LocalOption{jobs.WithCapacity(4, 2, 10), jobs.WithSizes(200, 200, 10000)},
			middleware.WithMaxPayload(300), middleware.WithOwner(func(r *http.Request) string { return r.Header.Get("X-User") }))
		for _, c := range []struct {
			name   string
			body   string
			kind   string
			status int
			detail string // of the answer
		}{
			{"malformed JSON", `{"ms":`, "application/json", 400, ""},
			{"wrong type", `{"ms":"x"}`, "application/json", 400, ""},
			{"no body", ``, "application/json", 400, ""},
			{"a form", `ms=1`, "application/x-www-form-urlencoded", 415, ""},
			{"text: a page elsewhere may send it without asking", `{"ms":1}`, "text/plain", 415, ""},
			{"no type", `{"ms":1}`, "", 415, ""},
			{"JSON with a name of its own", `{"ms":"x"}`, "application/vnd.example+json", 400, ""},
			{"too large for the engine", `{"x":"` + strings.Repeat("x", 250) + `"}`, "application/json; charset=utf-8", 413, "too large"},
			{"too large for the route", `{"x":"` + strings.Repeat("x", 1000) + `"}`, "application/json", 413, "more than 300 bytes"},
		} {
			if w := s.do("POST", "/reports", c.body, "Content-Type", c.kind); w.Code != c.status || !strings.Contains(w.Body.String(), c.detail) {
				t.Errorf("%s: status %d, want %d that says %q: %s", c.name, w.Code, c.status, c.detail, w.Body)
			}
		}
		s.Handler = middleware.Async(s.engine, "raport")
		w := s.do("POST", "/reports", `{"ms":1}`)
		if status(t, w, 404); !strings.Contains(w.Body.String(), "no such kind of job") {
			t.Errorf("a kind without a handler: %s", w.Body)
		}
	})
}

func TestAsyncFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAsync(t, []jobs.LocalOption{jobs.WithCapacity(4, 2, 10)},
			middleware.WithOwner(func(r *http.Request) string { return r.Header.Get("X-User") }))
		for i, want := range []int{202, 202, 429} {
			w := s.do("POST", "/reports", `{"ms":1000}`, "X-User", "a")
			status(t, w, want)
			if want == 429 && w.Header().Get("Retry-After") == "" {
				t.Errorf("job %d: no Retry-After", i)
			}
		}
		for _, want := range []int{202, 202, 503} {
			w := s.do("POST", "/reports", `{"ms":1000}`)
			status(t, w, want)
			if want == 503 && w.Header().Get("Retry-After") == "" {
				t.Error("503 without Retry-After")
			}
		}
		var rejected *middleware.Rejection
		h := middleware.Chain(middleware.WithTrace(&middleware.Trace{Rejected: func(_ *http.Request, j middleware.Rejection) { rejected = &j }}).Handler)(s)
		r := httptest.NewRequest("POST", "/reports", strings.NewReader(`{"ms":1}`))
		r.Header.Set("Content-Type", "application/json")
		h.ServeHTTP(httptest.NewRecorder(), r)
		if rejected == nil || !errors.Is(rejected.Err, jobs.ErrFull) || rejected.RetryAfter <= 0 {
			t.Errorf("the layers outside are not told, or not when to come back: %+v", rejected)
		}
		s.engine.Close()
		status(t, s.do("POST", "/reports", `{"ms":1}`), 503)
	})
}

// A request that has run out of time is no success.
func TestAsyncTimeIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAsync(t, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		<-ctx.Done()
		r := httptest.NewRequestWithContext(ctx, "POST", "/reports", strings.NewReader(`{"ms":1}`))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		status(t, w, 503)
	})
}

func TestAsyncIdempotencyKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAsync(t, nil, middleware.WithOwner(func(r *http.Request) string { return r.Header.Get("X-User") }))
		first := s.do("POST", "/reports", `{"ms":10}`, "Idempotency-Key", `"abc"`)
		status(t, first, 202)
		again := s.do("POST", "/reports", `{"ms":10}`, "Idempotency-Key", `abc`)
		status(t, again, 202)
		if first.Header().Get("Location") != again.Header().Get("Location") {
			t.Error("the same key gave another job")
		}
		reused := s.do("POST", "/reports", `{"ms":11}`, "Idempotency-Key", `"abc"`)
		status(t, reused, 422)
		if title := `"title":"Unprocessable Content"`; !strings.Contains(reused.Body.String(), title) {
			t.Errorf("%s; want %s, the phrase of RFC 9110", reused.Body, title)
		}
		other := s.do("POST", "/reports", `{"ms":11}`, "Idempotency-Key", `"abc"`, "X-User", "b")
		status(t, other, 202)
		status(t, s.do("POST", "/reports", `{"ms":11}`, "Idempotency-Key", strings.Repeat("x", 300)), 400)
		status(t, s.do("POST", "/reports", `{"ms":11}`, "Idempotency-Key", `""`), 400)

		// A quote without a second one is of the key like any other byte.
		status(t, s.do("POST", "/reports", `{"ms":10}`, "Idempotency-Key", `"`), 202)
		status(t, s.do("POST", "/reports", `{"ms":10}`, "Idempotency-Key", `"ab`), 202)
		status(t, s.do("POST", "/reports", `{"ms":11}`, "Idempotency-Key", `"ac`), 202)

		// Who does not wait is told where the job is, also of one that has ended.
		pass(time.Minute)
		ended := s.do("POST", "/reports", `{"ms":10}`, "Idempotency-Key", "abc")
		if ended.Code != 202 || ended.Header().Get("Content-Location") != "" {
			t.Errorf("a job that has ended, without a wait: %d, Content-Location %q; want 202 and none", ended.Code, ended.Header().Get("Content-Location"))
		}
		status(t, s.do("POST", "/reports", `{"ms":10}`, "Idempotency-Key", "abc", "Prefer", "wait=1"), 200)
	})
}

func TestAsyncOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAsync(t, nil, middleware.WithOwner(func(r *http.Request) string { return r.Header.Get("X-User") }))
		at := s.do("POST", "/reports", `{"ms":1000}`, "X-User", "a").Header().Get("Location")
		for _, method := range []string{"GET", "HEAD", "DELETE"} {
			if w := s.do(method, at, "", "X-User", "b"); w.Code != 404 {
				t.Errorf("%s of somebody else's job: %d", method, w.Code)
			}
		}
		if w := s.do("GET", at, "", "X-User", "b", "Accept", "text/event-stream"); w.Code != 404 {
			t.Errorf("events of somebody else's job: %d", w.Code)
		}
		status(t, s.do("GET", at, "", "X-User", "a"), 200)
	})
}

func TestAsyncCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAsync(t, nil)
		running := s.do("POST", "/reports", `{"ms":60000}`).Header().Get("Location")
		queued := s.do("POST", "/reports", `{"ms":1}`).Header().Get("Location")
		synctest.Wait()
		if w := s.do("DELETE", queued, ""); w.Code != 204 || w.Body.Len() != 0 {
			t.Errorf("queued: %d", w.Code)
		}
		w := s.do("DELETE", running, "")
		status(t, w, 202)
		if j := decodeJob(t, w.Body.Bytes()); !j.Cancelling {
			t.Errorf("%s", w.Body)
		}
		synctest.Wait()
		for _, at := range []string{queued, running} {
			if j := decodeJob(t, s.do("GET", at, "").Body.Bytes()); j.State != "cancelled" {
				t.Errorf("%+v", j)
			}
			status(t, s.do("DELETE", at, ""), 409)
		}
	})
}

func TestAsyncPanicStaysInside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAsync(t, nil)
		at := s.do("POST", "/reports", `{"ms":-1}`).Header().Get("Location")
		synctest.Wait()
		for _, accept := range []string{"application/json", "text/html", "text/event-stream"} {
			body := s.do("GET", at, "", "Accept", accept).Body.String()
			if !strings.Contains(body, "failed") || strings.Contains(body, "hunter2") || strings.Contains(body, "goroutine") {
				t.Errorf("%s: %s", accept, body)
			}
		}
	})
}

func TestAsyncNegotiation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAsync(t, nil)
		at := s.do("POST", "/reports", `{"ms":10}`).Header().Get("Location")
		time.Sleep(time.Second) // in a synctest bubble
		for accept, want := range map[string]string{
			"":                  "application/json",
			"*/*":               "application/json",
			"application/json":  "application/json",
			"text/event-stream": "text/event-stream",
			"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8": "text/html; charset=utf-8",
			"text/html;q=0.5, application/json":                               "application/json",
			"text/html, application/json":                                     "application/json",
			"application/json, text/html":                                     "application/json",
			"text/html;q=0":                                                   "application/json",
			"text/html;q=0.5, */*":                                            "application/json",
			"*/*;q=0.9, text/event-stream;q=0.8":                              "application/json",
			"text/html, */*":                                                  "text/html; charset=utf-8",
			"*/*, text/html":                                                  "text/html; charset=utf-8",
			"application/json;q=0.1, text/html;q=0.5, */*":                    "text/html; charset=utf-8",
		} {
			w := s.do("GET", at, "", "Accept", accept)
			if got := w.Header().Get("Content-Type"); got != want {
				t.Errorf("Accept %q: %q, want %q", accept, got, want)
			}
			if w.Header().Get("Vary") != "Accept" {
				t.Errorf("Accept %q: Vary %q", accept, w.Header().Get("Vary"))
			}
		}
		a, b := s.do("GET", at, ""), s.do("GET", at, "", "Accept", "text/html")
		if a.Header().Get("ETag") == b.Header().Get("ETag") {
			t.Error("two representations have one ETag")
		}
		page := b.Body.String()
		if !strings.Contains(page, "<progress") || !strings.Contains(page, "&lt;b&gt;ready") || strings.Contains(page, "<b>ready") || strings.Contains(page, "refresh") {
			t.Errorf("page of an ended job: %s", page)
		}
		at = s.do("POST", "/reports", `{"ms":10000}`).Header().Get("Location")
		time.Sleep(3 * time.Second) // in a synctest bubble
		if page := s.do("GET", at, "", "Accept", "text/html").Body.String(); !strings.Contains(page, `http-equiv="refresh"`) || !strings.Contains(page, `value="0.25"`) {
			t.Errorf("page of a running job: %s", page)
		}
	})
}

func TestAsyncEvents(t *testing.T) {
	events := func(body string) (ids, states []string) {
		for block := range strings.SplitSeq(body, "\n\n") {
			for line := range strings.SplitSeq(block, "\n") {
				if id, ok := strings.CutPrefix(line, "id: "); ok {
					ids = append(ids, id)
				}
				if data, ok := strings.CutPrefix(line, "data: "); ok {
					var j asyncJob
					if json.Unmarshal([]byte(data), &j) == nil {
						states = append(states, j.State)
					}
				}
			}
		}
		return ids, states
	}
	t.Run("every change until the end, then 204", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newAsync(t, nil)
			at := s.do("POST", "/reports", `{"ms":60000}`).Header().Get("Location")
			w := s.do("GET", at, "", "Accept", "text/event-stream")
			status(t, w, 200)
			ids, states := events(w.Body.String())
			if len(ids) < 5 || states[len(states)-1] != "succeeded" || !w.Flushed {
				t.Errorf("ids %v, states %v", ids, states)
			}
			if n := strings.Count(w.Body.String(), "\n:\n"); n < 3 {
				t.Errorf("%d heartbeats in a minute", n)
			}
			last := ids[len(ids)-1]
			if w := s.do("GET", at, "", "Accept", "text/event-stream", "Last-Event-ID", last); w.Code != 204 {
				t.Errorf("after the end: %d", w.Code)
			}
			w = s.do("GET", at, "", "Accept", "text/event-stream", "Last-Event-ID", ids[1])
			if again, _ := events(w.Body.String()); len(again) != 1 || again[0] != last {
				t.Errorf("resumed after %s: %v", ids[1], again)
			}
		})
	})
	t.Run("an id that is not of this job hides no change", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newAsync(t, nil)
			for _, id := range []string{"1000", "18446744073709551615", "99999999999999999999999", "-1", "x"} {
				at := s.do("POST", "/reports", `{"ms":1000}`).Header().Get("Location")
				for _, when := range []string{"while it runs", "after its end"} {
					w := s.do("GET", at, "", "Accept", "text/event-stream", "Last-Event-ID", id)
					if _, states := events(w.Body.String()); len(states) == 0 || states[len(states)-1] != "succeeded" {
						t.Errorf("Last-Event-ID %s, %s: %d, states %v", id, when, w.Code, states)
					}
				}
			}
		})
	})
	t.Run("where nothing goes out before the end, the client polls", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newAsync(t, nil)
			s.Handler = http.TimeoutHandler(s.Handler, 5*time.Second, "")
			at := s.do("POST", "/reports", `{"ms":60000}`).Header().Get("Location")
			synctest.Wait()
			var last string
			for i, want := range []struct {
				code  int
				state string
			}{{200, "running"}, {200, ""}, {200, "succeeded"}, {204, ""}} {
				if want.state == "succeeded" {
					pass(time.Hour / 2)
				}
				w := s.do("GET", at, "", "Accept", "text/event-stream", "Last-Event-ID", last)
				ids, states := events(w.Body.String())
				if got := strings.Join(states, ", "); w.Code != want.code || got != want.state {
					t.Errorf("request %d: %d %q, want %d %q", i, w.Code, got, want.code, want.state)
				}
				if len(ids) > 0 {
					last = ids[len(ids)-1]
				}
			}
		})
	})
	t.Run("a client that never reads is dropped, the job goes on", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newAsync(t, nil)
			at := s.do("POST", "/reports", `{"ms":600000}`).Header().Get("Location")
			w := &stuckWriter{header: http.Header{}}
			r := httptest.NewRequest("GET", at, nil)
			r.Header.Set("Accept", "text/event-stream")
			began := time.Now()
			s.ServeHTTP(w, r)
			if d := time.Since(began); d > time.Minute {
				t.Errorf("held for %v", d)
			}
			time.Sleep(20 * time.Minute) // in a synctest bubble
			if j := decodeJob(t, s.do("GET", at, "").Body.Bytes()); j.State != "succeeded" {
				t.Errorf("%+v", j)
			}
		})
	})
	t.Run("a client that reads slowly has a large result", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := jobs.NewMux()
			jobs.Register(m, "report", func(context.Context, asyncArgs) (string, error) { return strings.Repeat("x", 1000<<10), nil })
			e := jobs.NewLocal(m, pool.New(pool.WithSlots(1)))
			defer e.Close()
			j, _, err := e.Submit(context.Background(), "report", []byte(`{}`), jobs.SubmitOptions{})
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			w := &slowWriter{stuckWriter: stuckWriter{header: http.Header{}}, rate: 16 << 10}
			r := httptest.NewRequest("GET", "/reports/"+j.ID, nil)
			r.Header.Set("Accept", "text/event-stream")
			middleware.Async(e, "report").ServeHTTP(w, r)
			if _, states := events(w.body.String()); len(states) != 1 || states[0] != "succeeded" {
				t.Errorf("%d bytes and %d events", w.body.Len(), len(states))
			}
		})
	})
	t.Run("the number of streams is bounded", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newAsync(t, nil, middleware.WithStreams(1))
			at := s.do("POST", "/reports", `{"ms":60000}`).Header().Get("Location")
			var wg sync.WaitGroup
			wg.Go(func() { s.do("GET", at, "", "Accept", "text/event-stream") })
			synctest.Wait()
			if w := s.do("GET", at, "", "Accept", "text/event-stream"); w.Code != 200 || w.Header().Get("Content-Type") != "application/json" {
				t.Errorf("the second: %d %q", w.Code, w.Header().Get("Content-Type"))
			}
			wg.Wait()
		})
	})
	t.Run("behind a whole stack: it streams, and holds no permit meanwhile", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newAsync(t, nil)
			s.Handler = middleware.Wrap(s.Handler, middleware.Concurrency(limiter.NewConcurrency(1)),
				middleware.Breaker(breaker.NewGroup()), middleware.Cache(cache.New(1<<20)))
			at := s.do("POST", "/reports", `{"ms":60000}`).Header().Get("Location")
			var wg sync.WaitGroup
			wg.Go(func() {
				w := s.do("GET", at, "", "Accept", "text/event-stream")
				if ids, states := events(w.Body.String()); len(ids) < 4 || states[len(states)-1] != "succeeded" {
					t.Errorf("ids %v, states %v", ids, states)
				}
			})
			time.Sleep(time.Second) // in a synctest bubble
			if j := decodeJob(t, s.do("GET", at, "").Body.Bytes()); j.State != "running" {
				t.Errorf("%+v", j)
			}
			wg.Wait()
			if j := decodeJob(t, s.do("GET", at, "").Body.Bytes()); j.State != "succeeded" {
				t.Errorf("a stored answer was given: %+v", j)
			}
		})
	})
	t.Run("ends with the client", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newAsync(t, nil)
			at := s.do("POST", "/reports", `{"ms":600000}`).Header().Get("Location")
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			r := httptest.NewRequestWithContext(ctx, "GET", at, nil)
			r.Header.Set("Accept", "text/event-stream")
			began := time.Now()
			s.ServeHTTP(httptest.NewRecorder(), r)
			if d := time.Since(began); d != time.Second {
				t.Errorf("ended after %v", d)
			}
		})
	})
}

// stuckWriter is a connection whose other end does not read: a Write blocks until the deadline.
type stuckWriter struct {
	header   http.Header
	deadline time.Time
}

func (w *stuckWriter) Header() http.Header                 { return w.header }
func (w *stuckWriter) WriteHeader(int)                     {}
func (w *stuckWriter) Flush()                              {}
func (w *stuckWriter) SetWriteDeadline(at time.Time) error { w.deadline = at; return nil }
func (w *stuckWriter) Write(b []byte) (int, error) {
	if w.deadline.IsZero() {
		select {} // nobody would ever end it
	}
	time.Sleep(time.Until(w.deadline)) // in a synctest bubble
	return 0, os.ErrDeadlineExceeded
}

// slowWriter is a connection whose other end reads so many bytes a second.
type slowWriter struct {
	stuckWriter
	rate int
	body bytes.Buffer
}

func (w *slowWriter) Write(b []byte) (int, error) {
	takes := time.Duration(len(b)) * time.Second / time.Duration(w.rate)
	if d := time.Until(w.deadline); d < takes {
		time.Sleep(d) // in a synctest bubble
		n, _ := w.body.Write(b[:int(d*time.Duration(w.rate)/time.Second)])
		return n, os.ErrDeadlineExceeded
	}
	time.Sleep(takes) // in a synctest bubble
	return w.body.Write(b)
}

func TestAsyncStrongETagHasOneBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAsync(t, nil)
		s.do("POST", "/reports", `{"ms":60000}`, "Prefer", "wait=60") // so that it is known how long one takes
		running := s.do("POST", "/reports", `{"ms":60000}`).Header().Get("Location")
		queued := s.do("POST", "/reports", `{"ms":60000}`).Header().Get("Location")
		type representation struct{ at, accept, tag string }
		bodies := make(map[representation]string)
		for range 130 {
			synctest.Wait()
			for _, at := range []string{running, queued} {
				for _, accept := range []string{"application/json", "text/html"} {
					w := s.do("GET", at, "", "Accept", accept)
					one := representation{at, accept, w.Header().Get("ETag")}
					if first, ok := bodies[one]; ok && first != w.Body.String() && !strings.HasPrefix(one.tag, "W/") {
						t.Fatalf("ETag %s of\n%s\nand\n%s", one.tag, first, w.Body)
					}
					bodies[one] = w.Body.String()
					if w := s.do("GET", at, "", "Accept", accept, "If-None-Match", one.tag); w.Code != 304 {
						t.Errorf("unchanged: %d", w.Code)
					}
				}
			}
			time.Sleep(time.Second) // in a synctest bubble
		}
		if len(bodies) < 20 {
			t.Errorf("%d ETags in the life of two jobs, in two forms each", len(bodies))
		}
	})
}

// What is nested deeply grows with the square of its length when it is indented, and a client may have sent it.
func TestAsyncDeepResultStaysSmall(t *testing.T) {
	m := jobs.NewMux()
	jobs.Register(m, "echo", func(_ context.Context, a json.RawMessage) (json.RawMessage, error) { return a, nil })
	e := jobs.NewLocal(m, pool.New(pool.WithSlots(1)))
	defer e.Close()
	s := asyncServer{middleware.Async(e, "echo"), e}
	for _, c := range []struct {
		result   string
		indented bool
	}{
		{`{"a":[{"b":"[[[[\"[[[["},{"c":[1,2,3]}]}`, true},
		{`{"a\\":[` + strings.Repeat("[", 2000) + strings.Repeat("]", 2000) + `]}`, false},
		{`["\"",[` + strings.Repeat("[", 2000) + strings.Repeat("]", 2000) + `]]`, false},
		{`[` + strings.Repeat(`{"a":`, 1000) + `[` + strings.Repeat("1,", 1000) + `1]` + strings.Repeat("}", 1000) + `]`, false},
	} {
		w := s.do("POST", "/jobs", c.result, "Prefer", "wait=60")
		status(t, w, 200)
		bodies := map[string]string{"POST": w.Body.String()}
		for _, accept := range []string{"application/json", "text/html"} {
			w := s.do("GET", w.Header().Get("Location"), "", "Accept", accept)
			status(t, w, 200)
			bodies[accept] = html.UnescapeString(w.Body.String())
		}
		for of, body := range bodies {
			if most := 10*len(c.result) + 2000; len(body) > most {
				t.Errorf("%s of a result of %d bytes: %d bytes, want no more than %d", of, len(c.result), len(body), most)
			}
			if got := !strings.Contains(body, c.result); got != c.indented {
				t.Errorf("%s of a result of %d bytes is indented: %v, want %v", of, len(c.result), got, c.indented)
			}
		}
	}
}

func TestAsyncBehindPrefix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAsync(t, nil)
		s.Handler = http.StripPrefix("/api", s.Handler)
		at := s.do("POST", "/api/reports", `{"ms":1}`).Header().Get("Location")
		if !strings.HasPrefix(at, "/api/reports/") {
			t.Errorf("Location %q", at)
		}
		status(t, s.do("GET", at, ""), 200)
	})
}

// A router that takes a path for the same with its double slashes, as that of chi behind its CleanPath, leaves them in the URL.
func TestAsyncLocationIsOnItsServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAsync(t, nil)
		mux := s.Handler
		s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.URL.Path = "/reports"
			mux.ServeHTTP(w, r)
		})
		for target, want := range map[string]string{
			"//reports":                 "/reports/",
			"//evil.example/reports":    "/evil.example/reports/",
			"///reports/":               "/reports/",
			"/api//reports":             "/api//reports/",
			"http://here.example//api/": "/api/",
		} {
			w := s.do("POST", target, `{"ms":1}`)
			status(t, w, 202)
			at, id := w.Header().Get("Location"), decodeJob(t, w.Body.Bytes()).ID
			if at != want+id {
				t.Errorf("Location of %s is %q, want %q", target, at, want+id)
			}
		}
	})
}

func TestAsyncMisuse(t *testing.T) {
	for name, f := range map[string]func(){
		"no engine":      func() { middleware.Async(nil, "report") },
		"WithOwner":      func() { middleware.WithOwner(nil) },
		"WithWait":       func() { middleware.WithWait(2, 1) },
		"WithWait(-1)":   func() { middleware.WithWait(-1, 1) },
		"WithMaxPayload": func() { middleware.WithMaxPayload(0) },
		"WithStreams":    func() { middleware.WithStreams(-1) },
		"WithLocation":   func() { middleware.WithLocation(nil) },
		"WithSubmit":     func() { middleware.WithSubmit(nil) },
		"EngineFailure":  func() { middleware.WithEngineFailure(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if s, _ := recover().(string); !strings.HasPrefix(s, "middleware: ") {
					t.Errorf("panic %q", s)
				}
			}()
			f()
		})
	}
}

func FuzzPrefer(f *testing.F) {
	for _, s := range []string{"", "respond-async", "wait=10", `foo="a,b;wait=3", wait=2`, `"\`, "wait=99999999999999999999", ",,;;=,"} {
		f.Add(s)
	}
	m := jobs.NewMux()
	jobs.Register(m, "report", func(context.Context, asyncArgs) (int, error) { return 1, nil })
	e := jobs.NewLocal(m, pool.New(pool.WithSlots(1)), jobs.WithCapacity(1<<20, 1<<20, 10))
	f.Cleanup(func() { e.Close() })
	h := middleware.Async(e, "report")
	f.Fuzz(func(t *testing.T, prefer string) {
		r := httptest.NewRequest("POST", "/reports", strings.NewReader(`{}`))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Prefer", prefer)
		r.Header.Set("Accept", prefer)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != 202 && w.Code != 200 {
			t.Errorf("%q: %d", prefer, w.Code)
		}
	})
}

func ExampleAsync() {
	m := jobs.NewMux()
	jobs.Register(m, "report", func(ctx context.Context, year int) (string, error) {
		return fmt.Sprintf("report of %d", year), nil
	})
	engine := jobs.NewLocal(m, pool.New())
	defer engine.Close()

	reports := middleware.Async(engine, "report")
	mux := http.NewServeMux()
	mux.Handle("POST /reports", reports)
	mux.Handle("/reports/{id}", reports)

	r := httptest.NewRequest("POST", "/reports", strings.NewReader(`2026`))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Prefer", "wait=10")
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, r)
	var job struct{ State, Result string }
	json.Unmarshal(w.Body.Bytes(), &job)
	fmt.Println(w.Code, w.Header().Get("Preference-Applied"), job.State, job.Result)
	// Output: 200 wait=10 succeeded report of 2026
}

// forgetfulEngine takes jobs and fails whoever watches them, as one does whose server has just gone away.
type forgetfulEngine struct{ jobs.Engine }

func (forgetfulEngine) Watch(context.Context, string) iter.Seq2[jobs.Job, error] {
	return func(yield func(jobs.Job, error) bool) { yield(jobs.Job{}, errors.New("connection refused")) }
}

func TestAsyncWaitThatTheEngineCutsShortIsNotApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAsync(t, nil)
		told := 0
		s.Handler = middleware.Async(forgetfulEngine{s.engine}, "report", middleware.WithEngineFailure(func(_ *http.Request, err error) {
			if told++; err.Error() != "connection refused" {
				t.Error(err)
			}
		}))
		w := s.do("POST", "/reports", `{"ms":10000}`, "Prefer", "wait=30")
		if got := w.Header().Get("Preference-Applied"); w.Code != 202 || got != "" || w.Header().Get("Location") == "" {
			t.Errorf("%d, Preference-Applied %q, Location %q; want 202, none, and where the job is", w.Code, got, w.Header().Get("Location"))
		}
		s.do("GET", w.Header().Get("Location"), "", "Accept", "text/event-stream")
		if told != 2 {
			t.Errorf("the server is told %d times, want of the wait and of the stream", told)
		}
	})
}

// brokenEngine panics where it watches a job.
type brokenEngine struct{ jobs.Engine }

func (brokenEngine) Watch(context.Context, string) iter.Seq2[jobs.Job, error] {
	return func(func(jobs.Job, error) bool) { panic("the engine is broken") }
}

// An engine may be the user's. As in the rest of the handler, its panic is one of the request, and not the end of the process.
func TestAsyncPanicOfTheEngine(t *testing.T) {
	for name, ask := range map[string]func(asyncServer, string){
		"a client that waits": func(s asyncServer, _ string) { s.do("POST", "/reports", `{"ms":1000}`, "Prefer", "wait=1") },
		"an event stream":     func(s asyncServer, at string) { s.do("GET", at, "", "Accept", "text/event-stream") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newAsync(t, nil)
				at := s.do("POST", "/reports", `{"ms":1000}`).Header().Get("Location")
				broken := middleware.Async(brokenEngine{s.engine}, "report", middleware.WithStreams(1))
				s.Handler = broken
				for range 2 { // the second finds the place of the first
					func() {
						defer func() {
							if v := recover(); v != "the engine is broken" {
								t.Errorf("the request panicked with %v, want what the engine did", v)
							}
						}()
						ask(s, at)
					}()
				}
			})
		})
	}
}
