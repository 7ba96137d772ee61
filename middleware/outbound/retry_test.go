package outbound_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/middleware/outbound"
)

func failing(err error) func(*http.Request) (*http.Response, error) {
	return func(*http.Request) (*http.Response, error) { return nil, err }
}

func TestO5WhatIsRetried(t *testing.T) {
	reset := errors.New("connection reset by peer")
	notFound := &net.OpError{Op: "dial", Err: &net.DNSError{IsNotFound: true}}
	slowDNS := &net.OpError{Op: "dial", Err: &net.DNSError{IsTimeout: true}}
	for _, tc := range []struct {
		name   string
		method string
		header [2]string
		host   func(*http.Request) (*http.Response, error)
		tries  int64
	}{
		{"GET, 502", "GET", [2]string{}, always(502), 2},
		{"GET, 503", "GET", [2]string{}, always(503), 2},
		{"GET, 504", "GET", [2]string{}, always(504), 2},
		{"GET, 500: an answer", "GET", [2]string{}, always(500), 1},
		{"GET, 404", "GET", [2]string{}, always(404), 1},
		{"GET, 429 with Retry-After", "GET", [2]string{}, always(429, "Retry-After", "1"), 2},
		{"GET, 429 without", "GET", [2]string{}, always(429), 1},
		{"GET, reset", "GET", [2]string{}, failing(reset), 2},
		{"HEAD", "HEAD", [2]string{}, failing(reset), 2},
		{"OPTIONS", "OPTIONS", [2]string{}, failing(reset), 2},
		{"TRACE", "TRACE", [2]string{}, failing(reset), 2},
		{"PUT", "PUT", [2]string{}, failing(reset), 2},
		{"DELETE", "DELETE", [2]string{}, failing(reset), 2},
		{"POST, reset: may have been carried out", "POST", [2]string{}, failing(reset), 1},
		{"POST, 503", "POST", [2]string{}, always(503), 1},
		{"PUT, Request used again: GetBody has its body", "PUT", [2]string{}, failing(errors.New("http: ContentLength=4 with Body length 0")), 2},
		{"PATCH", "PATCH", [2]string{}, failing(reset), 1},
		{"POST with Idempotency-Key", "POST", [2]string{"Idempotency-Key", "7"}, failing(reset), 2},
		{"POST, dial failed: nothing was sent", "POST", [2]string{}, failing(refusedDial()), 2},
		{"POST, HTTP/2 stream refused: nothing was sent", "POST", [2]string{}, failing(fmt.Errorf("wrapped: %w", refusedStream{7})), 2},
		{"POST, HTTP/2 stream ended otherwise", "POST", [2]string{}, failing(refusedStream{2}), 1},
		{"DNS: no such name", "GET", [2]string{}, failing(notFound), 1},
		{"DNS: no answer", "GET", [2]string{}, failing(slowDNS), 2},
		{"certificate unknown", "GET", [2]string{}, failing(&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}), 1},
		{"not TLS", "GET", [2]string{}, failing(tls.RecordHeaderError{}), 1},
		{"refused by their TLS", "GET", [2]string{}, failing(&net.OpError{Op: "remote error"}), 1},
		{"refused by a breaker of ours", "GET", [2]string{}, failing(&breaker.OpenError{}), 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var tries atomic.Int64
				rt := outbound.New(world{"a.test": counted(&tries, tc.host)}, outbound.Retry())
				req := request(t.Context(), tc.method, "http://a.test/", nil)
				if tc.header[0] != "" {
					req.Header.Set(tc.header[0], tc.header[1])
				}
				do(rt, req)
				if tries.Load() != tc.tries {
					t.Errorf("%d tries, want %d", tries.Load(), tc.tries)
				}
			})
		})
	}
}

// Nor is anything sent to a host behind a proxy that cannot be connected to.
func TestO5PostBehindAProxyThatIsGoneIsRetried(t *testing.T) {
	for _, proxy := range []string{"http://proxy.test:3128", "https://proxy.test:3128", "socks5://proxy.test:1080"} {
		for _, target := range []string{"http://a.test/", "https://a.test/"} {
			var dials int
			base := &http.Transport{
				Proxy: func(*http.Request) (*url.URL, error) { return url.Parse(proxy) },
				DialContext: func(context.Context, string, string) (net.Conn, error) {
					dials++
					if strings.HasPrefix(proxy, "socks5") && dials == 1 { // a proxy that hangs up
						ours, theirs := net.Pipe()
						theirs.Close()
						return ours, nil
					}
					return nil, refusedDial()
				},
			}
			rt := outbound.New(base, outbound.Retry(outbound.WithBackoff(0, 0)))
			if _, err := do(rt, request(t.Context(), "POST", target, nil)); err == nil || rt.Stats().Retries != 1 {
				t.Errorf("%s through %s: %d retries: %v", target, proxy, rt.Stats().Retries, err)
			}
		}
	}
}

