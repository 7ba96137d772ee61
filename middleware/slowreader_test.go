package middleware_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
)

// Whose client does not take the answer gives the permit of an adaptive limit back, and the slot of a pool, however the handler writes, and the answer is
// whole in the end.
func TestSlowReadersHoldNoPermit(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // more than all buffers on the way
	text, sum := string(big), sha256.Sum256(big)
	file := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(file, big, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, write := range map[string]http.HandlerFunc{
		"one write":  func(w http.ResponseWriter, _ *http.Request) { w.Write(big) },
		"one string": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) },
		"a file":     func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) },
		"memory": func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(big))
		},
		"a source": func(w http.ResponseWriter, _ *http.Request) { io.Copy(w, io.MultiReader(bytes.NewReader(big))) },
		"the first part of a source": func(w http.ResponseWriter, _ *http.Request) {
			io.CopyN(w, io.MultiReader(bytes.NewReader(big)), int64(len(big)))
		},
		"many flushes": func(w http.ResponseWriter, _ *http.Request) {
			for part := range slices.Chunk(big, 2000) {
				w.Write(part)
				w.(http.Flusher).Flush()
			}
		},
	} {
		for _, h2 := range []bool{false, true} {
			for _, cached := range []bool{false, true} {
				if cached && name != "one write" {
					continue
				}
				l := limiter.NewAdaptive(limiter.WithLimits(1, 1), limiter.WithQueue(0, 0))
				p := pool.New(pool.WithSlots(1), pool.WithQueue(1, 2*time.Minute)) // a write that goes on has the slot for a moment
				for what, c := range map[string]struct {
					layer middleware.Layer
					held  func() int
				}{
					"permit": {middleware.Concurrency(l), func() int { return l.Stats().InFlight }},
					"slot":   {middleware.Pool(p), func() int { return p.Stats().Used }},
				} {
					t.Run(fmt.Sprint(what, ", ", name, ", HTTP/2 ", h2, ", in a cache ", cached), func(t *testing.T) {
						layers := []middleware.Layer{c.layer}
						if cached {
							layers = append(layers, middleware.Cache(cache.New(1<<20)))
						}
						s, _ := serve(t, middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
							if r.URL.Path == "/big" {
								w.Header().Set("Cache-Control", "no-store")
								write(w, r)
								if n := p.Stats().Used; what == "slot" && n != 1 {
									t.Errorf("%d slots are held after the write, want 1", n)
								}
							}
						}), layers...), h2)
						slow, err := s.Client().Get(s.URL + "/big")
						if err != nil {
							t.Fatal(err)
						}
						defer slow.Body.Close()
						for began := time.Now(); c.held() > 0; runtime.Gosched() {
							if time.Since(began) > 2*time.Minute {
								t.Fatal("it is held by a client that does not read")
							}
						}
						other, err := s.Client().Get(s.URL + "/")
						if err != nil {
							t.Fatal(err)
						}
						other.Body.Close()
						if other.StatusCode != http.StatusOK {
							t.Errorf("another one's status is %d meanwhile", other.StatusCode)
						}
						got := sha256.New()
						if n, err := io.Copy(got, slow.Body); err != nil || string(got.Sum(nil)) != string(sum[:]) {
							t.Errorf("%d bytes and %v, or not those that were written", n, err)
						}
					})
				}
			}
		}
	}
}

// takes is a client that takes each write only after a while.
type takes struct {
	*httptest.ResponseRecorder
	after time.Duration
}

func (w takes) Write(b []byte) (int, error) {
	time.Sleep(w.after) // in a synctest bubble
	return len(b), nil
}

func (w takes) WriteString(s string) (int, error) { return w.Write([]byte(s)) }

func (w takes) WriteHeader(code int) {
	if code < 200 {
		time.Sleep(w.after) // in a synctest bubble
	}
}

func (w takes) FlushError() error {
	time.Sleep(w.after) // in a synctest bubble
	return nil
}

func (w takes) ReadFrom(src io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{w}, src)
}

// slowSource is a source of n parts, each of which takes a while.
type slowSource struct {
	n    int
	each time.Duration
}

func (s *slowSource) Read(p []byte) (int, error) {
	time.Sleep(s.each) // in a synctest bubble
	if s.n--; s.n < 0 {
		return 0, io.EOF
	}
	return copy(p, strings.Repeat("x", 4<<10)), nil
}

// seekable is a source with a place in it, which says nothing of how soon it gives what is there.
type seekable struct {
	*slowSource
	io.Seeker
}

// pipe is what *os.File is to a pipe, as the output of a command, but for its WriteTo, which comes to the same.
type pipe struct {
	io.Reader
	fd interface {
		io.Seeker
		syscall.Conn
	}
}

