package middleware_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
)

// Whose client does not send the rest of the body leaves the permit of an adaptive limit to others, and the slot of a pool, however the handler reads it; with
// the body it has one again, and the body is whole.
func TestSlowBodiesHoldNothing(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 8<<10)
	var form bytes.Buffer
	parts := multipart.NewWriter(&form)
	parts.WriteField("v", big)
	parts.Close()
	text, _ := json.Marshal(big)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
	}))
	defer backend.Close()
	to, _ := url.Parse(backend.URL)
	proxy := httputil.NewSingleHostReverseProxy(to)
	for _, c := range []struct {
		name, kind, body string
		read             func(w http.ResponseWriter, r *http.Request) (string, error)
	}{
		{"all of it", "text/plain", big, func(_ http.ResponseWriter, r *http.Request) (string, error) {
			b, err := io.ReadAll(r.Body)
			return string(b), err
		}},
		{"JSON", "application/json", string(text), func(_ http.ResponseWriter, r *http.Request) (v string, err error) {
			return v, json.NewDecoder(r.Body).Decode(&v)
		}},
		{"a form", "application/x-www-form-urlencoded", "v=" + big, func(_ http.ResponseWriter, r *http.Request) (string, error) {
			return r.FormValue("v"), r.ParseForm()
		}},
		{"parts of a form", parts.FormDataContentType(), form.String(), func(_ http.ResponseWriter, r *http.Request) (string, error) {
			return r.FormValue("v"), r.ParseMultipartForm(1 << 20)
		}},
		{"a proxy", "text/plain", big, func(w http.ResponseWriter, r *http.Request) (string, error) {
			proxy.ServeHTTP(w, r)
			return "", nil
		}},
	} {
		for _, h2 := range []bool{false, true} {
			for _, length := range []bool{false, true} {
				for _, slot := range []bool{false, true} {
					t.Run(fmt.Sprint(c.name, ", HTTP/2 ", h2, ", of a known length ", length, ", a slot ", slot), func(t *testing.T) {
						l := limiter.NewAdaptive(limiter.WithLimits(1, 1))
						p := pool.New(pool.WithSlots(1))
						layer, held, came := middleware.Concurrency(l), func() int { return l.Stats().InFlight }, func() bool { return l.Stats().Admitted > 0 }
						if slot {
							layer, held, came = middleware.Pool(p), func() int { return p.Stats().Used }, func() bool { return p.Stats().Begun > 0 }
						}
						s, _ := serve(t, middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
							if r.Method != "POST" {
								return
							}
							v, err := c.read(w, r)
							if n := held(); n != 1 {
								t.Errorf("%d are held when the body has come, want 1", n)
							}
							if err != nil {
								t.Error(err)
							}
							io.WriteString(w, v)
						}), layer), h2)
						out, in := io.Pipe()
						req, _ := http.NewRequest("POST", s.URL, out)
						req.Header.Set("Content-Type", c.kind)
						if length {
							req.ContentLength = int64(len(c.body))
						}
						go func() {
							defer in.Close()
							io.WriteString(in, c.body[:len(c.body)/2])
							for began := time.Now(); !came() || held() > 0; runtime.Gosched() {
								if time.Since(began) > 2*time.Minute {
									t.Error("it is held by a client that does not send")
									return
								}
							}
							other, err := s.Client().Get(s.URL + "/")
							if err != nil {
								t.Error(err)
								return
							}
							other.Body.Close()
							if other.StatusCode != http.StatusOK {
								t.Errorf("another one's status is %d meanwhile", other.StatusCode)
							}
							io.WriteString(in, c.body[len(c.body)/2:])
						}()
						resp, err := s.Client().Do(req)
						if err != nil {
							t.Fatal(err)
						}
						defer resp.Body.Close()
						if got, err := io.ReadAll(resp.Body); err != nil || string(got) != big {
							t.Errorf("%d bytes, %v; want %d, or not those that were sent", len(got), err, len(big))
						}
					})
				}
			}
		}
	}
}

// send sends a request with that body to h, on this goroutine.
func send(h http.Handler, body io.Reader) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("POST", "/", body))
	return w
}

// seenBody is a body of parts that notes what look returns just before each comes.
type seenBody struct {
	slowSource
	look func() int
	seen []int
}

