package middleware_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
)

// turnstile records in which order requests enter, and keeps each for the time of its header Take.
type turnstile struct {
	mu    sync.Mutex
	order []string
}

func (s *turnstile) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.order = append(s.order, r.Header.Get("Name"))
	s.mu.Unlock()
	d, _ := time.ParseDuration(r.Header.Get("Take"))
	time.Sleep(d) // in a synctest bubble
}

// pass lets time go by in a synctest bubble.
func pass(d time.Duration) {
	time.Sleep(d) // in a synctest bubble
	synctest.Wait()
}

// ask sends a request to h on a goroutine of its own.
func ask(h http.Handler, name string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Name", name)
	r.Header.Set("Take", "10ms")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	go h.ServeHTTP(w, r)
	synctest.Wait()
	return w
}

func number(name string) func(*http.Request) int {
	return func(r *http.Request) int {
		n, _ := strconv.Atoi(r.Header.Get(name))
		return n
	}
}

func TestConcurrencyPriorityOrdersWhoWaits(t *testing.T) {
	for _, c := range []struct {
		rule  string
		apart time.Duration // between the low and the high one
		want  []string
	}{
		{"the higher goes first", 50 * time.Millisecond, []string{"first", "high", "low"}},
		{"but not past one that waits longer than the priority is worth", 250 * time.Millisecond, []string{"first", "low", "high"}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var in turnstile
				l := limiter.NewConcurrency(1, limiter.WithQueue(10, time.Minute), limiter.WithPriorityStep(100*time.Millisecond))
				h := middleware.Concurrency(l, middleware.WithPriority(number("Priority"))).Handler(&in)
				ask(h, "first", "Take", "1s")
				ask(h, "low")
				pass(c.apart)
				ask(h, "high", "Priority", "2")
				pass(2 * time.Second)
				if !slices.Equal(in.order, c.want) {
					t.Errorf("order %v, want %v", in.order, c.want)
				}
			})
		})
	}
}

func TestConcurrencyClientsShareEvenly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var in turnstile
		l := limiter.NewConcurrency(1, limiter.WithQueue(100, time.Minute))
		h := middleware.Concurrency(l, middleware.WithClient(func(r *http.Request) string { return r.Header.Get("Client") })).Handler(&in)
		ask(h, "first")
		for range 50 {
			ask(h, "greedy", "Client", "greedy")
		}
		for range 5 {
			ask(h, "modest", "Client", "modest")
		}
		pass(time.Second)
		modest := 0
		for _, name := range in.order[1:13] {
			if name == "modest" {
				modest++
			}
		}
		if modest != 5 {
			t.Errorf("of the first 12 that waited %d are the modest client's, want all 5: %v", modest, in.order[1:13])
		}
		if len(in.order) != 56 {
			t.Errorf("%d requests served, want 56", len(in.order))
		}
	})
}

func TestConcurrencyWeightTakesPermits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var in turnstile
		l := limiter.NewConcurrency(4, limiter.WithQueue(10, time.Minute))
		h := middleware.Concurrency(l, middleware.WithWeight(number("Weight"))).Handler(&in)
		ask(h, "three", "Weight", "3", "Take", "20ms")
		ask(h, "two", "Weight", "2")
		if s := l.Stats(); s.InFlight != 3 || s.Queued != 1 {
			t.Errorf("%d in flight, %d queued; want 3 and 1", s.InFlight, s.Queued)
		}
		pass(25 * time.Millisecond)
		if s := l.Stats(); s.InFlight != 2 || s.Queued != 0 {
			t.Errorf("once there is room: %d in flight, %d queued; want 2 and 0", s.InFlight, s.Queued)
		}
		ask(h, "all", "Weight", "9") // counts as the limit: it runs alone
		pass(10 * time.Millisecond)
		if s := l.Stats(); s.InFlight != 4 {
			t.Errorf("above the limit: %d in flight, want 4", s.InFlight)
		}
		pass(time.Second)
		if s := l.Stats(); s.InFlight != 0 {
			t.Errorf("at rest: %d in flight", s.InFlight)
		}
	})
}