// refusedStream has the shape by which net/http lets errors of HTTP/2 be read.
type refusedStream struct{ code uint32 }

func (e refusedStream) Error() string { return fmt.Sprint("stream error ", e.code) }

func (e refusedStream) As(target any) bool {
	return setStreamError(target, e.code)
}

func TestO5ReadsTheStreamErrorsOfNetHTTP(t *testing.T) {
	// What net/http really returns can only be had from net/http. A handler that
	// aborts ends its stream with another code, which must not be retried.
	var tries atomic.Int64
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tries.Add(1)
		panic(http.ErrAbortHandler)
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	rt := outbound.New(srv.Client().Transport, outbound.Retry())
	_, err := do(rt, request(t.Context(), "POST", srv.URL, strings.NewReader("x")))
	if code, ok := outbound.StreamCode(err); !ok || code != 2 { // INTERNAL_ERROR
		t.Errorf("stream error of net/http is read as code %d, %v: %v", code, ok, err)
	}
	if tries.Load() != 1 {
		t.Errorf("%d tries of a POST that was sent", tries.Load())
	}
}

func TestO5RetryIfReplacesTheRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries atomic.Int64
		rt := outbound.New(world{"a.test": counted(&tries, always(500))}, outbound.Retry(outbound.WithTries(4),
			outbound.WithRetryIf(func(_ *http.Request, resp *http.Response, err error) bool { return resp.StatusCode == 500 })))
		if status, _ := do(rt, request(t.Context(), "POST", "http://a.test/", nil)); status != 500 || tries.Load() != 4 {
			t.Errorf("%d after %d tries", status, tries.Load())
		}
	})
}

// A body is sent again only where it can be had again.
func TestO5BodyReplay(t *testing.T) {
	long := strings.Repeat("x", 64<<10+1)
	dial := failing(refusedDial())
	for _, tc := range []struct {
		name  string
		body  func() (io.Reader, int64)
		fail  func(*http.Request) (*http.Response, error)
		tries int
	}{
		{"GetBody", func() (io.Reader, int64) { return strings.NewReader("hello"), 5 }, always(503), 2},
		{"GetBody, long", func() (io.Reader, int64) { return strings.NewReader(long), int64(len(long)) }, always(503), 2},
		{"short, of known length", func() (io.Reader, int64) { return io.MultiReader(strings.NewReader("hello")), 5 }, always(503), 2},
		{"a body that cannot be replayed: too long", func() (io.Reader, int64) { return io.MultiReader(strings.NewReader(long)), int64(len(long)) }, always(503), 1},
		{"a body that cannot be replayed: of unknown length", func() (io.Reader, int64) { return io.MultiReader(strings.NewReader("hello")), -1 }, always(503), 1},
		{"of unknown length, and none, as a GET that comes over HTTP/3", func() (io.Reader, int64) { return io.MultiReader(), -1 }, always(503), 2},
		{"none, against its length", func() (io.Reader, int64) { return io.MultiReader(), 64<<10 + 1 }, always(503), 1},
		{"of unknown length that breaks off at once", func() (io.Reader, int64) { return iotest.ErrReader(errors.New("reset")), -1 }, always(503), 1},
		{"long, but nobody has read it", func() (io.Reader, int64) { return io.MultiReader(strings.NewReader(long)), int64(len(long)) }, dial, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got []string
				rt := outbound.New(world{"a.test": func(req *http.Request) (*http.Response, error) {
					resp, err := tc.fail(req)
					if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" && len(got) == 0 {
						got = append(got, "")
						return nil, err
					}
					b, _ := io.ReadAll(req.Body)
					got = append(got, string(b))
					return resp, err
				}}, outbound.Retry())
				body, length := tc.body()
				req := request(t.Context(), "PUT", "http://a.test/", body)
				req.ContentLength = length
				do(rt, req)
				if len(got) != tc.tries {
					t.Fatalf("%d tries, want %d", len(got), tc.tries)
				}
				reader, _ := tc.body()
				want, _ := io.ReadAll(reader)
				if last := got[len(got)-1]; last != string(want) {
					t.Errorf("the last try had %d bytes of the body, want %d", len(last), len(want))
				}
			})
		})
	}
}

func TestO5BodyIsClosedAfterAll(t *testing.T) {
	for _, tc := range []struct {
		name   string
		length int64
		host   func(*http.Request) (*http.Response, error)
	}{
		{"buffered", 5, always(200)},
		{"streamed", -1, always(200)},
		{"streamed, retried once, in vain", -1, failing(refusedDial())},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rt := outbound.New(world{"a.test": tc.host}, outbound.Retry())
				body := &closing{Reader: strings.NewReader("hello")}
				req := request(t.Context(), "PUT", "http://a.test/", body)
				req.ContentLength = tc.length
				do(rt, req)
				if !body.closed.Load() {
					t.Error("left open")
				}
			})
		})
	}
}

