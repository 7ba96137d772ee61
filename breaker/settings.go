package breaker

import (
	"context"
	"fmt"
	"time"
)

// Settings are the numbers that a breaker works with, as [Stats] shows them. Options set them.
type Settings struct {
	Window              time.Duration `json:"window"`
	FailureRatio        float64       `json:"failure_ratio"`
	MinVolume           int           `json:"min_volume"`
	ConsecutiveFailures int           `json:"consecutive_failures"`
	SlowCall            time.Duration `json:"slow_call"`
	SlowRatio           float64       `json:"slow_ratio"`
	OpenTime            time.Duration `json:"open_time"`
	MaxOpenTime         time.Duration `json:"max_open_time"`
	Jitter              float64       `json:"jitter"`
	Probes              int           `json:"probes"`
	// Lease is how long a probe may take; 0 means the longer of 5 s and twice SlowCall.
	Lease      time.Duration `json:"lease"`
	Ramp       time.Duration `json:"ramp"`
	MinClients int           `json:"min_clients"`
	Shadow     bool          `json:"shadow"`
}

// lease returns how long a probe may take.
func (s *Settings) lease() time.Duration {
	if s.Lease > 0 {
		return s.Lease
	}
	return max(5*time.Second, 2*s.SlowCall)
}

type config struct {
	Settings
	name     string
	onChange func(Change)
	classify func(context.Context, error) Outcome
}

func defaultConfig() config {
	return config{Settings: Settings{
		Window:       10 * time.Second,
		FailureRatio: 0.5,
		MinVolume:    20,
		SlowRatio:    0.8,
		OpenTime:     5 * time.Second,
		MaxOpenTime:  60 * time.Second,
		Jitter:       0.2,
		Probes:       3,
		Ramp:         10 * time.Second,
	}}
}

// An Option is an option of [New], [NewGroup], [Breaker.Set] and [Group.Set].
type Option interface {
	GroupOption
	applyBreaker(*config)
}

type option func(*config)

func (f option) applyBreaker(c *config)    { f(c) }
func (f option) applyGroup(c *groupConfig) { f(&c.breaker) }

// WithWindow sets the length of the sliding window over which calls are counted, 100 ms to 1 h; the default is 10 s.
// It moves in slices of a tenth of its length.
func WithWindow(d time.Duration) Option {
	return option(func(c *config) { c.Window = d })
}

// WithFailureRatio opens the breaker once failures are at least this share of the calls in the window, above 0 to 1,
// if the window holds at least minVolume calls. The defaults are 0.5 and 20. A ratio of 0 turns the rule off. The
// volume also holds for slow calls, and is at least 1 in any case.
func WithFailureRatio(ratio float64, minVolume int) Option {
	return option(func(c *config) { c.FailureRatio, c.MinVolume = ratio, minVolume })
}

// WithConsecutiveFailures opens the breaker after n failures with no success between them, however few calls there
// are. The default, 0, turns the rule off.
func WithConsecutiveFailures(n int) Option {
	return option(func(c *config) { c.ConsecutiveFailures = n })
}

// WithSlowCalls opens the breaker once calls that took at least slow are at least this share of the calls in the
// window, above 0 to 1. 0.8 is a good share. slow is at most 1 h; the default, 0, turns the rule off. The rule needs
// as many calls as the volume of [WithFailureRatio] says.
//
// A call in flight counts as slow as soon as it is overdue: a dependency that hangs opens the breaker even if no call
// has come back. If the window held no calls, that takes at most slow and one slice of the window. After quick calls
// it happens when the overdue ones are that share of all, for which quick ones have to leave the window: with a
// steady load, a slow of 1 s, a ratio of 0.8 and a window of 10 s, after 8 s. (If slow is more than ten windows, a
// slice is a hundredth of slow.)
func WithSlowCalls(slow time.Duration, ratio float64) Option {
	return option(func(c *config) { c.SlowCall, c.SlowRatio = slow, ratio })
}

// WithOpenTime sets how long the breaker stays open: first at the first opening, and twice as long with each further
// one, up to limit. Once the breaker has stayed closed for a window after its ramp, the next opening is a first one
// again. Both times are from 1 ms to 24 h; the defaults are 5 s and 60 s. [WithJitter] is applied to the result, so
// the longest may exceed limit by its share.
func WithOpenTime(first, limit time.Duration) Option {
	return option(func(c *config) { c.OpenTime, c.MaxOpenTime = first, limit })
}

// WithJitter makes every open time longer or shorter by up to this share of it, 0 to 0.5; the default is 0.2. Without
// jitter, all replicas that saw a dependency fail come back to it in the same instant.
func WithJitter(share float64) Option {
	return option(func(c *config) { c.Jitter = share })
}

// WithProbes sets how many calls are let through while half-open, 1 to 1,000; all must succeed for the breaker to
// close. The default is 3.
func WithProbes(n int) Option {
	return option(func(c *config) { c.Probes = n })
}

// WithLease sets how long a probe may take before it counts as failed, whatever became of it, up to 24 h. The
// default, 0, is the longer of 5 s and twice the time of a slow call.
func WithLease(d time.Duration) Option {
	return option(func(c *config) { c.Lease = d })
}