// Retry-After is at least a second, whole, and the response is not to be kept.
func TestConcurrencyRefusal(t *testing.T) {
	full := limiter.NewConcurrency(1)
	full.TryAcquire(limiter.Request{})
	for _, method := range []string{"GET", "HEAD", "POST"} {
		var rejection middleware.Rejection
		var ran bool
		trace := &middleware.Trace{Rejected: func(_ *http.Request, j middleware.Rejection) { rejection = j }}
		h := middleware.Concurrency(full, middleware.WithTrace(trace)).Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { ran = true }))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, "/", nil))
		if ran || w.Code != http.StatusServiceUnavailable {
			t.Errorf("%s: status %d, handler ran: %v; want 503 without it", method, w.Code, ran)
		}
		if s, err := strconv.Atoi(w.Header().Get("Retry-After")); err != nil || s < 1 || s > 4 {
			t.Errorf("%s: Retry-After %q; want 1 to 4 whole seconds", method, w.Header().Get("Retry-After"))
		}
		if got := w.Header().Get("Cache-Control"); got != "no-store" {
			t.Errorf("%s: Cache-Control %q", method, got)
		}
		if got := w.Header().Get("Content-Type"); got != "application/problem+json" {
			t.Errorf("%s: Content-Type %q", method, got)
		}
		if (w.Body.Len() == 0) != (method == "HEAD") {
			t.Errorf("%s: body %q", method, w.Body)
		}
		if rejection.Layer != "concurrency" || rejection.Status != 503 || !errors.Is(rejection.Err, limiter.ErrSaturated) {
			t.Errorf("%s: %+v", method, rejection)
		}
	}
}

func TestConcurrencyRefusesWhatWouldMissItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var in turnstile
		var refused []error
		l := limiter.NewConcurrency(1, limiter.WithQueue(100, time.Minute))
		trace := &middleware.Trace{Rejected: func(_ *http.Request, j middleware.Rejection) { refused = append(refused, j.Err) }}
		h := middleware.Concurrency(l, middleware.WithTrace(trace)).Handler(&in)
		for range 30 { // it learns that the line moves every 10 ms
			ask(h, "")
		}
		pass(100 * time.Millisecond)
		for _, c := range []struct {
			left time.Duration
			code int
		}{{50 * time.Millisecond, 503}, {5 * time.Second, 200}} {
			ctx, cancel := context.WithTimeout(t.Context(), c.left)
			w := httptest.NewRecorder()
			began := time.Now()
			h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil).WithContext(ctx))
			cancel()
			if w.Code != c.code {
				t.Errorf("%v left: status %d, want %d", c.left, w.Code, c.code)
			}
			if took := time.Since(began); c.code == 503 && took > 0 {
				t.Errorf("%v left: refused after %v, want at once", c.left, took)
			}
		}
		if len(refused) != 1 || !errors.Is(refused[0], limiter.ErrWouldMissDeadline) {
			t.Errorf("refused: %v", refused)
		}
		pass(time.Second)
	})
}

// In shadow mode nothing is refused or delayed, and what would have been is counted.
func TestConcurrencyShadow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var in turnstile
		shed := 0
		l := limiter.NewConcurrency(2, limiter.WithShadow())
		h := middleware.Concurrency(l).Handler(&in)
		began := time.Now()
		var answers []*httptest.ResponseRecorder
		for range 5 {
			answers = append(answers, ask(h, ""))
		}
		if s := l.Stats(); s.InFlight != 5 || s.Shed != 3 || !s.Shadow {
			t.Errorf("%d in flight, %d shed, shadow %v; want 5, 3 and true", s.InFlight, s.Shed, s.Shadow)
		}
		if time.Since(began) != 0 {
			t.Errorf("requests were delayed by %v", time.Since(began))
		}
		pass(time.Second)
		for _, w := range answers {
			if w.Code != 200 {
				shed++
			}
		}
		if s := l.Stats(); shed != 0 || s.InFlight != 0 || s.Success != 5 {
			t.Errorf("%d refused, %d in flight at the end, %d successes; want 0, 0 and 5", shed, s.InFlight, s.Success)
		}
	})
}

// pipeListener accepts connections made by dial.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { close(l.done); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }
func (l *pipeListener) dial() net.Conn {
	a, b := net.Pipe()
	l.conns <- b
	return a
}

// unwrapper is what is often put around a handler to log the status: it unwraps, and has no other optional method.
type unwrapper struct{ http.ResponseWriter }

func (u unwrapper) Unwrap() http.ResponseWriter { return u.ResponseWriter }