func (b *seenBody) Read(p []byte) (int, error) {
	time.Sleep(b.each) // in a synctest bubble
	b.seen = append(b.seen, b.look())
	if b.n--; b.n < 0 {
		return 0, io.EOF
	}
	return copy(p, strings.Repeat("x", 4<<10)), nil
}

// A permit is others' for the wait of one Read and for no other time.
func TestPermitsOfSlowBodies(t *testing.T) {
	const long, short, again = middleware.BodyPatience + time.Millisecond, middleware.BodyPatience - time.Millisecond, middleware.BodySlow + time.Microsecond
	adaptive := func() *limiter.Concurrency { return limiter.NewAdaptive(limiter.WithLimits(1, 1)) }
	fixed := func() *limiter.Concurrency { return limiter.NewConcurrency(1) }
	named := middleware.WithLongLived(func(*http.Request) bool { return true })
	for _, c := range []struct {
		rule  string
		l     func() *limiter.Concurrency
		opts  []middleware.ConcurrencyOption
		each  time.Duration // a Read takes
		first time.Duration // and the first one, if that is something else
		want  []int         // in flight just before three parts come, and the end
	}{
		{"a Read that waits leaves it to others", adaptive, nil, long, 0, []int{0, 0, 0, 0}},
		{"one that ends before does not", adaptive, nil, short, 0, []int{1, 1, 1, 1}},
		{"a body that is slow once is so again", adaptive, nil, again, long, []int{0, 0, 0, 0}},
		{"and has it where it is not", adaptive, nil, 0, long, []int{0, 1, 1, 1}},
		{"a fixed limit is the user's number", fixed, nil, long, 0, []int{1, 1, 1, 1}},
		{"also of what is named to be long-lived", fixed, []middleware.ConcurrencyOption{named}, long, 0, []int{1, 1, 1, 1}},
		{"an adaptive one of that is as any other", adaptive, []middleware.ConcurrencyOption{named}, long, 0, []int{0, 0, 0, 0}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := c.l()
				inFlight := func() int { return l.Stats().InFlight }
				body := &seenBody{slowSource: slowSource{3, max(c.each, c.first)}, look: inFlight}
				h := middleware.Concurrency(l, c.opts...).Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					for p, err := make([]byte, 4<<10), error(nil); err == nil; {
						_, err = r.Body.Read(p)
						if n := inFlight(); n != 1 {
							t.Errorf("%d in flight after a Read, want 1", n)
						}
						body.each = c.each
					}
				}))
				send(h, body)
				if !slices.Equal(body.seen, c.want) {
					t.Errorf("in flight: %v, want %v", body.seen, c.want)
				}
				if st := l.Stats(); st.InFlight != 0 || st.Admitted != 1 || st.Success != 1 {
					t.Errorf("in the end: %+v", st)
				}
				pass(time.Minute) // no timer is left
			})
		})
	}
}

// So it is with the slot of a pool, which waits in its queue as well, and with both where a limit is outside.
func TestSlotsOfSlowBodies(t *testing.T) {
	const long, short = middleware.BodyPatience + time.Millisecond, middleware.BodyPatience - time.Millisecond
	for _, c := range []struct {
		rule  string
		each  time.Duration // a Read takes
		want  []int         // slots used just before three parts come, and the end
		limit *limiter.Concurrency
	}{
		{"a Read that waits leaves it to others", long, []int{0, 0, 0, 0}, nil},
		{"one that ends before does not", short, []int{1, 1, 1, 1}, nil},
		{"inside an adaptive limit", long, []int{0, 0, 0, 0}, limiter.NewAdaptive()},
		{"inside a fixed limit", long, []int{0, 0, 0, 0}, limiter.NewConcurrency(5)},
	} {
		t.Run(c.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := pool.New(pool.WithSlots(1))
				used := func() int { return p.Stats().Used }
				layers := []middleware.Layer{middleware.Pool(p)}
				if c.limit != nil {
					layers = append(layers, middleware.Concurrency(c.limit))
				}
				h := middleware.Wrap(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					for b, err := make([]byte, 4<<10), error(nil); err == nil; {
						_, err = r.Body.Read(b)
						if n := used(); n != 1 {
							t.Errorf("%d slots used after a Read, want 1", n)
						}
					}
					if err := p.Do(r.Context(), func(context.Context) error { return nil }); err != nil {
						t.Errorf("in its own slot: %v", err)
					}
					time.Sleep(time.Second) // in a synctest bubble
				}), layers...)
				body := &seenBody{slowSource: slowSource{3, c.each}, look: used}
				send(h, body)
				if !slices.Equal(body.seen, c.want) {
					t.Errorf("slots used: %v, want %v", body.seen, c.want)
				}
				for range 5 { // all of the work is still to come when a body has come
					go send(h, &slowSource{1, c.each})
				}
				for range 100 {
					pass(100 * time.Millisecond)
					if n := used(); n > 1 {
						t.Errorf("%d slots used, want at most 1", n)
					}
				}
				if st := p.Stats(); st.Used != 0 || st.Waiting != 0 || st.Begun != 6 || st.Kinds[0].Running != 0 {
					t.Errorf("in the end: %+v", st)
				}
			})
		})
	}
}