func (p pipe) Seek(offset int64, whence int) (int64, error) { return p.fd.Seek(offset, whence) }
func (p pipe) SyscallConn() (syscall.RawConn, error)        { return p.fd.SyscallConn() }

// A permit is given back for the wait of one write and for no other time.
func TestPermitsOfSlowReaders(t *testing.T) {
	const long, short = middleware.Patience + time.Millisecond, middleware.Patience - time.Millisecond
	one := func(w http.ResponseWriter) { io.WriteString(w, strings.Repeat("x", 4<<10)) }
	many := func(w http.ResponseWriter) {
		for range 10 {
			one(w)
		}
	}
	copied := func(each time.Duration) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { io.Copy(w, &slowSource{10, each}) }
	}
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	defer in.Close()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, make([]byte, 8<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	fromFile := func(n int64) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			f, err := os.Open(path)
			if err != nil {
				panic(err)
			}
			defer f.Close()
			io.CopyN(w, f, n)
		}
	}
	named := middleware.WithLongLived(func(*http.Request) bool { return true })
	for _, c := range []struct {
		rule  string
		fixed bool
		opts  []middleware.ConcurrencyOption
		after time.Duration // a write takes
		write func(http.ResponseWriter)
		given bool
	}{
		{"a write that waits gives it back", false, nil, long, one, true},
		{"one that is taken before does not", false, nil, short, one, false},
		{"many that are taken before do not", false, nil, short, many, false},
		{"what computes for long does not", false, nil, 0, func(http.ResponseWriter) { pass(time.Minute) }, false},
		{"what writes and then computes for long does not", false, nil, 0, func(w http.ResponseWriter) { many(w); pass(time.Minute) }, false},
		{"what net/http takes without a wait is not timed", false, nil, long, func(w http.ResponseWriter) { io.WriteString(w, "x") }, false},
		{"a copy that is not taken gives it back", false, nil, long, copied(0), true},
		{"a copy from a slow source does not", false, nil, 0, copied(long), false},
		{"nor one that is slow on both sides", false, nil, short, copied(short), false},
		{"nor one from a slow source that can be sought in", false, nil, 0, func(w http.ResponseWriter) {
			io.Copy(w, seekable{&slowSource{10, long}, strings.NewReader("")})
		}, false},
		{"nor one from the output of a slow command", false, nil, 0, func(w http.ResponseWriter) {
			io.Copy(w, pipe{&slowSource{10, long}, out})
		}, false},
		{"the output of a command that is not taken gives it back", false, nil, long, func(w http.ResponseWriter) {
			io.Copy(w, pipe{&slowSource{10, 0}, out})
		}, true},
		{"a file that is not taken does, too", false, nil, long, fromFile(8 << 10), true},
		{"the first part of one does as well", false, nil, long, fromFile(3 << 10), true},
		{"a header alone that is not taken does", false, nil, long, func(w http.ResponseWriter) { http.NewResponseController(w).Flush() }, true},
		{"an early hint that is not taken does", false, nil, long, func(w http.ResponseWriter) { w.WriteHeader(http.StatusEarlyHints) }, true},
		{"a fixed limit is the user's number", true, nil, long, one, false},
		{"unless the request is named to be long-lived", true, []middleware.ConcurrencyOption{named}, long, one, true},
	} {
		t.Run(c.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := limiter.NewAdaptive(limiter.WithLimits(1, 1))
				if c.fixed {
					l = limiter.NewConcurrency(1)
				}
				least := 1
				h := middleware.Concurrency(l, c.opts...).Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					c.write(w)
					least = l.Stats().InFlight
				}))
				h.ServeHTTP(takes{httptest.NewRecorder(), c.after}, httptest.NewRequest("GET", "/", nil))
				if given := least == 0; given != c.given {
					t.Errorf("given back: %v, want %v", given, c.given)
				}
				if st := l.Stats(); st.InFlight != 0 || st.Success != 1 {
					t.Errorf("in the end %d in flight and %d successes, want 0 and 1", st.InFlight, st.Success)
				}
				pass(time.Minute) // no timer is left
			})
		})
	}
}

// looks is a client that takes each write after a while, and looks at something then.
type looks struct {
	takes
	look func()
}

func (w looks) Write(b []byte) (int, error) {
	defer w.look()
	return w.takes.Write(b)
}

func (w looks) WriteString(s string) (int, error) { return w.Write([]byte(s)) }

func (w looks) ReadFrom(src io.Reader) (int64, error) { return io.Copy(struct{ io.Writer }{w}, src) }

// seenSource is a source of two parts that looks at something when it is read.
type seenSource struct {
	slowSource
	look func()
}