// What becomes long-lived gives its permit back when it does, not when it ends: what it took until then is the work.
func TestConcurrencyLongLivedLeaves(t *testing.T) {
	flush := func(w http.ResponseWriter) { w.(http.Flusher).Flush() }
	plain := func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "x"); flush(w) }
	stream := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "Text/Event-Stream")
		if err := http.NewResponseController(w).Flush(); err != nil {
			panic(err)
		}
	}
	takeOver := func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
		rw.Flush()
		go func() { // as a websocket does
			io.Copy(io.Discard, conn)
			conn.Close()
		}()
	}
	for _, c := range []struct {
		name string
		opts []middleware.ConcurrencyOption
		open func(http.ResponseWriter, *http.Request)
		held int // permits while it stays open
		want limiter.Outcome
		deep bool // an unwrapper is around the layers
	}{
		{"a handler that only takes long", nil, func(http.ResponseWriter, *http.Request) {}, 1, limiter.Success, false},
		{"a response that is flushed", nil, plain, 1, limiter.Success, false},
		{"an event stream before its first flush", nil, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, "data: x\n\n")
		}, 1, limiter.Success, false},
		{"an event stream", nil, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
			io.WriteString(w, "data: x\n\n")
			flush(w)
		}, 0, limiter.Success, false},
		{"an event stream, flushed through ResponseController", nil, stream, 0, limiter.Success, false},
		{"an event stream, flushed past a writer around that unwraps", nil, stream, 0, limiter.Success, true},
		{"what WithLongLived names", []middleware.ConcurrencyOption{
			middleware.WithLongLived(func(r *http.Request) bool { return r.URL.Path == "/open" }),
		}, plain, 0, limiter.Success, false},
		{"what WithLongLived does not name", []middleware.ConcurrencyOption{
			middleware.WithLongLived(func(r *http.Request) bool { return r.URL.Path == "/other" }),
		}, plain, 1, limiter.Success, false},
		{"a switched protocol, taken over by hijacking", nil, takeOver, 0, limiter.Success, false},
		{"a switched protocol, taken over past a writer around that unwraps", nil, takeOver, 0, limiter.Success, true},
		{"status 101 from the handler", nil, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "x")
			w.WriteHeader(http.StatusSwitchingProtocols)
		}, 0, limiter.Success, false},
		{"informational responses", nil, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
		}, 1, limiter.Success, false},
		{"CONNECT tunnel", nil, plain, 0, limiter.Success, false},
		{"CONNECT tunnel, flushed past a writer around that unwraps", nil, func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).Flush()
		}, 0, limiter.Success, true},
		{"CONNECT refused by the handler", nil, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			flush(w)
		}, 1, limiter.Success, false},
	} {
		for _, adaptive := range []bool{false, true} {
			t.Run(c.name+"/adaptive="+strconv.FormatBool(adaptive), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := limiter.NewConcurrency(1)
					if adaptive {
						l = limiter.NewAdaptive()
					}
					ln := &pipeListener{make(chan net.Conn), make(chan struct{})}
					leave := make(chan struct{})
					h := middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						c.open(w, r)
						<-leave
					}), middleware.Concurrency(l, c.opts...))
					srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if c.deep {
							w = unwrapper{w}
						}
						h.ServeHTTP(w, r)
					})}
					go srv.Serve(ln)
					conn := ln.dial()
					method := "GET"
					if strings.HasPrefix(c.name, "CONNECT") {
						method = "CONNECT"
					}
					go io.WriteString(conn, method+" /open HTTP/1.1\r\nHost: x\r\n\r\n")
					go io.Copy(io.Discard, bufio.NewReader(conn))
					synctest.Wait()
					if n := l.Stats().InFlight; n != c.held {
						t.Errorf("%d permits held while it is open, want %d", n, c.held)
					}
					close(leave)
					synctest.Wait()
					s := l.Stats()
					if got := [3]int64{s.Success, s.Failure, s.Ignored}; s.InFlight != 0 || got[c.want] != 1 || got[0]+got[1]+got[2] != 1 {
						t.Errorf("at the end: %d in flight, outcomes %v; want 0, and one of %v", s.InFlight, got, c.want)
					}
					conn.Close()
					srv.Close()
					synctest.Wait()
				})
			})
		}
	}
}

// A service that could open 4,000 long-lived requests a second, each with 50 ms of work before, refuses none of 1,000 where there is nothing else
// to learn from.
func TestAdaptiveLearnsFromWhatBecomesLongLived(t *testing.T) {
	const places, takes, rate = 200, 50 * time.Millisecond, 1000
	for name, open := range map[string]func(http.ResponseWriter){
		"event streams": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "text/event-stream")
			w.(http.Flusher).Flush()
		},
		"switched protocols": func(w http.ResponseWriter) { w.WriteHeader(http.StatusSwitchingProtocols) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := limiter.NewAdaptive()
				sem := make(chan struct{}, places)
				h := middleware.Concurrency(l).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					sem <- struct{}{}
					time.Sleep(takes) // in a synctest bubble
					<-sem
					open(w)
					time.Sleep(10 * time.Second) // in a synctest bubble
				}))
				var clients sync.WaitGroup
				come := func(n int) {
					for range n {
						time.Sleep(time.Second / rate) // in a synctest bubble
						clients.Go(func() { h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)) })
					}
				}
				come(2 * rate)
				begun := l.Stats()
				come(4 * rate)
				if s := l.Stats(); s.Shed > begun.Shed || s.Success == begun.Success {
					t.Errorf("from 2 s on: %d opened, %d refused, want none; limit %d", s.Success-begun.Success, s.Shed-begun.Shed, s.Limit)
				}
				clients.Wait()
			})
		})
	}
}

