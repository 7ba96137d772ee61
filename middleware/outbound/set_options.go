package outbound

import (
	"fmt"
	"net/http"
	"time"

	"github.com/spillgate/spillgate/breaker"
)

// A SetOption configures [NewSet].
type SetOption interface{ applySet(*setConfig) }

type setOption func(*setConfig)

func (f setOption) applySet(c *setConfig) { f(c) }

type setConfig struct {
	policy     Policy
	hashKey    func(*http.Request) string
	ejection   []breaker.Option
	maxEjected float64
	slowStart  time.Duration
	probe      *Probe
	ownHost    bool
	breakerConfig
}

func defaultSetConfig() setConfig {
	return setConfig{
		ejection: []breaker.Option{
			breaker.WithWindow(time.Second),
			breaker.WithConsecutiveFailures(5),
		},
		maxEjected: 0.5,
		slowStart:  10 * time.Second,
	}
}

// WithPolicy sets how an endpoint is chosen; default [P2C]. For hashing see [WithHash]; if both are given, the last one
// counts.
func WithPolicy(p Policy) SetOption {
	if p < P2C || p > Random {
		panic(fmt.Sprintf("outbound: WithPolicy(%d): give P2C, RoundRobin or Random; for hashing WithHash", p))
	}
	return setOption(func(c *setConfig) { c.policy, c.hashKey = p, nil })
}

// WithHash sends requests with the same key to the same endpoint, so that caches there stay warm. The choice is the
// same in every process that has the same endpoints, in whatever order, and after a restart. It uses rendezvous hashing
// by weight: when an endpoint leaves, only its keys move. An endpoint with more than 1.25 times its part of the
// requests in flight passes keys on to the next choice (Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with
// Bounded Loads", 2016), so neither one popular key nor a client that chooses its keys can drown it.
func WithHash(key func(*http.Request) string) SetOption {
	if key == nil {
		panic("outbound: WithHash: nil; give a function that returns the key of a request")
	}
	return setOption(func(c *setConfig) { c.policy, c.hashKey = hashed, key })
}

// WithEjection sets when endpoints are ejected, with options of package breaker that are added to the defaults of a
// set. By these, an endpoint is ejected if half of at least 20 requests in a window of 1 s failed, or 5 in a row; it is
// out for 5 s, and twice as long each further time. For endpoints that become slow rather than fail, add
// [breaker.WithSlowCalls]. Since P2C leaves a slow endpoint few requests, also add a longer window or a smaller volume
// if there is little traffic.
func WithEjection(opts ...breaker.Option) SetOption {
	for i, o := range opts {
		if o == nil {
			panic(nilOption("WithEjection", i))
		}
	}
	return setOption(func(c *setConfig) { c.ejection = append(c.ejection, opts...) })
}

// WithMaxEjected sets how much of a tier may be out of service, ejected or down, before all of it is used again; 0 to
// 1, default 0.5. With 0 nothing is ever ejected; with 1 everything can be, and requests then fail with
// [ErrNoEndpoint].
func WithMaxEjected(part float64) SetOption {
	if !(part >= 0 && part <= 1) {
		panic(fmt.Sprintf("outbound: WithMaxEjected(%v): give 0 to 1", part))
	}
	return setOption(func(c *setConfig) { c.maxEjected = part })
}

// WithSlowStart sets how long the share of an endpoint takes to grow from a tenth to the whole, after [Set.Update] has
// added it or its active check has found it up again; default 10 s. With zero the endpoint gets its whole share at
// once. After an ejection its breaker does the same, see [breaker.WithRamp].
func WithSlowStart(d time.Duration) SetOption {
	if d < 0 {
		panic(fmt.Sprintf("outbound: WithSlowStart(%v): give zero or more", d))
	}
	return setOption(func(c *setConfig) { c.slowStart = min(d, year) })
}

// WithProbe asks each endpoint at an interval whether it is up.
func WithProbe(p Probe) SetOption {
	p = p.valid()
	return setOption(func(c *setConfig) { c.probe = &p })
}

// WithEndpointHost sends the host of the endpoint in the Host header, in place of that of the request. Servers that
// tell virtual hosts apart by endpoint need this.
func WithEndpointHost() SetOption {
	return setOption(func(c *setConfig) { c.ownHost = true })
}
