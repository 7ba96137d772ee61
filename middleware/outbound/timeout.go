package outbound

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Timeout gives each try the time d until the header of its response has come. A try that takes longer fails with a
// [*TimeoutError]; [Retry] may try again, and [Breaker] counts a failure. The body may take any time, unless
// [WithStall] is given: a limit on the whole would cut downloads and event streams. Timeout panics if d is not
// positive.
func Timeout(d time.Duration, opts ...TimeoutOption) Layer {
	if d <= 0 {
		panic(fmt.Sprintf("outbound: Timeout(%v): give a positive duration, or leave the layer out", d))
	}
	cfg := timeoutConfig{header: d}
	for i, o := range opts {
		if o == nil {
			panic(nilOption("Timeout", i))
		}
		o.applyTimeout(&cfg)
	}
	return Layer{
		place: placeTimeout,
		wrap: func(next http.RoundTripper, c *composition) http.RoundTripper {
			return &timeout{timeoutConfig: cfg, next: next, counts: c.counts}
		},
	}
}

// A TimeoutOption configures [Timeout].
type TimeoutOption interface{ applyTimeout(*timeoutConfig) }

type timeoutOption func(*timeoutConfig)

func (f timeoutOption) applyTimeout(c *timeoutConfig) { f(c) }

type timeoutConfig struct{ header, stall time.Duration }

// WithStall cuts off a response if nothing of it arrives for d while its body is being read. Reading then fails with a
// [*TimeoutError]. Zero, the default, waits without limit. WithStall does not apply to upgraded connections.
func WithStall(d time.Duration) TimeoutOption {
	if d < 0 {
		panic(fmt.Sprintf("outbound: WithStall(%v): give zero or more", d))
	}
	return timeoutOption(func(c *timeoutConfig) { c.stall = d })
}

type timeout struct {
	timeoutConfig
	next   http.RoundTripper
	counts *counts
}

// errGivenUp is the cause of a context that we cancelled.
var errGivenUp = errors.New("outbound: given up")

func (t *timeout) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := time.AfterFunc(t.header, func() { cancel(errGivenUp) })
	returned := false
	defer func() {
		if !returned { // a panic beneath
			timer.Stop()
			cancel(nil)
		}
	}()
	resp, err := t.next.RoundTrip(req.WithContext(ctx))
	returned = true
	inTime := timer.Stop()
	if err == nil && inTime {
		if resp.StatusCode != http.StatusSwitchingProtocols && t.stall > 0 && resp.Body != nil && resp.Body != http.NoBody {
			s := &stallBody{ReadCloser: resp.Body, t: t, host: req.URL.Host, ctx: ctx}
			s.timer = time.AfterFunc(t.stall, func() { cancel(errGivenUp) })
			s.timer.Stop() // runs only while a Read waits
			resp.Body = s
		}
		watch(resp, ending{cancel})
		return resp, nil
	}
	// A header that came just as the time was over is late: its body is lost. The
	// context need not say so yet, since the timer cancels it in its own goroutine.
	late := err == nil || context.Cause(ctx) == errGivenUp
	if err == nil && resp.Body != nil {
		resp.Body.Close()
	}
	cancel(nil)
	switch {
	case !late:
		return nil, err
	case req.Context().Err() != nil: // the caller's time was over as well
		return nil, context.Cause(req.Context())
	}
	t.counts.timeouts.Add(1)
	return nil, &TimeoutError{Host: req.URL.Host, After: t.header}
}

// ending lets go of the context of a try when its response is over.
type ending struct{ cancel context.CancelCauseFunc }

func (e ending) ended(error) { e.cancel(nil) }