// A request never waits for a permit that it holds itself, however often the layer stands in its way; and what it held before is
// no permit now.
func TestConcurrencyTakesAPermitOnce(t *testing.T) {
	ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "served ") })
	public := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=60")
		ok(w, r)
	})
	for _, c := range []struct {
		name string
		h    func(middleware.Layer) http.Handler
		want int64 // times that a permit is taken
	}{
		{"two For that both match", func(l middleware.Layer) http.Handler {
			return middleware.Wrap(ok, middleware.For("/", l), middleware.For("GET /report", l))
		}, 1},
		{"around the mux and on a route", func(l middleware.Layer) http.Handler {
			mux := http.NewServeMux()
			mux.Handle("/report", l.Handler(ok))
			return middleware.Wrap(mux, l)
		}, 1},
		{"another limit in between", func(l middleware.Layer) http.Handler {
			other := middleware.Concurrency(limiter.NewConcurrency(1))
			return middleware.Chain(l.Handler, other.Handler, l.Handler, other.Handler)(ok)
		}, 1},
		{"around a cache and inside it", func(l middleware.Layer) http.Handler {
			return middleware.Chain(l.Handler, middleware.Cache(cache.New(1<<20)).Handler, l.Handler)(public)
		}, 1},
		{"one after the other", func(l middleware.Layer) http.Handler {
			first, second := l.Handler(ok), l.Handler(ok)
			other := middleware.Concurrency(limiter.NewConcurrency(1))
			return other.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				first.ServeHTTP(w, r)
				second.ServeHTTP(w, r)
			}))
		}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := limiter.NewConcurrency(1, limiter.WithQueue(10, time.Second))
				w := httptest.NewRecorder()
				c.h(middleware.Concurrency(l)).ServeHTTP(w, httptest.NewRequest("GET", "/report", nil))
				if got, want := w.Body.String(), strings.Repeat("served ", int(c.want)); got != want {
					t.Errorf("the response is %q, want %q", got, want)
				}
				if s := l.Stats(); w.Code != 200 || s.Admitted != c.want || s.Success != c.want || s.InFlight != 0 {
					t.Errorf("status %d, %d admitted, %d successes, %d in flight; want 200, %d, %d, 0", w.Code, s.Admitted, s.Success, s.InFlight, c.want, c.want)
				}
			})
		})
	}
}

// A controller that finds nobody who can flush changes nothing: the handler may still answer with an error, and it counts as one.
func TestFlushThatNobodyCanDoIsNoAnswer(t *testing.T) {
	l := limiter.NewConcurrency(1)
	middleware.Concurrency(l).Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := http.NewResponseController(unwrapper{w}).Flush(); !errors.Is(err, http.ErrNotSupported) {
			t.Errorf("Flush: %v", err)
		}
		http.Error(w, "cannot stream", http.StatusInternalServerError)
	})).ServeHTTP(&plainWriter{http.Header{}}, httptest.NewRequest("GET", "/", nil))
	if s := l.Stats(); s.Failure != 1 {
		t.Errorf("%+v; want one failure", s)
	}
}

// How a request ended, as the limiter is told. Each has a second until its deadline, and 0.6 s until the server's WriteTimeout.
func TestConcurrencyOutcomes(t *testing.T) {
	answer := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
	}
	for _, c := range []struct {
		name string
		h    http.HandlerFunc
		want limiter.Outcome
	}{
		{"nothing written is a 200", func(http.ResponseWriter, *http.Request) {}, limiter.Success},
		{"a client's error is work done", answer(404), limiter.Success},
		{"501", answer(501), limiter.Success},
		{"500", answer(500), limiter.Failure},
		{"502", answer(502), limiter.Failure},
		{"503 of the handler", answer(503), limiter.Failure},
		{"504", answer(504), limiter.Failure},
		{"a quota further in", answer(429), limiter.Ignored},
		{"a panic", func(http.ResponseWriter, *http.Request) { panic("x") }, limiter.Failure},
		{"http.ErrAbortHandler", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, limiter.Failure},
		{"the deadline is over", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, limiter.Failure},
		{"the deadline is over, and the handler panics", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done(); panic("x") }, limiter.Failure},
		{"an answer after the deadline", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done(); w.WriteHeader(200) }, limiter.Failure},
		{"the client left", func(_ http.ResponseWriter, r *http.Request) { cancelOf(r)() }, limiter.Ignored},
		{"the client left, and the handler panics", func(_ http.ResponseWriter, r *http.Request) { cancelOf(r)(); panic("x") }, limiter.Ignored},
		{"the client left after a 503", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503); cancelOf(r)() }, limiter.Ignored},
		{"the server's WriteTimeout is over, as net/http tells it", func(_ http.ResponseWriter, r *http.Request) {
			time.Sleep(600 * time.Millisecond) // in a synctest bubble
			cancelOf(r)()
		}, limiter.Failure},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := limiter.NewConcurrency(1)
			h := middleware.Concurrency(l).Handler(c.h)
			ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), http.ServerContextKey, &http.Server{WriteTimeout: 600 * time.Millisecond}), time.Second)
			defer cancel()
			r := httptest.NewRequest("GET", "/", nil).WithContext(context.WithValue(ctx, cancelKey{}, cancel))
			func() {
				defer func() { _ = recover() }()
				h.ServeHTTP(httptest.NewRecorder(), r)
			}()
			s := l.Stats()
			if got := [3]int64{s.Success, s.Failure, s.Ignored}; s.InFlight != 0 || got[c.want] != 1 || s.Admitted != 1 {
				t.Errorf("%s: %d in flight, outcomes %v; want one of %v", c.name, s.InFlight, got, c.want)
			}
		})
	}
}