func TestO5CallersBodyFails(t *testing.T) {
	rt := outbound.New(world{"a.test": always(200)}, outbound.Retry())
	req := request(t.Context(), "PUT", "http://a.test/", io.MultiReader(strings.NewReader("he")))
	req.ContentLength = 5
	if _, err := do(rt, req); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v", err)
	}
}

// What has grown since its length was taken is not cut off without a word: net/http does not either.
func TestO5BodyLongerThanItsContentLength(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		n.serve(t, "a.test:80", func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			time.Sleep(time.Millisecond) // in a synctest bubble: an answer that comes before net/http has seen the rest of the body wins
		})
		base := n.transport()
		defer base.CloseIdleConnections()
		for name, rt := range map[string]http.RoundTripper{"net/http": base, "Retry": outbound.New(base, outbound.Retry())} {
			body := &closing{Reader: strings.NewReader("hello, world")}
			req := request(t.Context(), "PUT", "http://a.test/", body)
			req.ContentLength = 5
			status, err := do(rt, req)
			if err == nil || !body.closed.Load() {
				t.Errorf("%s: %d %v, body closed %v", name, status, err, body.closed.Load())
			}
		}
		time.Sleep(time.Second) // in a synctest bubble: net/http lingers for half of that
	})
}

// Whoever says that a body is long and sends nothing of it costs next to no memory, whatever buffer there is.
func TestO5BodyGetsMemoryAsItComes(t *testing.T) {
	rt := outbound.New(world{"a.test": always(200)}, outbound.Retry(outbound.WithReplayBuffer(math.MaxInt64)))
	for _, length := range []int64{1 << 30, math.MaxInt64} {
		req := request(t.Context(), "PUT", "http://a.test/", io.MultiReader(strings.NewReader("he")))
		req.ContentLength = length
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := do(rt, req)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%v", err)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > 1<<20 {
			t.Errorf("2 bytes of %d took %d bytes of memory", length, took)
		}
	}
}

// As from net/http, which reads the body while it waits for the response.
func TestO5BodyThatHangsIsNotWaitedForPastTheCallersEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := outbound.New(world{"a.test": always(200)}, outbound.Retry())
		body := &closing{}
		r, w := io.Pipe()
		body.Reader = r
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errCut)
		defer cancel()
		req := request(ctx, "PUT", "http://a.test/", body)
		req.ContentLength = 5
		time.AfterFunc(time.Hour, func() { w.CloseWithError(io.EOF) })
		began := time.Now()
		if _, err := do(rt, req); !errors.Is(err, errCut) || time.Since(began) != time.Second {
			t.Errorf("%v after %v, want the caller's reason after a second", err, time.Since(began))
		}
		time.Sleep(time.Hour) // in a synctest bubble
		if !body.closed.Load() {
			t.Error("the body is left open")
		}
	})
}

func TestO5BodyThatCannotBeHadAgain(t *testing.T) {
	for _, tc := range []struct {
		name   string
		host   func(*http.Request) (*http.Response, error)
		status int
		err    error
	}{
		{"the caller gets the response", always(503), 503, nil},
		{"the caller gets the error", failing(errCut), 0, errCut},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rt := outbound.New(world{"a.test": tc.host}, outbound.Retry())
				req := request(t.Context(), "PUT", "http://a.test/", strings.NewReader("hello"))
				getBody := req.GetBody
				req.GetBody = func() (io.ReadCloser, error) { return nil, io.ErrClosedPipe }
				for range 20 { // more than the budget allows
					if status, err := do(rt, req); status != tc.status || err != tc.err {
						t.Fatalf("%d %v, want %d %v", status, err, tc.status, tc.err)
					}
				}
				if n := rt.Stats().Retries; n != 0 {
					t.Errorf("%d retries", n)
				}
				req.GetBody = getBody
				if do(rt, req); rt.Stats().Retries != 1 {
					t.Error("the budget was spent on nothing")
				}
			})
		})
	}
}

func TestO5BodyHadAgainIsClosedWhenTheCallerLeaves(t *testing.T) {
	for _, again := range []bool{false, true} {
		t.Run(fmt.Sprint("with GetBody ", again), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rt := outbound.New(world{"a.test": func(req *http.Request) (*http.Response, error) {
					return answer(503, "Retry-After", "5")
				}}, outbound.Retry())
				first := &closing{Reader: strings.NewReader("hello")}
				second := &closing{Reader: strings.NewReader("hello")}
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(time.Second, cancel)
				req := request(ctx, "PUT", "http://a.test/", first)
				req.ContentLength = -1
				opened := false
				if again {
					req.GetBody = func() (io.ReadCloser, error) { opened = true; return second, nil }
				}
				if _, err := do(rt, req); err != context.Canceled {
					t.Error(err)
				}
				if !first.closed.Load() || second.closed.Load() != opened {
					t.Errorf("closed: the first %v, the second %v of %v", first.closed.Load(), second.closed.Load(), opened)
				}
			})
		})
	}
}