func (s *seenSource) Read(p []byte) (int, error) {
	s.look()
	return s.slowSource.Read(p)
}

// A slot is given back for the wait of one write, and is held again when that is over: the handler may compute again.
func TestSlotsOfSlowReaders(t *testing.T) {
	const long, short = middleware.SlotPatience + time.Millisecond, middleware.SlotPatience - time.Millisecond
	for _, c := range []struct {
		rule  string
		after time.Duration // a write takes
		copy  bool          // from a source that takes as long
		plain bool          // the context does not carry the slot
		lasts bool          // it is an event stream
		want  []int         // slots that are held during the first write, after it, during the second and after that
	}{
		{"while a write waits it is not held", long, false, false, false, []int{0, 1, 0, 1}},
		{"what is taken before gives none back", short, false, false, false, []int{1, 1, 1, 1}},
		{"while a source is read it is held", long, true, false, false, []int{1, 0, 1, 0, 1}},
		{"so it is with a plain context", long, false, true, false, []int{0, 1, 0, 1}},
		{"what is long-lived has none any more", long, false, false, true, []int{0, 0, 0, 0}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := pool.New(pool.WithSlots(1))
				var got []int
				look := func() { got = append(got, p.Stats().Used) }
				var opts []middleware.PoolOption
				if c.plain {
					opts = append(opts, middleware.WithTask(pool.WithPlainContext()))
				}
				h := middleware.Pool(p, opts...).Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					if c.lasts {
						w.Header().Set("Content-Type", "text/event-stream")
						w.(http.Flusher).Flush()
					}
					if c.copy {
						io.Copy(w, &seenSource{slowSource{2, c.after}, look})
						return
					}
					for range 2 {
						w.Write(make([]byte, 4<<10))
						look()
					}
				}))
				h.ServeHTTP(looks{takes{httptest.NewRecorder(), c.after}, look}, httptest.NewRequest("GET", "/", nil))
				if !slices.Equal(got, c.want) {
					t.Errorf("slots held: %v, want %v", got, c.want)
				}
				if st := p.Stats(); st.Used != 0 || st.Kinds[0].Running != 0 {
					t.Errorf("in the end %d slots are used and %d tasks run", st.Used, st.Kinds[0].Running)
				}
				pass(time.Minute) // no timer is left
			})
		})
	}
}

// Nothing looks after a client of what is long-lived, which has no slot any more, however long it does not read.
func TestLongLivedSlowReaderCostsNoTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := middleware.Pool(pool.New(pool.WithSlots(1))).Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			w.(http.Flusher).Flush()
			w.Write(make([]byte, 4<<10))
		}))
		made := []metrics.Sample{{Name: "/sched/goroutines-created:goroutines"}}
		metrics.Read(made)
		before := made[0].Value.Uint64()
		h.ServeHTTP(takes{httptest.NewRecorder(), time.Hour}, httptest.NewRequest("GET", "/", nil))
		metrics.Read(made)
		if n := made[0].Value.Uint64() - before; n > 10_000 {
			t.Errorf("%d goroutines were started in an hour", n)
		}
	})
}

// Two pools around one handler, and a limit, each have back what is theirs.
func TestSlowReaderInAllOfThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, q := pool.New(pool.WithSlots(1)), pool.New(pool.WithSlots(1))
		l := limiter.NewAdaptive(limiter.WithLimits(1, 1))
		var got [][3]int
		look := func() { got = append(got, [3]int{p.Stats().Used, q.Stats().Used, l.Stats().InFlight}) }
		var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Write(make([]byte, 4<<10))
			look()
			panic(http.ErrAbortHandler)
		})
		h = middleware.Pool(p).Handler(middleware.Pool(p).Handler(middleware.Pool(q).Handler(middleware.Concurrency(l).Handler(h))))
		func() {
			defer func() { _ = recover() }()
			h.ServeHTTP(looks{takes{httptest.NewRecorder(), time.Second}, look}, httptest.NewRequest("GET", "/", nil))
		}()
		look()
		if want := [][3]int{{0, 0, 0}, {1, 1, 0}, {0, 0, 0}}; !slices.Equal(got, want) {
			t.Errorf("slots and permits held: %v, want %v", got, want)
		}
	})
}

// A panic in a write, as of a layer outside, leaves no slot behind, whether it was given back or not.
func TestPanicInASlowWrite(t *testing.T) {
	for _, after := range []time.Duration{0, time.Second} {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New(pool.WithSlots(1))
			h := middleware.Pool(p).Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 4<<10)) }))
			func() {
				defer func() { _ = recover() }()
				h.ServeHTTP(looks{takes{httptest.NewRecorder(), after}, func() { panic("in a write") }}, httptest.NewRequest("GET", "/", nil))
			}()
			if st := p.Stats(); st.Used != 0 || st.Kinds[0].Running != 0 {
				t.Errorf("%d slots are used and %d tasks run", st.Used, st.Kinds[0].Running)
			}
			if err := p.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			pass(time.Minute)
		})
	}
}

