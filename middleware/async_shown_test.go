package middleware_test

import (
	"context"
	"encoding/json"
	"iter"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool/jobs"
)

// remoteJobs is an engine with one finished job, of which each question has a result of its own, as if it came from a database.
type remoteJobs struct {
	jobs.Engine
	result       string
	given, freed atomic.Int32
}

func (e *remoteJobs) job() jobs.Job {
	result := json.RawMessage(e.result)
	e.given.Add(1)
	runtime.AddCleanup(unsafe.SliceData(result), func(freed *atomic.Int32) { freed.Add(1) }, &e.freed)
	return jobs.Job{ID: "1", Kind: "report", State: jobs.Succeeded, Version: 7, Result: result}
}

func (e *remoteJobs) Get(context.Context, string) (jobs.Job, error) { return e.job(), nil }

func (e *remoteJobs) Submit(context.Context, string, []byte, jobs.SubmitOptions) (jobs.Job, bool, error) {
	return e.job(), false, nil
}

func (e *remoteJobs) Watch(context.Context, string) iter.Seq2[jobs.Job, error] {
	return func(yield func(jobs.Job, error) bool) { yield(e.job(), nil) }
}

// waitsWith is a client that does not take what is long for a while, and says where that is in memory.
type waitsWith struct {
	*httptest.ResponseRecorder
	long int
	at   func(*byte)
}

func (w waitsWith) Write(b []byte) (int, error) {
	if len(b) >= w.long {
		w.at(unsafe.SliceData(b))
		time.Sleep(time.Minute) // in a synctest bubble
	}
	return w.ResponseRecorder.Write(b)
}

// However many take the result of a job, and however slowly, it is in memory once.
func TestAsyncResultIsInMemoryOnce(t *testing.T) {
	for name, c := range map[string]struct {
		method, accept string
		long           int // of one write
	}{
		"a stream of events":  {"GET", "text/event-stream", 200 << 10},
		"an answer":           {"GET", "application/json", 400 << 10},
		"a page":              {"GET", "text/html", 400 << 10},
		"an answer to a POST": {"POST", "", 400 << 10},
		"streams and answers": {"GET", "", 200 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const clients = 16
				e := &remoteJobs{result: `"` + strings.Repeat("x", 500<<10) + `"`}
				h := middleware.Async(e, "report", middleware.WithWait(time.Second, time.Second))
				var mu sync.Mutex
				places := make(map[*byte]int)
				bodies := make(map[string]int)
				var wg sync.WaitGroup
				for i := range clients {
					r := httptest.NewRequest(c.method, "/reports/1", strings.NewReader("{}"))
					r.Header.Set("Content-Type", "application/json")
					accept := c.accept
					if accept == "" && c.method == "GET" {
						accept = []string{"text/event-stream", "application/json"}[i%2]
					}
					r.Header.Set("Accept", accept)
					w := waitsWith{httptest.NewRecorder(), c.long, func(p *byte) {
						mu.Lock()
						defer mu.Unlock()
						places[p]++
					}}
					wg.Go(func() {
						h.ServeHTTP(w, r)
						mu.Lock()
						defer mu.Unlock()
						bodies[strings.TrimSuffix(w.Body.String(), ":\n\n")]++ // a heartbeat may have been due
					})
				}
				synctest.Wait()
				want := 1
				if name == "streams and answers" {
					want = 2
				}
				mu.Lock()
				if len(places) != want {
					t.Errorf("%d clients are sent it from %d places in memory, want %d", clients, len(places), want)
				}
				mu.Unlock()
				for began := 0; e.freed.Load() < e.given.Load(); began++ {
					if began == 1000 {
						t.Errorf("%d of %d results that the engine gave are still held", e.given.Load()-e.freed.Load(), e.given.Load())
						break
					}
					runtime.GC()
					runtime.Gosched()
				}
				wg.Wait()
				if len(bodies) != want {
					t.Errorf("%d different bodies, want %d", len(bodies), want)
				}
				for body := range bodies {
					if !strings.Contains(body, strings.Repeat("x", 500<<10)) {
						t.Errorf("a body without the result: %d bytes", len(body))
					}
				}
			})
		})
	}
}

// While nobody takes it, it is not held either, and the next has it as it is then.
func TestAsyncResultIsNotKept(t *testing.T) {
	e := &remoteJobs{result: `"one"`}
	h := middleware.Async(e, "report")
	for _, result := range []string{`"one"`, `"two"`} { // an engine whose jobs come to another end is none, but it shows
		e.result = result
		for _, accept := range []string{"text/event-stream", "application/json", "text/html"} {
			r := httptest.NewRequest("GET", "/reports/1", http.NoBody)
			r.Header.Set("Accept", accept)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if !strings.Contains(w.Body.String(), strings.Trim(result, `"`)) {
				t.Errorf("%s: %q, want %s in it", accept, w.Body, result)
			}
		}
	}
}