func TestO5NotPastTheCallersDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries atomic.Int64
		rt := outbound.New(world{"a.test": counted(&tries, always(503, "Retry-After", "2"))}, outbound.Retry())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		status, err := do(rt, request(ctx, "GET", "http://a.test/", nil))
		if status != 503 || tries.Load() != 1 || time.Since(began) != 0 {
			t.Errorf("%d %v after %d tries and %v; want the 503 at once", status, err, tries.Load(), time.Since(began))
		}
	})
}

func TestO5CallerLeavesDuringBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries atomic.Int64
		rt := outbound.New(world{"a.test": counted(&tries, always(503, "Retry-After", "5"))}, outbound.Retry())
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		began := time.Now()
		_, err := do(rt, request(ctx, "GET", "http://a.test/", nil))
		if !errors.Is(err, context.Canceled) || tries.Load() != 1 || time.Since(began) != time.Second {
			t.Errorf("%v after %d tries and %v", err, tries.Load(), time.Since(began))
		}
	})
}

func TestO6RetryAfter(t *testing.T) {
	for _, tc := range []struct {
		name   string
		header string
		tries  int64
		least  time.Duration
		most   time.Duration
	}{
		{"none: jitter only", "", 2, 0, 50 * time.Millisecond},
		{"seconds are a minimum", "3", 2, 3 * time.Second, 3050 * time.Millisecond},
		{"zero", "0", 2, 0, 50 * time.Millisecond},
		{"a date is one too", "date+4", 2, 3 * time.Second, 4050 * time.Millisecond},
		{"a date that is past", "date-60", 2, 0, 50 * time.Millisecond},
		{"just the cap", "10", 2, 10 * time.Second, 10050 * time.Millisecond},
		{"above the cap: the caller gets it", "11", 1, 0, 0},
		{"a year", "31536000", 1, 0, 0},
		{"a date in a year", "date+31536000", 1, 0, 0},
		{"more than fits", "99999999999999999999999", 1, 0, 0},
		{"nonsense is none", "soon", 2, 0, 50 * time.Millisecond},
		{"negative is none", "-5", 2, 0, 50 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				header := tc.header
				if s, ok := strings.CutPrefix(header, "date"); ok {
					var seconds int
					fmt.Sscan(s, &seconds)
					header = time.Now().Add(time.Duration(seconds) * time.Second).UTC().Format(http.TimeFormat)
				}
				var tries atomic.Int64
				rt := outbound.New(world{"a.test": counted(&tries, always(503, "Retry-After", header))}, outbound.Retry())
				began := time.Now()
				status, err := do(rt, request(t.Context(), "GET", "http://a.test/", nil))
				if status != 503 {
					t.Errorf("the caller got %d, %v", status, err)
				}
				if tries.Load() != tc.tries {
					t.Errorf("%d tries, want %d", tries.Load(), tc.tries)
				}
				if d := time.Since(began); d < tc.least || d > tc.most {
					t.Errorf("took %v, want %v to %v", d, tc.least, tc.most)
				}
			})
		})
	}
}

func TestO6RetryAfterIsByTheClockOfTheHost(t *testing.T) {
	for _, off := range []time.Duration{-time.Hour, -2 * time.Second, 0, 2 * time.Second, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork()
			n.serve(t, "a.test:80", func(w http.ResponseWriter, r *http.Request) {
				there := time.Now().Add(off).UTC()
				w.Header().Set("Date", there.Format(http.TimeFormat))
				w.Header().Set("Retry-After", there.Add(4*time.Second).Format(http.TimeFormat))
				w.WriteHeader(503)
			})
			base := n.transport()
			defer base.CloseIdleConnections()
			rt := outbound.New(base, outbound.Retry(outbound.WithBackoff(0, 0)))
			began := time.Now()
			get(t, rt, "http://a.test/")
			if d, tries := time.Since(began), 1+rt.Stats().Retries; d != 4*time.Second || tries != 2 {
				t.Errorf("a clock that is off by %v: %d tries in %v, want 2 in 4s", off, tries, d)
			}
		})
	}
}