type cancelKey struct{}

func cancelOf(r *http.Request) context.CancelFunc {
	return r.Context().Value(cancelKey{}).(context.CancelFunc)
}

// What is cut off ends at the same rate whatever the dependency does, and work that fails soon ends at any rate. If that
// were throughput the limit would follow it up and stay there. The dependency has 10 connections and takes 20 ms, so that 500/s are
// possible, and a request has 200 ms.
func TestAdaptiveLimitDoesNotLearnFromFailures(t *testing.T) {
	const usual = 20 * time.Millisecond
	for name, c := range map[string]struct {
		load  float64       // 1/s
		takes time.Duration // for a while
		late  int           // what the handler answers where its time is over; 0 is nothing
		fails int64         // of so many requests one fails after 1 ms, for that while
	}{
		"cut off, with nothing written": {750, 300 * time.Millisecond, 0, 0},
		"cut off, and 502 written":      {750, 300 * time.Millisecond, 502, 0},
		"all fail soon":                 {750, usual, 0, 1},
		"every second fails soon":       {1500, usual, 0, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := limiter.NewAdaptive()
				free := make(chan struct{}, 10)
				var takes, fails, asked, good atomic.Int64
				takes.Store(int64(usual))
				h := middleware.Concurrency(l).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if n := fails.Load(); n > 0 && asked.Add(1)%n == 0 {
						time.Sleep(time.Millisecond) // in a synctest bubble
						w.WriteHeader(500)
						return
					}
					select {
					case free <- struct{}{}:
						defer func() { <-free }()
						select {
						case <-time.After(time.Duration(takes.Load())):
							good.Add(1)
							return
						case <-r.Context().Done():
						}
					case <-r.Context().Done():
					}
					if c.late != 0 {
						w.WriteHeader(c.late)
					}
				}))
				rnd := rand.New(rand.NewPCG(1, 2))
				next := time.Now()
				// load lets requests come for that long, and returns how many a second were served.
				load := func(d time.Duration) float64 {
					before := good.Load()
					for end := next.Add(d); next.Before(end); {
						next = next.Add(time.Duration(rnd.ExpFloat64() / c.load * 1e9))
						time.Sleep(time.Until(next)) // in a synctest bubble
						go func() {
							ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
							defer cancel()
							h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil).WithContext(ctx))
						}()
					}
					return float64(good.Load()-before) / d.Seconds()
				}
				before := load(5 * time.Second)
				takes.Store(int64(c.takes))
				fails.Store(c.fails)
				load(10 * time.Second)
				takes.Store(int64(usual))
				fails.Store(0)
				if n := l.Stats().Limit; n > 40 {
					t.Errorf("limit %d after the failures, want one near the 10 that work at a time", n)
				}
				load(8 * time.Second)
				if after := load(5 * time.Second); after < .9*before {
					t.Errorf("%.0f/s served before, %.0f/s from 8 s after the failures on; limit %d", before, after, l.Stats().Limit)
				}
				pass(time.Second) // what is left
			})
		})
	}
}

// A request that gives up in the line is answered too, takes no permit, and makes room.
func TestConcurrencyClientLeavesTheLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var in turnstile
		l := limiter.NewConcurrency(1, limiter.WithQueue(1, time.Minute))
		h := middleware.Concurrency(l).Handler(&in)
		ask(h, "first", "Take", "1s")
		ctx, cancel := context.WithCancel(t.Context())
		go h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil).WithContext(ctx))
		synctest.Wait()
		cancel()
		synctest.Wait()
		if s := l.Stats(); s.Queued != 0 || s.Left != 1 {
			t.Errorf("%d queued, %d left; want 0 and 1", s.Queued, s.Left)
		}
		ask(h, "next")
		pass(2 * time.Second)
		if got := strings.Join(in.order, " "); got != "first next" {
			t.Errorf("served: %s", got)
		}
		if s := l.Stats(); s.InFlight != 0 || s.Admitted != 2 || s.Shed != 0 {
			t.Errorf("%d in flight, %d admitted, %d shed; want 0, 2, 0", s.InFlight, s.Admitted, s.Shed)
		}
	})
}

