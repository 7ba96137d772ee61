package compare

import (
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
)

// Every area has a table of contestants. A test runs all of them once and checks
// that they do the work; the benchmark of the same table measures it. The first
// entries of a table are baselines: no protection, or one written by hand.

// A middlewareMaker is a contestant that wraps a handler.
type middlewareMaker struct {
	name string
	wrap func(testing.TB) func(http.Handler) http.Handler
}

// writer is a ResponseWriter that costs nothing: reused, and without a body.
type writer struct {
	header http.Header
	status int
	body   int
}

func newWriter() *writer { return &writer{header: http.Header{}} }

func (w *writer) Header() http.Header { return w.header }

func (w *writer) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
}

func (w *writer) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	w.body += len(p)
	return len(p), nil
}

func (w *writer) reset() {
	clear(w.header)
	w.status, w.body = 0, 0
}

// serve sends one request through h and returns the status.
func (w *writer) serve(h http.Handler, r *http.Request) int {
	w.reset()
	h.ServeHTTP(w, r)
	return w.status
}

// noContent is the handler behind everything that does not need a body.
var noContent = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })

// keyHeader names the client, so that all contestants count by the same key.
const keyHeader = "X-Key"

func newRequest(path string) *http.Request {
	r := httptest.NewRequest("GET", path, nil)
	r.Header[keyHeader] = []string{"key"}
	return r
}

func byHeader(r *http.Request) string { return r.Header.Get(keyHeader) }

func byHeaderErr(r *http.Request) (string, error) { return r.Header.Get(keyHeader), nil }

// setKey gives r another key without making a new header.
func setKey(r *http.Request, key string) { r.Header[keyHeader][0] = key }

// serveParallel measures h from as many goroutines as -cpu says, each with its
// own request and writer.
func serveParallel(b *testing.B, h http.Handler, want int) {
	b.ReportAllocs()
	b.ResetTimer() // what was built before is not measured; Loop does this itself
	b.RunParallel(func(pb *testing.PB) {
		r, w := newRequest("/"), newWriter()
		for pb.Next() {
			if got := w.serve(h, r); got != want {
				b.Errorf("status %d; want %d", got, want)
				return
			}
		}
	})
}

// serveSerial measures h from one goroutine. next, if not nil, changes the
// request before the i-th time.
func serveSerial(b *testing.B, h http.Handler, want int, next func(r *http.Request, i int)) {
	b.ReportAllocs()
	r, w := newRequest("/"), newWriter()
	for i := 0; b.Loop(); i++ {
		if next != nil {
			next(r, i)
		}
		if got := w.serve(h, r); got != want {
			b.Fatalf("status %d; want %d", got, want)
		}
	}
}

func keys(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = "client-" + strconv.Itoa(i)
	}
	return out
}

// zipf returns n indexes below keys as web traffic picks them.
func zipf(n, keys int) []int {
	z := rand.NewZipf(rand.New(rand.NewPCG(1, 2)), 1.1, 1, uint64(keys-1))
	out := make([]int, n)
	for i := range out {
		out[i] = int(z.Uint64())
	}
	return out
}