// The end of a body of a known length is not waited for, and a permit that was given back for good is not taken again.
func TestPermitsOfBodiesAtTheirEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter.NewAdaptive(limiter.WithLimits(1, 1))
		body := &seenBody{slowSource: slowSource{1, middleware.BodyPatience / 2}, look: func() int { return l.Stats().InFlight }}
		h := middleware.Concurrency(l).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Body.Read(make([]byte, 4<<10))
			body.each = time.Second
			r.Body.Read(make([]byte, 1))
			w.Write(make([]byte, 4<<10))
			r.Body.Read(make([]byte, 1))
			if n := l.Stats().InFlight; n != 0 {
				t.Errorf("%d in flight where the client does not take the answer, want 0", n)
			}
		}))
		r := httptest.NewRequest("POST", "/", body)
		r.ContentLength = 4 << 10
		h.ServeHTTP(takes{httptest.NewRecorder(), time.Second}, r)
		if want := []int{1, 1, 0}; !slices.Equal(body.seen, want) {
			t.Errorf("in flight: %v, want %v", body.seen, want)
		}
		if st := l.Stats(); st.InFlight != 0 || st.Success != 1 {
			t.Errorf("in the end: %+v", st)
		}
	})
}

// All of the work is still to come when a body has come: it waits for a permit then, before those that came since, and no more is in flight than may be.
func TestSlowBodiesWaitForTheirPermit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, work = 20, 100 * time.Millisecond
		l := limiter.NewAdaptive(limiter.WithLimits(2, 2))
		var mu sync.Mutex
		var order []string
		h := middleware.Concurrency(l).Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			what := "another"
			if r.Method == "POST" {
				what = "a body"
				io.Copy(io.Discard, r.Body)
			}
			mu.Lock()
			order = append(order, what)
			mu.Unlock()
			if n := l.Stats().InFlight; n > 2 {
				t.Errorf("%d in flight, want at most 2", n)
			}
			time.Sleep(work) // in a synctest bubble
		}))
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() { send(h, &slowSource{0, time.Second}) })
		}
		pass(time.Second - time.Millisecond)
		if got := l.Stats(); got.InFlight != 0 || got.Admitted != n {
			t.Errorf("while the bodies come: %+v", got)
		}
		began := time.Now()
		for range 4 {
			ask(h, "")
		}
		wg.Wait()
		took := time.Since(began)
		pass(time.Second)
		mu.Lock()
		defer mu.Unlock()
		if i := slices.Index(order[2:], "another"); len(order) < n || i >= 0 && i < n-2 {
			t.Errorf("in the order %q", order)
		}
		if most := (n/2 + 3) * work; took > most {
			t.Errorf("took %v, want at most %v", took, most)
		}
	})
}

