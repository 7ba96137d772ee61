package outbound_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/middleware/outbound"
)

func TestTimeoutPerTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries atomic.Int64
		rt := outbound.New(world{"a.test": counted(&tries, sleepy(time.Hour, 200))}, outbound.Timeout(time.Second), outbound.Retry())
		began := time.Now()
		_, err := get(t, rt, "http://a.test/")
		late, ok := errors.AsType[*outbound.TimeoutError](err)
		if !ok || late.Host != "a.test" || late.After != time.Second || late.Stalled {
			t.Errorf("error %+v", err)
		}
		var ne net.Error
		if !errors.As(err, &ne) || !ne.Timeout() || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v is not a time-out to net and context", err)
		}
		if d := time.Since(began); tries.Load() != 2 || d < 2*time.Second || d > 2050*time.Millisecond {
			t.Errorf("%d tries in %v", tries.Load(), d)
		}
		if n := rt.Stats().Timeouts; n != 2 {
			t.Errorf("%d time-outs counted", n)
		}
	})
}

func TestTimeoutCallersEndIsTheCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := outbound.New(world{"a.test": sleepy(time.Hour, 200)}, outbound.Timeout(time.Second))
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err := do(rt, request(ctx, "GET", "http://a.test/", nil))
		if _, ok := errors.AsType[*outbound.TimeoutError](err); ok || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}

// The caller's deadline passes while the try that was given up comes back.
func TestTimeoutTogetherWithTheCallersDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := outbound.New(world{"a.test": func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			time.Sleep(time.Millisecond)             // in a synctest bubble
			return nil, context.Cause(req.Context()) // as net/http has it
		}}, outbound.Timeout(time.Second))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second+time.Microsecond)
		defer cancel()
		if _, err := do(rt, request(ctx, "GET", "http://a.test/", nil)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want a deadline that was exceeded", err)
		}
	})
}

// A header that comes as the time is over finds the time-out gone off and the
// context of the try perhaps not yet cancelled. Which of the two runs first the
// scheduler decides, hence the rounds; either way there is a response or an error.
func TestTimeoutHeaderAtTheVeryEnd(t *testing.T) {
	for name, tc := range map[string]struct {
		host func(*http.Request) (*http.Response, error)
		body bool
	}{
		"with a body": {host: always(200), body: true},
		"without a body": {host: func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Header: http.Header{}}, nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var left atomic.Int64
				rt := outbound.New(world{"a.test": func(req *http.Request) (*http.Response, error) {
					time.Sleep(time.Second) // in a synctest bubble
					resp, err := tc.host(req)
					if tc.body {
						left.Add(1)
						resp.Body = &ended{resp.Body, &left}
					}
					return resp, err
				}}, outbound.Timeout(time.Second))
				var late uint64
				for round := range 200 {
					resp, err := rt.RoundTrip(request(t.Context(), "GET", "http://a.test/", nil))
					if _, ok := errors.AsType[*outbound.TimeoutError](err); ok && resp == nil {
						late++
					} else if resp == nil || err != nil {
						t.Fatalf("round %d: response %v, error %v", round, resp, err)
					} else if resp.Body != nil {
						resp.Body.Close()
					}
				}
				if n := rt.Stats().Timeouts; n != late {
					t.Errorf("%d time-outs counted of %d", n, late)
				}
				if n := left.Load(); n != 0 {
					t.Errorf("%d bodies were not closed", n)
				}
			})
		})
	}
}

// An ended body counts itself out when it is closed.
type ended struct {
	io.ReadCloser
	left *atomic.Int64
}

func (e *ended) Close() error { e.left.Add(-1); return e.ReadCloser.Close() }

// The limit is on the header; the body may take its time, unless it stalls.
func TestTimeoutBody(t *testing.T) {
	for _, tc := range []struct {
		name  string
		pause time.Duration
		opts  []outbound.TimeoutOption
		cut   bool
	}{
		{"a long body", time.Minute, nil, false},
		{"a long body that keeps coming", 900 * time.Millisecond, []outbound.TimeoutOption{outbound.WithStall(time.Second)}, false},
		{"a body that stalls", 2 * time.Second, []outbound.TimeoutOption{outbound.WithStall(time.Second)}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork()
				n.serve(t, "a.test:80", func(w http.ResponseWriter, r *http.Request) {
					for range 5 {
						io.WriteString(w, "x")
						w.(http.Flusher).Flush()
						select {
						case <-time.After(tc.pause):
						case <-r.Context().Done():
							return
						}
					}
				})
				base := n.transport()
				defer base.CloseIdleConnections()
				rt := outbound.New(base, outbound.Timeout(time.Second, tc.opts...))
				resp, err := rt.RoundTrip(request(t.Context(), "GET", "http://a.test/", nil))
				if err != nil {
					t.Fatal(err)
				}
				_, err = io.ReadAll(resp.Body)
				resp.Body.Close()
				late, ok := errors.AsType[*outbound.TimeoutError](err)
				if ok != tc.cut || ok && !late.Stalled || !tc.cut && err != nil {
					t.Errorf("reading ended with %v", err)
				}
			})
		})
	}
}
