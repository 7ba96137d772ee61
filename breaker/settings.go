package breaker

import (
	"context"
	"fmt"
	"time"
)

// Settings are the numbers that a breaker works with, as [Stats] shows them. They are set by options.
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

// An Option is an argument of [New], [NewGroup], [Breaker.Set] and [Group.Set].
type Option interface {
	GroupOption
	applyBreaker(*config)
}

type option func(*config)

func (f option) applyBreaker(c *config)    { f(c) }
func (f option) applyGroup(c *groupConfig) { f(&c.breaker) }

// WithWindow sets the length of the sliding window over which calls are counted, 100 ms to 1 h;
// 10 s is the default. It moves in slices of a tenth of its length.
func WithWindow(d time.Duration) Option {
	return option(func(c *config) { c.Window = d })
}

// WithFailureRatio opens the breaker once failures are at least this share of the calls in the
// window, above 0 to 1, if these are at least minVolume calls. The defaults are 0.5 and 20. A ratio of 0 turns the
// rule off; the volume also holds for slow calls, and is at least 1 in any case.
func WithFailureRatio(ratio float64, minVolume int) Option {
	return option(func(c *config) { c.FailureRatio, c.MinVolume = ratio, minVolume })
}

// WithConsecutiveFailures opens the breaker after n failures with no success between them, however
// few calls there are. 0, the default, turns the rule off.
func WithConsecutiveFailures(n int) Option {
	return option(func(c *config) { c.ConsecutiveFailures = n })
}

// WithSlowCalls opens the breaker once calls that took at least slow are at least this share of the
// calls in the window, above 0 to 1. 0.8 is a good share; slow is at most 1 h, and 0, the default, turns the rule off.
// It takes as many calls as the volume of [WithFailureRatio] says.
//
// A call in flight counts as slow as soon as it is overdue: a dependency that hangs opens the breaker
// though no call has come back. Where the window held none, it does so within slow and one slice of the
// window; after calls that were quick, when those overdue are that share of all, for which these have
// to leave the window: with a steady load, a slow of 1 s, a ratio of 0.8 and a window of 10 s, after 8 s.
// (With a slow of more than ten windows, a slice is a hundredth of it.)
func WithSlowCalls(slow time.Duration, ratio float64) Option {
	return option(func(c *config) { c.SlowCall, c.SlowRatio = slow, ratio })
}

// WithOpenTime sets how long the breaker stays open: first, and then twice as long with each opening
// that follows before it was closed for a window after its ramp, up to limit, both from 1 ms to 24 h. The defaults
// are 5 s and 60 s. [WithJitter] counts from there, so that the longest may be longer than limit by its share.
func WithOpenTime(first, limit time.Duration) Option {
	return option(func(c *config) { c.OpenTime, c.MaxOpenTime = first, limit })
}

// WithJitter makes every open time longer or shorter by up to this share of it, 0 to 0.5; 0.2 is the
// default. Without jitter, all replicas that saw a dependency fail come back to it in the same instant.
func WithJitter(share float64) Option {
	return option(func(c *config) { c.Jitter = share })
}

// WithProbes sets how many calls are let through while half-open, 1 to 1,000; all must succeed for
// the breaker to close. 3 is the default.
func WithProbes(n int) Option {
	return option(func(c *config) { c.Probes = n })
}

// WithLease sets how long a probe may take before it counts as failed, whatever became of it, up to 24 h. The
// default, 0, is the longer of 5 s and twice the time of a slow call.
func WithLease(d time.Duration) Option {
	return option(func(c *config) { c.Lease = d })
}

// WithRamp sets the time in which a breaker that closed again lets the traffic back in: a tenth of it
// at first, all of it when the time is over, which is 24 h at most. 10 s is the default; 0 lets all of it in at once.
func WithRamp(d time.Duration) Option {
	return option(func(c *config) { c.Ramp = d })
}

// WithMinClients keeps the breaker closed until at least n clients, 1 to 32, met what would open it:
// one client who found a request that fails cannot close a service to all others. Who the client of a
// call is says [Request]. 0, the default, turns the rule off: behind a proxy that hides its clients
// no breaker would open. Clients are told apart by 6 bits of a hash, so count on a few more than n.
// Together with [WithSlowCalls] it makes a breaker larger, by 256 bytes a slice.
func WithMinClients(n int) Option {
	return option(func(c *config) { c.MinClients = n })
}

// WithShadow decides and counts and refuses nothing, to see what a breaker would do before it does it: a call that it would have refused
// gets the zero [Call], and is counted in the Rejected of [Stats] and nowhere else. What tells of the state tells of it as it would be, and [Breaker.ForceOpen] refuses
// all the same. The dependency is not spared meanwhile, so that it may take longer to recover than it would. false, the default, turns it off.
func WithShadow(on bool) Option {
	return option(func(c *config) { c.Shadow = on })
}

// WithName names the breaker in errors and changes. In a [Group] the key is the name.
func WithName(name string) Option {
	return option(func(c *config) { c.name = name })
}

// WithOnChange has f called after every change of state. It runs on the goroutine whose call changed
// the state, with no lock held, so it may call the breaker; changes are reported one at a time and in
// their order, so while f runs on one goroutine, changes made on others wait for it to return. That holds
// for one breaker: those of a [Group] do not wait for each other, and f must be safe for concurrent use there.
func WithOnChange(f func(Change)) Option {
	return option(func(c *config) { c.onChange = f })
}

// WithClassify says what the error of a function means to [Breaker.Do]. The context is the one that
// Do was given. It is asked about each return of the function, so also with a nil error, and not about panics,
// which are failures; where f itself panics, the call is ignored.
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