func TestO6FullJitterThatGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hosts := make(world) // one a request: each begins with a budget for all of its retries
		rt := outbound.New(hosts, outbound.Retry(outbound.WithTries(4), outbound.WithBackoff(100*time.Millisecond, 250*time.Millisecond)))
		var waits []time.Duration
		for i := range 200 {
			host := fmt.Sprintf("%d.test", i)
			hosts[host] = always(503)
			began := time.Now()
			get(t, rt, "http://"+host+"/")
			waits = append(waits, time.Since(began))
		}
		slices.Sort(waits)
		// Without a spread all would be the same; the sum is at most 100+200+250 ms.
		if waits[len(waits)-1] > 550*time.Millisecond || waits[len(waits)-1]-waits[0] < 200*time.Millisecond {
			t.Errorf("waits from %v to %v", waits[0], waits[len(waits)-1])
		}
		if n := rt.Stats().Retries; n != 600 {
			t.Errorf("%d retries, want 600", n)
		}
	})
}

// A budget of one retry a request denies none, so that nothing but the jitter spreads the waits.
func TestO6JitterIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := outbound.New(world{"a.test": always(503)}, outbound.Retry(
			outbound.WithBackoff(100*time.Millisecond, time.Second), outbound.WithRetryBudget(1)))
		var below int
		for range 1000 {
			began := time.Now()
			get(t, rt, "http://a.test/")
			switch d := time.Since(began); {
			case d > 100*time.Millisecond:
				t.Fatalf("waited %v", d)
			case d < 25*time.Millisecond:
				below++
			}
		}
		if below < 150 || below > 350 {
			t.Errorf("%d of 1,000 waits are in the lowest quarter", below)
		}
	})
}

func TestO6ABackoffOfAnyLength(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, d := range []time.Duration{math.MaxInt64, math.MaxInt64 / 2} {
			var tries atomic.Int64
			rt := outbound.New(world{"a.test": counted(&tries, always(503))}, outbound.Retry(outbound.WithTries(10), outbound.WithBackoff(d, math.MaxInt64)))
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if status, err := do(rt, request(ctx, "GET", "http://a.test/", nil)); status != 503 || tries.Load() != 1 {
				t.Errorf("%v: %d %v after %d tries, want the first 503", d, status, err, tries.Load())
			}
			cancel()
		}
	})
}

func TestO6OpenBreakerIsNotRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries atomic.Int64
		rt := outbound.New(world{"a.test": counted(&tries, always(503))}, outbound.Retry(), outbound.Breaker(group()))
		get(t, rt, "http://a.test/")
		get(t, rt, "http://a.test/") // its first try is the third failure
		before := tries.Load()
		began := time.Now()
		_, err := get(t, rt, "http://a.test/")
		if !errors.Is(err, breaker.ErrOpen) || tries.Load() != before || time.Since(began) != 0 {
			t.Errorf("%v after %d more tries and %v", err, tries.Load()-before, time.Since(began))
		}
	})
}

// A retry that Breaker or Balance will refuse is not waited for, and the caller gets what the host has said.
func TestO6RetryThatTheBreakerWouldRefuseIsNotWaitedFor(t *testing.T) {
	for _, tc := range []struct {
		name    string
		options []breaker.Option
		header  []string
		status  int
		tries   int64
		wait    time.Duration
	}{
		{"the try opened it", nil, nil, 502, 1, 0},
		{"it is open until after Retry-After", nil, []string{"Retry-After", "4"}, 502, 1, 0},
		{"it is open no longer after Retry-After", nil, []string{"Retry-After", "5"}, 200, 2, 5 * time.Second},
		{"in shadow it refuses nothing", []breaker.Option{breaker.WithShadow(true)}, []string{"Retry-After", "1"}, 200, 2, time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var tries atomic.Int64
				host := func(*http.Request) (*http.Response, error) {
					if tries.Load() == 1 {
						return answer(502, tc.header...)
					}
					return answer(200)
				}
				ejection := append([]breaker.Option{breaker.WithConsecutiveFailures(1), breaker.WithJitter(0)}, tc.options...)
				var options []breaker.GroupOption
				for _, o := range ejection {
					options = append(options, o)
				}
				set := newSet(t, urls("http://a.test"), outbound.WithMaxEjected(1), outbound.WithEjection(ejection...))
				for _, layer := range []outbound.Layer{outbound.Breaker(breaker.NewGroup(options...)), outbound.Balance(set)} {
					tries.Store(0)
					rt := outbound.New(world{"a.test": counted(&tries, host)}, layer, outbound.Retry(outbound.WithBackoff(0, 0)))
					began := time.Now()
					status, err := get(t, rt, "http://a.test/")
					if took := time.Since(began); status != tc.status || err != nil || tries.Load() != tc.tries || took != tc.wait {
						t.Errorf("%d, %v after %d tries and %v; want %d after %d and %v", status, err, tries.Load(), took, tc.status, tc.tries, tc.wait)
					}
				}
			})
		})
	}
}