// A client that leaves the line gives up its place, if net/http sees it: over HTTP/1 it does not look at the connection before
// the body has been read.
func TestConcurrencyClientLeavesUnseen(t *testing.T) {
	for request, queued := range map[string]int{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n":                           0,
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n":     0,
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody": 1,
	} {
		synctest.Test(t, func(t *testing.T) {
			l := limiter.NewConcurrency(1, limiter.WithQueue(1, time.Minute))
			held, _ := l.TryAcquire(limiter.Request{})
			ln := &pipeListener{make(chan net.Conn), make(chan struct{})}
			srv := &http.Server{Handler: middleware.Concurrency(l).Handler(http.NotFoundHandler())}
			go srv.Serve(ln)
			conn := ln.dial()
			go io.WriteString(conn, request)
			synctest.Wait()
			if n := l.Stats().Queued; n != 1 {
				t.Errorf("%q: %d queued, want 1", request, n)
			}
			conn.Close()
			synctest.Wait()
			if s := l.Stats(); s.Queued != queued || s.Left != int64(1-queued) {
				t.Errorf("%q, and gone: %d queued, %d left; want %d and %d", request, s.Queued, s.Left, queued, 1-queued)
			}
			held.Release(limiter.Ignored)
			synctest.Wait()
			if s := l.Stats(); s.Queued != 0 || s.InFlight != 0 {
				t.Errorf("%q: %d queued, %d in flight at the end; want none", request, s.Queued, s.InFlight)
			}
			srv.Close()
			synctest.Wait()
		})
	}
}

// Layers side by side share clock readings, but not over what takes time: a wait in the line, or a function of the
// user's, is no time of the handler.
func TestWaitingIsNoTimeOfTheHandler(t *testing.T) {
	slowly := func(*http.Request) int { time.Sleep(time.Second); return 1 } // in a synctest bubble
	for name, c := range map[string]struct {
		opts []middleware.ConcurrencyOption
		held bool
	}{
		"a wait in the line":     {nil, true},
		"a function of priority": {[]middleware.ConcurrencyOption{middleware.WithPriority(slowly)}, false},
		"a function of weight":   {[]middleware.ConcurrencyOption{middleware.WithWeight(slowly)}, false},
		"a function of the client": {[]middleware.ConcurrencyOption{
			middleware.WithClient(func(r *http.Request) string { slowly(r); return "" })}, false},
		"a function of what is long-lived": {[]middleware.ConcurrencyOption{
			middleware.WithLongLived(func(r *http.Request) bool { slowly(r); return false })}, false},
	} {
		for _, sleep := range []time.Duration{0, time.Second} {
			t.Run(fmt.Sprintf("%s, and %v of work", name, sleep), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := limiter.NewConcurrency(1, limiter.WithQueue(1, time.Minute))
					g := breaker.NewGroup(breaker.WithSlowCalls(500*time.Millisecond, 1))
					h := middleware.Wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(sleep) }), // in a synctest bubble
						middleware.Concurrency(l, c.opts...), middleware.Breaker(g))
					if c.held {
						held, _ := l.TryAcquire(limiter.Request{})
						time.AfterFunc(time.Second, func() { held.Release(limiter.Ignored) })
					}
					h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
					want := uint64(0)
					if sleep > 0 {
						want = 1
					}
					if got := g.Get("").Stats().Slow; got != want {
						t.Errorf("%d slow calls, want %d", got, want)
					}
				})
			})
		}
	}
}