// computes is a writer that computes for a while with what it is given, as one that compresses, and looks at something then.
type computes struct {
	*httptest.ResponseRecorder
	takes time.Duration
	look  func() // then
}

func (w computes) Write(b []byte) (int, error) {
	for began := time.Now(); time.Since(began) < w.takes; {
	}
	w.look()
	return len(b), nil
}

// Where all processors are taken a write takes long without a client that does not read, and a permit given back would be more work for them, or a slot.
func TestBusyProcessorsAreNoSlowReader(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	l := limiter.NewAdaptive()
	p := pool.New()
	seen := make(chan int, 1)
	look := func() { seen <- l.Stats().InFlight + p.Stats().Used }
	var done atomic.Bool
	var others sync.WaitGroup
	for range 50 {
		others.Go(func() {
			for !done.Load() {
			}
		})
	}
	for what, layer := range map[string]middleware.Layer{"permits": middleware.Concurrency(l), "slots": middleware.Pool(p)} {
		h := layer.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 4<<10)) }))
		h.ServeHTTP(computes{httptest.NewRecorder(), 8 * middleware.Patience, look}, httptest.NewRequest("GET", "/", nil))
		if held := <-seen; held != 1 {
			t.Errorf("%d %s are held, want 1", held, what)
		}
	}
	done.Store(true)
	others.Wait()
}

// How many are without a permit so has a bound, and who ends makes room for the next.
func TestSlowReadersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const more = 3
		l := limiter.NewAdaptive(limiter.WithLimits(2000, 2000))
		h := middleware.Concurrency(l).Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 4<<10)) }))
		go h.ServeHTTP(takes{httptest.NewRecorder(), 10 * time.Second}, httptest.NewRequest("GET", "/", nil))
		synctest.Wait()
		for range middleware.SlowPlaces + more - 1 {
			go h.ServeHTTP(takes{httptest.NewRecorder(), time.Minute}, httptest.NewRequest("GET", "/", nil))
		}
		pass(5 * time.Second)
		if got := l.Stats().InFlight; got != more {
			t.Errorf("%d hold a permit, want %d", got, more)
		}
		pass(6 * time.Second)
		if got := l.Stats().InFlight; got != more-1 {
			t.Errorf("when one has ended %d hold a permit, want %d", got, more-1)
		}
		pass(time.Minute)
		for range middleware.SlowPlaces {
			go h.ServeHTTP(takes{httptest.NewRecorder(), time.Minute}, httptest.NewRequest("GET", "/", nil))
		}
		pass(5 * time.Second)
		if got := l.Stats().InFlight; got != 0 {
			t.Errorf("when all had ended %d of the next hold a permit, want 0", got)
		}
		pass(time.Minute)
	})
}

// A hook of the limit that panics as a permit is given back panics in that request, as it does at its end, and nowhere else; also one that
// does so when the client has taken the answer, which waits for it.
func TestPanicWhileAPermitIsGivenBack(t *testing.T) {
	t.Run("at once", func(t *testing.T) { panicWhileAPermitIsGivenBack(t, 0) })
	t.Run("in the end", func(t *testing.T) { panicWhileAPermitIsGivenBack(t, time.Second) })
}

func panicWhileAPermitIsGivenBack(t *testing.T, after time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		var once, panics atomic.Int32
		l := limiter.NewAdaptive(limiter.WithConcurrencyTrace(limiter.ConcurrencyTrace{Limit: func(int, int) {
			if once.Add(1) == 1 {
				time.Sleep(after) // in a synctest bubble
				panic("from the hook")
			}
		}}))
		h := middleware.Concurrency(l).Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 4<<10)) }))
		for range 5000 { // more than there is room for, so that the limit changes
			pass(time.Millisecond)
			go func() {
				defer func() {
					if v := recover(); v == "from the hook" {
						panics.Add(1)
					}
				}()
				h.ServeHTTP(takes{httptest.NewRecorder(), time.Second}, httptest.NewRequest("GET", "/", nil))
			}()
		}
		pass(time.Hour)
		if once.Load() == 0 || panics.Load() != 1 {
			t.Errorf("the limit changed %d times and %d requests panicked, want 1", once.Load(), panics.Load())
		}
		if got := l.Stats().InFlight; got != 0 {
			t.Errorf("%d in flight", got)
		}
	})
}