// WithRamp sets the time in which a breaker that closed again lets the traffic back in: a tenth of it at first, all
// of it when the time is over. It is at most 24 h; the default is 10 s. 0 lets all traffic in at once.
func WithRamp(d time.Duration) Option {
	return option(func(c *config) { c.Ramp = d })
}

// WithMinClients keeps the breaker closed until at least n clients, 1 to 32, met what would open it: one client that
// found a failing request cannot close a service to all others. [Request] says who the client of a call is. The
// default, 0, turns the rule off, since behind a proxy that hides its clients no breaker would open. Clients are told
// apart by 6 bits of a hash, so it may take a few more than n. Together with [WithSlowCalls] it makes a breaker
// larger, by 256 bytes a slice.
func WithMinClients(n int) Option {
	return option(func(c *config) { c.MinClients = n })
}

// WithShadow makes the breaker decide and count but refuse nothing, to see what it would do before it does it. A call
// that it would have refused gets the zero [Call], and is counted in the Rejected of [Stats] and nowhere else.
// Whatever reports the state reports it as it would be. [Breaker.ForceOpen] still refuses. The dependency is not
// spared meanwhile, so it may take longer to recover than it would. The default, false, turns it off.
func WithShadow(on bool) Option {
	return option(func(c *config) { c.Shadow = on })
}

// WithName names the breaker in errors and changes. In a [Group] the key is the name.
func WithName(name string) Option {
	return option(func(c *config) { c.name = name })
}

// WithOnChange makes the breaker call f after every change of state. f runs on the goroutine whose call changed the
// state, with no lock held, so it may call the breaker. Changes are reported one at a time and in order: while f runs
// on one goroutine, changes made on others wait for it to return. That holds for one breaker. Those of a [Group] do
// not wait for each other, so there f must be safe for concurrent use.
func WithOnChange(f func(Change)) Option {
	return option(func(c *config) { c.onChange = f })
}

// WithClassify makes f say what the error of a function means to [Breaker.Do]. The context is the one that Do was
// given. f is asked about each return of the function, also with a nil error, but not about panics, which are
// failures. If f itself panics, the call is ignored.
func WithClassify(f func(ctx context.Context, err error) Outcome) Option {
	return option(func(c *config) { c.classify = f })
}

// apply returns what is wrong with the options or with what they come to, in words that follow "breaker: New: ".
func (c *config) apply(opts []Option) error {
	for i, o := range opts {
		if o == nil {
			return fmt.Errorf("option %d is nil; leave it out", i)
		}
		o.applyBreaker(c)
	}
	return c.check()
}

// check returns what is wrong with the settings, in words that follow "breaker: ".
func (s *Settings) check() error {
	// The negated comparisons refuse NaN as well.
	switch {
	case s.Window < 100*time.Millisecond || s.Window > time.Hour:
		return fmt.Errorf("WithWindow(%v): give 100ms to 1h", s.Window)
	case !(s.FailureRatio >= 0 && s.FailureRatio <= 1):
		return fmt.Errorf("WithFailureRatio(%v, %d): give a ratio above 0 to 1, or 0 for off", s.FailureRatio, s.MinVolume)
	case s.MinVolume < 1:
		return fmt.Errorf("WithFailureRatio(%v, %d): give a volume of at least 1", s.FailureRatio, s.MinVolume)
	case s.ConsecutiveFailures < 0:
		return fmt.Errorf("WithConsecutiveFailures(%d): give at least 1, or 0 for off", s.ConsecutiveFailures)
	case s.SlowCall < 0 || s.SlowCall > time.Hour:
		return fmt.Errorf("WithSlowCalls(%v, %v): give a time up to 1h, or 0 for off", s.SlowCall, s.SlowRatio)
	case !(s.SlowRatio >= 0 && s.SlowRatio <= 1), s.SlowRatio == 0 && s.SlowCall > 0:
		return fmt.Errorf("WithSlowCalls(%v, %v): give a ratio above 0 to 1", s.SlowCall, s.SlowRatio)
	case s.OpenTime < time.Millisecond || s.MaxOpenTime < s.OpenTime || s.MaxOpenTime > 24*time.Hour:
		return fmt.Errorf("WithOpenTime(%v, %v): give 1ms to 24h, and a limit not below the first", s.OpenTime, s.MaxOpenTime)
	case !(s.Jitter >= 0 && s.Jitter <= 0.5):
		return fmt.Errorf("WithJitter(%v): give 0 to 0.5", s.Jitter)
	case s.Probes < 1 || s.Probes > 1000:
		return fmt.Errorf("WithProbes(%d): give 1 to 1000", s.Probes)
	case s.Lease < 0 || s.Lease > 24*time.Hour:
		return fmt.Errorf("WithLease(%v): give up to 24h, or 0 for the default", s.Lease)
	case s.Ramp < 0 || s.Ramp > 24*time.Hour:
		return fmt.Errorf("WithRamp(%v): give up to 24h, or 0 for none", s.Ramp)
	case s.MinClients < 0 || s.MinClients > 32:
		return fmt.Errorf("WithMinClients(%d): give 1 to 32, or 0 for off", s.MinClients)
	}
	return nil
}