// Nor is a wait further in: many that wait for a pool have not met a handler that is slow, and a probe that waits there is not lost.
func TestWaitingFurtherInIsNoTimeOfTheHandler(t *testing.T) {
	const slow, work = time.Second, 100 * time.Millisecond
	var handler http.HandlerFunc = func(http.ResponseWriter, *http.Request) { time.Sleep(work) } // in a synctest bubble
	for name, wrap := range map[string]func(b middleware.Layer, p *pool.Pool, l *limiter.Concurrency) http.Handler{
		"a pool": func(b middleware.Layer, p *pool.Pool, _ *limiter.Concurrency) http.Handler {
			return middleware.Wrap(handler, b, middleware.Pool(p))
		},
		"a pool for a route": func(b middleware.Layer, p *pool.Pool, _ *limiter.Concurrency) http.Handler {
			return middleware.Wrap(handler, b, middleware.For("GET /", middleware.Pool(p)))
		},
		"a pool inside a mux": func(b middleware.Layer, p *pool.Pool, _ *limiter.Concurrency) http.Handler {
			mux := http.NewServeMux()
			mux.Handle("/", middleware.Pool(p).Handler(handler))
			return b.Handler(mux)
		},
		"a pool behind somebody else's writer": func(b middleware.Layer, p *pool.Pool, _ *limiter.Concurrency) http.Handler {
			h := middleware.Pool(p).Handler(handler)
			return b.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(unwrapper{w}, r) }))
		},
		"a limit": func(b middleware.Layer, _ *pool.Pool, l *limiter.Concurrency) http.Handler {
			return b.Handler(middleware.Concurrency(l).Handler(handler))
		},
		"a limit behind somebody else's writer": func(b middleware.Layer, _ *pool.Pool, l *limiter.Concurrency) http.Handler {
			h := middleware.Concurrency(l).Handler(handler)
			return b.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(unwrapper{w}, r) }))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := breaker.NewGroup(breaker.WithSlowCalls(slow, 0.1), breaker.WithFailureRatio(1, 10), breaker.WithProbes(1), breaker.WithLease(slow))
				p := pool.New(pool.WithSlots(1))
				l := limiter.NewConcurrency(1, limiter.WithQueue(100, time.Minute))
				h := wrap(middleware.Breaker(g, middleware.WithBreakerKey(func(*http.Request) string { return "" })), p, l)
				var wg sync.WaitGroup
				for range 50 {
					wg.Go(func() { get(h, "GET", "/") })
				}
				time.Sleep(2*slow + work/2) // in a synctest bubble
				if s := g.Get("").Stats(); s.State != breaker.Closed || s.InFlight != 1 || s.Overdue != 0 {
					t.Errorf("while they wait: %v, %d in flight, %d overdue", s.State, s.InFlight, s.Overdue)
				}
				wg.Wait()
				if s := g.Get("").Stats(); s.Slow != 0 || s.Successes != 50 {
					t.Errorf("%d slow calls of %d", s.Slow, s.Successes)
				}

				for g.Get("").State() == breaker.Closed {
					call, _ := g.Get("").Allow()
					call.Done(breaker.Failure, slow)
				}
				time.Sleep(time.Minute) // in a synctest bubble
				_, slot, _ := p.Enter(t.Context())
				permit, _ := l.TryAcquire(limiter.Request{})
				wg.Go(func() { get(h, "GET", "/") })
				time.Sleep(5 * slow) // in a synctest bubble
				slot.Leave()
				permit.Release(limiter.Ignored)
				wg.Wait()
				if s := g.Get("").Stats(); s.State != breaker.Closed || s.LostProbes != 0 {
					t.Errorf("after a probe that waited: %v, %d probes lost", s.State, s.LostProbes)
				}
			})
		})
	}
}

// What took long before it came to wait was slow all the same.
func TestWaitingMakesNothingQuick(t *testing.T) {
	for name, begin := range map[string]string{"before the first byte": "", "after it": "beginning"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := breaker.NewGroup(breaker.WithSlowCalls(time.Second, 0.5))
				p := pool.New(pool.WithSlots(1))
				inside := middleware.Pool(p).Handler(http.NotFoundHandler())
				h := middleware.Breaker(g).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(2 * time.Second) // in a synctest bubble
					if begin != "" {
						io.WriteString(w, begin)
					}
					_, slot, _ := p.Enter(r.Context())
					time.AfterFunc(5*time.Second, slot.Leave)
					inside.ServeHTTP(w, r)
				}))
				get(h, "GET", "/")
				if n := g.Get("").Stats().Slow; n != 1 {
					t.Errorf("%d slow calls, want 1", n)
				}
			})
		})
	}
}

func TestFunctionsOfTheUsersAreNoTimeOfTheHandler(t *testing.T) {
	slowly := func(*http.Request) int { time.Sleep(time.Second); return 1 } // in a synctest bubble
	key := func(r *http.Request) string { slowly(r); return "" }
	l := limiter.NewRate(1e6, 1e6)
	for name, layers := range map[string]func(*breaker.Group) []middleware.Layer{
		"the key of a rate limit": func(g *breaker.Group) []middleware.Layer {
			return []middleware.Layer{middleware.Breaker(g),
				middleware.Rate(l, middleware.WithKey(func(r *http.Request) (string, error) { return key(r), nil }))}
		},
		"the cost": func(g *breaker.Group) []middleware.Layer {
			return []middleware.Layer{middleware.Breaker(g), middleware.Rate(l, middleware.WithCost(slowly))}
		},
		"the store of a rate limit": func(g *breaker.Group) []middleware.Layer {
			far := limiter.WithStore(farStore{limiter.NewMemoryStore(1)})
			return []middleware.Layer{middleware.Breaker(g), middleware.Rate(limiter.NewRate(1, 1, far, limiter.WithStoreTimeout(time.Minute)))}
		},
		"the limit of a key": func(g *breaker.Group) []middleware.Layer {
			own := limiter.WithKeyLimit(func(string) (rate.Limit, int) { return 1, slowly(nil) })
			return []middleware.Layer{middleware.Breaker(g), middleware.Rate(limiter.NewRate(1, 1, own))}
		},
		"the key of a breaker": func(g *breaker.Group) []middleware.Layer {
			return []middleware.Layer{middleware.Breaker(g, middleware.WithBreakerKey(key))}
		},
		"a trace": func(g *breaker.Group) []middleware.Layer {
			return []middleware.Layer{middleware.Breaker(g), middleware.Concurrency(limiter.NewConcurrency(1)),
				middleware.WithTrace(&middleware.Trace{Admitted: func(r *http.Request, _ string, _ time.Duration) { slowly(r) }})}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := breaker.NewGroup(breaker.WithSlowCalls(500*time.Millisecond, 1))
				get(middleware.Wrap(http.NotFoundHandler(), layers(g)...), "GET", "/")
				if st := g.Get("").Stats(); st.Slow != 0 || st.Successes != 1 {
					t.Errorf("%d slow calls of %d, want none of 1", st.Slow, st.Successes)
				}
			})
		})
	}
}