// However a request with a slow body ends, its permit is counted once.
func TestSlowBodiesEnd(t *testing.T) {
	gone := func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }
	for _, c := range []struct {
		rule    string
		handler http.HandlerFunc
		want    limiter.Outcome
	}{
		{"while another goroutine reads", func(_ http.ResponseWriter, r *http.Request) {
			go io.Copy(io.Discard, r.Body)
			time.Sleep(time.Second) // in a synctest bubble
		}, limiter.Success},
		{"in a panic", func(_ http.ResponseWriter, r *http.Request) {
			io.ReadFull(r.Body, make([]byte, 5000))
			panic(http.ErrAbortHandler)
		}, limiter.Failure},
		{"in a panic beside one that reads", func(_ http.ResponseWriter, r *http.Request) {
			go io.Copy(io.Discard, r.Body)
			time.Sleep(time.Second) // in a synctest bubble
			panic(http.ErrAbortHandler)
		}, limiter.Failure},
		{"as an event stream", func(w http.ResponseWriter, r *http.Request) {
			go io.Copy(io.Discard, r.Body)
			time.Sleep(time.Second) // in a synctest bubble
			w.Header().Set("Content-Type", "text/event-stream")
			w.(http.Flusher).Flush()
			time.Sleep(time.Hour) // in a synctest bubble
		}, limiter.Success},
		{"with a client that is gone", gone, limiter.Ignored},
		{"where a limit is inside as well", nil, limiter.Success},
	} {
		t.Run(c.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, inside := limiter.NewAdaptive(limiter.WithLimits(1, 1)), limiter.NewAdaptive(limiter.WithLimits(1, 1))
				handler := http.Handler(c.handler)
				if c.handler == nil {
					handler = middleware.Concurrency(inside).Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
						io.ReadFull(r.Body, make([]byte, 5000))
						if l.Stats().InFlight != 1 || inside.Stats().InFlight != 1 {
							t.Errorf("in flight: %d, and inside %d; want 1", l.Stats().InFlight, inside.Stats().InFlight)
						}
						go io.Copy(io.Discard, r.Body)
						time.Sleep(time.Second) // in a synctest bubble
						if l.Stats().InFlight != 0 || inside.Stats().InFlight != 0 {
							t.Errorf("in flight while the body is slow: %d, and inside %d; want 0", l.Stats().InFlight, inside.Stats().InFlight)
						}
					}))
				}
				h := middleware.Concurrency(l).Handler(handler)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if c.want == limiter.Ignored {
					time.AfterFunc(10*time.Second, cancel)
				}
				func() {
					defer func() {
						if v := recover(); v != nil && v != http.ErrAbortHandler {
							panic(v)
						}
					}()
					r := httptest.NewRequest("POST", "/", &slowSource{5, 3 * time.Second})
					h.ServeHTTP(httptest.NewRecorder(), r.WithContext(ctx))
				}()
				cancel()
				pass(time.Minute)
				for _, l := range []*limiter.Concurrency{l, inside} {
					st := l.Stats()
					got := [...]int64{limiter.Success: st.Success, limiter.Failure: st.Failure, limiter.Ignored: st.Ignored}
					if l == inside && c.handler != nil {
						continue
					}
					if st.InFlight != 0 || st.Queued != 0 || st.Admitted != 1 || got[c.want] != 1 || st.Success+st.Failure+st.Ignored != 1 {
						t.Errorf("%+v", st)
					}
				}
			})
		})
	}
}

// How many are without a permit so has a bound, and who goes on makes room for the next.
func TestSlowBodiesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const more = 3
		l := limiter.NewAdaptive(limiter.WithLimits(2000, 2000))
		h := middleware.Concurrency(l).Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			r.Body.Read(make([]byte, 1))
			time.Sleep(time.Minute) // in a synctest bubble
		}))
		go send(h, &slowSource{1, 10 * time.Second})
		synctest.Wait()
		for range middleware.SlowPlaces + more - 1 {
			go send(h, &slowSource{1, time.Minute})
		}
		pass(5 * time.Second)
		if got := l.Stats().InFlight; got != more {
			t.Errorf("%d hold a permit, want %d", got, more)
		}
		pass(6 * time.Second)
		if got := l.Stats().InFlight; got != more {
			t.Errorf("when one has gone on %d hold a permit, want it, and one less of the others", got)
		}
		pass(5 * time.Minute)
		if got := l.Stats(); got.InFlight != 0 || got.Success != middleware.SlowPlaces+more {
			t.Errorf("in the end: %+v", got)
		}
	})
}

// Uploads of one connection of HTTP/2 that have no permit yet fill the room that all have for their bodies. Those that have one leave it to others
// then, and all of them are served, with a server that nobody has set up for it.
func TestUploadsOfOneConnectionTakeTurns(t *testing.T) {
	const size, uploads = 2 << 20, 40
	l := limiter.NewAdaptive()
	s, _ := serve(t, middleware.Concurrency(l).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	})), true)
	client := s.Client()
	upload := func() {
		resp, err := client.Post(s.URL, "", strings.NewReader(strings.Repeat("x", size)))
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