func TestO7Budget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries, other atomic.Int64
		rt := outbound.New(world{"a.test": counted(&tries, always(503)), "b.test": counted(&other, always(503))},
			outbound.Retry(outbound.WithTries(10), outbound.WithBackoff(0, 0)))
		const n = 2000
		for range n {
			get(t, rt, "http://a.test/")
		}
		// 10 at the start, and a tenth of each request.
		if got := tries.Load(); got > n+n/10+10 || got < n+n/10 {
			t.Errorf("%d requests in an outage made %d tries", n, got)
		}
		if get(t, rt, "http://b.test/"); other.Load() != 10 {
			t.Errorf("another host got %d tries, its budget is its own", other.Load())
		}
		if s := rt.Stats(); s.Requests != n+1 || s.Retries != uint64(tries.Load()+other.Load()-n-1) || s.RetriesDenied == 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestO7BudgetOfLittle(t *testing.T) {
	for _, ratio := range []float64{0.0004, 0.0029} {
		synctest.Test(t, func(t *testing.T) {
			rt := outbound.New(world{"a.test": always(503)}, outbound.Retry(outbound.WithBackoff(0, 0), outbound.WithRetryBudget(ratio)))
			const n = 50_000
			for range n {
				get(t, rt, "http://a.test/")
			}
			if got, want := rt.Stats().Retries, uint64(10+ratio*n+1e-9); got != want {
				t.Errorf("%d requests with a ratio of %v made %d retries, want %d", n, ratio, got, want)
			}
		})
	}
}

func TestO7ARetryThatWasNotMadeCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var wait atomic.Bool
		wait.Store(true)
		rt := outbound.New(world{"a.test": func(*http.Request) (*http.Response, error) {
			if wait.Load() {
				return answer(503, "Retry-After", "5")
			}
			return answer(503)
		}}, outbound.Retry(outbound.WithRetryBudget(0)))
		for range 20 { // callers who leave during the wait
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			do(rt, request(ctx, "GET", "http://a.test/", nil))
		}
		wait.Store(false)
		for range 20 {
			get(t, rt, "http://a.test/")
		}
		if n := rt.Stats().Retries; n != 10 {
			t.Errorf("%d retries, want the 10 that were there at the start", n)
		}
	})
}

func TestO7ARetryThatOneOfOursRefusesCostsNothing(t *testing.T) {
	for name, refusing := range map[string]func(*testing.T) outbound.Layer{
		"Breaker": func(*testing.T) outbound.Layer {
			return outbound.Breaker(breaker.NewGroup(breaker.WithConsecutiveFailures(1), breaker.WithProbes(1), breaker.WithRamp(0)))
		},
		"Balance": func(t *testing.T) outbound.Layer {
			return outbound.Balance(newSet(t, urls("http://a.test"), outbound.WithMaxEjected(1),
				outbound.WithEjection(breaker.WithConsecutiveFailures(1), breaker.WithProbes(1), breaker.WithRamp(0))))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var tries atomic.Int64
				rt := outbound.New(world{"a.test": counted(&tries, always(503))}, refusing(t), outbound.Retry(outbound.WithRetryBudget(0)))
				const n = 15 // more than the budget there is at the start
				for range n {
					get(t, rt, "http://a.test/") // its failure opens the breaker
					time.Sleep(2 * time.Minute)  // in a synctest bubble: longer than any opening
				}
				if s := rt.Stats(); tries.Load() != n || s.Retries != 0 || s.RetriesDenied != 0 {
					t.Errorf("%d requests made %d tries: %+v", n, tries.Load(), s)
				}
			})
		})
	}
}

func TestO7BudgetIsCapped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries atomic.Int64
		var broken atomic.Bool
		rt := outbound.New(world{"a.test": counted(&tries, func(*http.Request) (*http.Response, error) {
			if broken.Load() {
				return answer(503)
			}
			return answer(200)
		})}, outbound.Retry(outbound.WithTries(10), outbound.WithBackoff(0, 0), outbound.WithRetryBudget(0.1)))
		for range 5000 {
			get(t, rt, "http://a.test/")
		}
		broken.Store(true)
		tries.Store(0)
		for range 100 {
			get(t, rt, "http://a.test/")
		}
		if got := tries.Load(); got > 100+100+10 {
			t.Errorf("5,000 good requests saved up for %d retries, want at most 110", got-100)
		}
	})
}

func TestO7NoRetriesInsideRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries atomic.Int64
		inner := outbound.New(world{"a.test": counted(&tries, always(503))}, outbound.Retry(outbound.WithTries(3)))
		middle := outbound.New(inner, outbound.Retry(outbound.WithTries(3)))
		outer := outbound.New(middle, outbound.Retry(outbound.WithTries(3)))
		get(t, outer, "http://a.test/")
		if tries.Load() != 3 {
			t.Errorf("three layers of three tries made %d tries, want 3", tries.Load())
		}
	})
}