// A farStore takes a second.
type farStore struct{ *limiter.MemoryStore }

func (s farStore) Take(ctx context.Context, req limiter.StoreRequest, states []limiter.PolicyState) (bool, error) {
	time.Sleep(time.Second) // in a synctest bubble
	return s.MemoryStore.Take(ctx, req, states)
}

// The handler's time is measured whatever layer the request passed by on the way to it.
func TestHandlerIsTimedWhateverIsPassedBy(t *testing.T) {
	skip := middleware.WithSkip(func(*http.Request) bool { return true })
	elsewhere := func(l middleware.Layer) middleware.Layer { return middleware.For("/elsewhere", l) }
	one := func() *limiter.Concurrency { return limiter.NewConcurrency(1) }
	for name, inside := range map[string][]middleware.Layer{
		"nothing":                      nil,
		"a pool for another route":     {elsewhere(middleware.Pool(pool.New()))},
		"a breaker for another route":  {elsewhere(middleware.Breaker(breaker.NewGroup()))},
		"a limit for another route":    {elsewhere(middleware.Concurrency(one()))},
		"a cache for another route":    {elsewhere(middleware.Cache(cache.New(1 << 20)))},
		"a pool that is skipped":       {middleware.Pool(pool.New(), skip)},
		"a breaker that is skipped":    {middleware.Breaker(breaker.NewGroup(), skip)},
		"a limit that is skipped":      {middleware.Concurrency(one(), skip)},
		"a cache that is skipped":      {middleware.Cache(cache.New(1<<20), skip)},
		"a rate limit that is skipped": {middleware.Rate(limiter.NewRate(1, 1), skip)},
		"layers that are all skipped":  {middleware.Rate(limiter.NewRate(1, 1)), skip},
		"an option for a route":        {middleware.For("/", middleware.WithTrace(&middleware.Trace{}))},
		"a function for refusals":      {middleware.WithReject(func(http.ResponseWriter, *http.Request, *middleware.Rejection) {})},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var told time.Duration
				trace := middleware.WithTrace(&middleware.Trace{Done: func(_ *http.Request, res middleware.Result) { told = res.Duration }})
				g := breaker.NewGroup(breaker.WithSlowCalls(500*time.Millisecond, 1))
				h := http.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Second) })) // in a synctest bubble
				if inside != nil {
					h = middleware.Wrap(h, inside...)
				}
				get(middleware.Wrap(h, trace), "GET", "/")
				if told != time.Second {
					t.Errorf("the trace was told of %v, want 1s", told)
				}
				get(middleware.Breaker(g).Handler(h), "GET", "/")
				if st := g.Get("").Stats(); st.Slow != 1 {
					t.Errorf("%d slow calls, want 1", st.Slow)
				}
			})
		})
	}
}

// The bodies of requests in the queue lie in the room that the connection has for all, and by default those with a permit do not get the rest of
// theirs meanwhile. With room for each stream they do.
func TestUploadsOfOneConnectionDoNotHoldUpEachOther(t *testing.T) {
	const size, uploads = 2 << 20, 12
	l := limiter.NewConcurrency(2, limiter.WithQueue(uploads, time.Hour))
	srv := httptest.NewUnstartedServer(middleware.Concurrency(l).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	})))
	srv.EnableHTTP2 = true
	srv.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 100, MaxReceiveBufferPerStream: 64 << 10, MaxReceiveBufferPerConnection: 100 * 64 << 10}
	srv.StartTLS()
	defer srv.Close()
	client := srv.Client()
	upload := func() {
		resp, err := client.Post(srv.URL, "", strings.NewReader(strings.Repeat("x", size)))
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if want := fmt.Sprint(size, nil); string(b) != want || err != nil || resp.ProtoMajor != 2 {
			t.Errorf("%q, %v, over %s; want %q over HTTP/2", b, err, resp.Proto, want)
		}
	}
	upload() // so that the others use its connection
	var all sync.WaitGroup
	for range uploads {
		all.Go(upload)
	}
	all.Wait()
}