func TestO7LostResponseIsDrainedALittleAndClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		long := bytes.NewReader(make([]byte, 1<<20))
		lost := &closing{Reader: long}
		first := true
		rt := outbound.New(world{"a.test": func(*http.Request) (*http.Response, error) {
			resp, _ := answer(503)
			if first {
				first = false
				resp.Body = lost
			}
			return resp, nil
		}}, outbound.Retry())
		resp, err := rt.RoundTrip(request(t.Context(), "GET", "http://a.test/", nil))
		if err != nil {
			t.Fatal(err)
		}
		if read := 1<<20 - long.Len(); read > 4<<10 || !lost.closed.Load() {
			t.Errorf("read %d bytes of it, closed %v", read, lost.closed.Load())
		}
		// The last response is the caller's, unread.
		if b, _ := io.ReadAll(resp.Body); string(b) != "body" {
			t.Errorf("the caller got %q", b)
		}
		resp.Body.Close()
	})
}

// A host that is in trouble may send a header and no body.
func TestO7LostResponseThatHangsIsNotWaitedFor(t *testing.T) {
	for _, encoding := range []string{"identity", "gzip"} {
		t.Run(encoding, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork()
				var tries atomic.Int64
				n.serve(t, "a.test:80", func(w http.ResponseWriter, r *http.Request) {
					if tries.Add(1) > 1 {
						return
					}
					w.Header().Set("Content-Encoding", encoding)
					w.WriteHeader(503)
					w.(http.Flusher).Flush()
					<-r.Context().Done()
				})
				base := n.transport()
				defer base.CloseIdleConnections()
				rt := outbound.New(base, outbound.Retry())
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				began := time.Now()
				if status, err := do(rt, request(ctx, "GET", "http://a.test/", nil)); status != 200 || time.Since(began) > time.Second {
					t.Errorf("%d %v after %v, want 200 within a second", status, err, time.Since(began))
				}
			})
		})
	}
}

func TestRetryLeavesTheRequestAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := outbound.New(world{"a.test:80": always(503)}, outbound.Retry(), outbound.Hedge(),
			outbound.Balance(newSet(t, urls("http://a.test:80/base"))), outbound.Timeout(time.Second))
		req := request(t.Context(), "PUT", "http://users/path?q", strings.NewReader("x"))
		before, body, url := *req, req.Body, *req.URL
		do(rt, req)
		if req.Context() != before.Context() || req.Body != body || *req.URL != url || req.Host != before.Host || len(req.Header) != 0 {
			t.Errorf("changed to %+v", req)
		}
	})
}

func setStreamError(target any, code uint32) bool { return outbound.SetStreamError(target, code) }

func TestNoBackoffIsNoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			after string
			waits time.Duration
		}{{"", 0}, {"2", 2 * time.Second}} {
			tr := outbound.New(world{"a": always(503, "Retry-After", c.after)}, outbound.Retry(outbound.WithBackoff(0, 0), outbound.WithTries(3)))
			began := time.Now()
			res, err := tr.RoundTrip(request(t.Context(), "GET", "http://a/", nil))
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if n, d := tr.Stats().Retries, time.Since(began); n != 2 || d != 2*c.waits {
				t.Errorf("Retry-After %q: %d retries in %v, want 2 in %v", c.after, n, d, 2*c.waits)
			}
		}
	})
}

func TestO6MaxRetryAfterIsTheCallersNumber(t *testing.T) {
	for after, want := range map[string]int64{"1": 2, "2": 1} {
		synctest.Test(t, func(t *testing.T) {
			var calls atomic.Int64
			rt := outbound.New(world{"a.test": counted(&calls, always(503, "Retry-After", after))}, outbound.Retry(outbound.WithMaxRetryAfter(time.Second)))
			if get(t, rt, "http://a.test/"); calls.Load() != want {
				t.Errorf("Retry-After %s: %d tries, want %d", after, calls.Load(), want)
			}
		})
	}
}

func TestO5ReplayBufferIsTheCallersNumber(t *testing.T) {
	for buffer, want := range map[int64]int64{5: 2, 4: 1, 0: 1} {
		synctest.Test(t, func(t *testing.T) {
			var calls atomic.Int64
			rt := outbound.New(world{"a.test": counted(&calls, func(req *http.Request) (*http.Response, error) {
				io.Copy(io.Discard, req.Body)
				return answer(503)
			})}, outbound.Retry(outbound.WithReplayBuffer(buffer)))
			req := request(t.Context(), "PUT", "http://a.test/", io.MultiReader(strings.NewReader("hello")))
			req.ContentLength = 5
			if do(rt, req); calls.Load() != want {
				t.Errorf("a buffer of %d for 5 bytes: %d tries, want %d", buffer, calls.Load(), want)
			}
		})
	}
}

// What was never sent is retried whatever its method, however the way there failed.
func TestO5PostThatHadNoConnectionIsRetried(t *testing.T) {
	silence := func(net.Conn) {}
	certificate := httptest.NewTLSServer(nil)
	secure := certificate.TLS.Clone()
	certificate.Close()
	for _, tc := range []struct {
		name   string
		url    string
		first  func(net.Conn) // does what the host does with the first connection; nil if it never accepts
		layers []outbound.Layer
		tries  int64
	}{
		{"hung in connect", "http://a.test:80/", nil, []outbound.Layer{outbound.Timeout(time.Second)}, 2},
		{"hung in the handshake of TLS", "https://a.test:80/", silence, []outbound.Layer{outbound.Timeout(time.Second)}, 2},
		{"hung there for as long as the transport waits", "https://a.test:80/", silence, nil, 2},
		{"reset in the handshake of TLS", "https://a.test:80/", func(c net.Conn) { c.Close() }, nil, 2},
		{"sent, and no answer", "http://a.test:80/", silence, []outbound.Layer{outbound.Timeout(time.Second)}, 1},
		{"sent, and reset", "http://a.test:80/", func(c net.Conn) { time.AfterFunc(time.Second, func() { c.Close() }) }, nil, 1},
	} {
		for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
			t.Run(tc.name+" "+protocol, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					config, n := secure.Clone(), newNetwork()
					base := n.transport()
					base.TLSHandshakeTimeout = 5 * time.Second
					base.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
					base.Protocols = new(http.Protocols)
					served := new(http.Protocols)
					if protocol == "HTTP/2.0" {
						base.Protocols.SetHTTP2(true)
						base.Protocols.SetUnencryptedHTTP2(true)
						served.SetHTTP2(true)
						served.SetUnencryptedHTTP2(true)
						config.NextProtos = []string{"h2"}
					} else {
						base.Protocols.SetHTTP1(true)
						served.SetHTTP1(true)
						config.NextProtos = []string{"http/1.1"}
					}
					defer base.CloseIdleConnections()
					dial, tries := base.DialContext, new(atomic.Int64)
					l := n.listen("a.test:80")
					srv := &http.Server{Protocols: served, TLSConfig: config, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						io.Copy(w, r.Body)
					})}
					defer srv.Close()
					base.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
						if tries.Add(1) > 1 {
							if strings.HasPrefix(tc.url, "https") {
								go srv.ServeTLS(l, "", "")
							} else {
								go srv.Serve(l)
							}
						} else if tc.first != nil {
							ours, theirs := net.Pipe()
							go io.Copy(io.Discard, theirs)
							t.Cleanup(func() { theirs.Close() })
							tc.first(theirs)
							return ours, nil
						}
						return dial(ctx, network, addr)
					}
					rt := outbound.New(base, append(tc.layers, outbound.Retry())...)
					req := request(t.Context(), "POST", tc.url, io.MultiReader(strings.NewReader("body"))) // of unknown length: not kept
					resp, err := rt.RoundTrip(req)
					if tries := tries.Load(); tries != tc.tries || (err == nil) != (tc.tries == 2) {
						t.Errorf("%d tries, want %d: %v", tries, tc.tries, err)
					}
					if err == nil {
						if body, err := io.ReadAll(resp.Body); string(body) != "body" || resp.Proto != protocol {
							t.Errorf("%s: %q, %v", resp.Proto, body, err)
						}
						resp.Body.Close()
					}
				})
			})
		}
	}
}

// A transport takes another connection for a POST that the first one has not carried out: net/http where nothing could be written to it, or
// HTTP/2 said so, quic-go where its server is about to go. Where that does not come, as the server has gone, nothing was sent.
func TestO5PostThatHadALostConnectionIsRetried(t *testing.T) {
	for _, tc := range []struct {
		name  string
		trace func(*httptrace.ClientTrace)
		tries int64
	}{
		{"lost, and no other", func(c *httptrace.ClientTrace) { c.GetConn(""); c.GotConn(httptrace.GotConnInfo{}); c.GetConn("") }, 2},
		{"lost twice", func(c *httptrace.ClientTrace) {
			for range 2 {
				c.GetConn("")
				c.GotConn(httptrace.GotConnInfo{})
			}
		}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int64
				rt := outbound.New(world{"a.test": counted(&calls, func(req *http.Request) (*http.Response, error) {
					if calls.Load() > 1 {
						return answer(200)
					}
					tc.trace(httptrace.ContextClientTrace(req.Context()))
					return nil, errors.New("timeout: no recent network activity")
				})}, outbound.Retry())
				do(rt, request(t.Context(), "POST", "http://a.test/", strings.NewReader("body")))
				if calls.Load() != tc.tries {
					t.Errorf("%d tries; want %d", calls.Load(), tc.tries)
				}
			})
		})
	}
}
