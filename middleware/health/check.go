package health

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// A Check runs out of band, at an interval; probes read its last result. So a probe never blocks, and any number of
// probes cost one run.
type Check struct {
	// Name is shown in probe responses; it must not be empty.
	Name string
	// Run returns nil if all is well. Its context ends after Timeout. A run that has not returned by then counts as
	// failed, even if it returns nil later, and the next run does not begin before it has returned. A panic in Run ends
	// the program, as in any goroutine.
	Run func(ctx context.Context) error
	// Interval is the time between the end of one run and the start of the next, spread by a tenth so that replicas do
	// not ask in step. The default is 5 s.
	Interval time.Duration
	// Timeout is the time that one run may take. The default is 2 s.
	Timeout time.Duration
}

func (c Check) valid(option string) Check {
	switch {
	case c.Name == "":
		panic("health: " + option + ": Check.Name is empty; name the check")
	case c.Run == nil:
		panic("health: " + option + ": Check.Run of " + c.Name + " is nil; give a function")
	case c.Interval < 0 || c.Timeout < 0:
		panic(fmt.Sprintf("health: %s: Interval and Timeout of %s are %v and %v; give positive ones, or 0 for the default", option, c.Name, c.Interval, c.Timeout))
	}
	if c.Interval == 0 {
		c.Interval = 5 * time.Second
	}
	if c.Timeout == 0 {
		c.Timeout = 2 * time.Second
	}
	return c
}

// CheckStats is the last result of a [Check].
type CheckStats struct {
	Name     string        `json:"name"`
	Liveness bool          `json:"liveness,omitempty"`
	OK       bool          `json:"ok"`
	Error    string        `json:"error,omitempty"`
	Ran      time.Time     `json:"ran"`     // when the last run ended or was given up; zero before the first
	Latency  time.Duration `json:"latency"` // of the last run that returned
}

type checker struct {
	Check
	passedOnce atomic.Bool

	mu      sync.Mutex // guards what follows
	err     error
	ran     time.Time
	latency time.Duration
}

// passing reports whether the last run of each check passed. A check that has
// not run yet keeps readiness waiting through started, and is no reason to call
// a process dead.
func passing(checks []*checker) bool {
	for _, c := range checks {
		if _, err := c.last(); err != nil {
			return false
		}
	}
	return true
}

// last returns whether the check has run, and what the last run returned.
func (c *checker) last() (ran bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.ran.IsZero(), c.err
}

func (c *checker) loop(ctx context.Context) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		if !c.run(ctx) {
			return
		}
		pause.Reset(time.Duration(min(float64(c.Interval)*(0.9+0.2*rand.Float64()), 1<<62))) // no more than a Duration holds
	}
}

// run makes one run and waits for its end. It reports false if the checks were
// stopped meanwhile.
func (c *checker) run(stopped context.Context) bool {
	began := time.Now()
	ctx, cancel := context.WithTimeout(stopped, c.Timeout)
	defer cancel()
	result := make(chan error, 1)
	// Its own goroutine, so that a run which ignores its context is seen to be
	// late, and does not keep Close waiting.
	go func() { result <- c.Check.Run(ctx) }()

	select {
	case err := <-result:
		if stopped.Err() == nil {
			c.settle(err, time.Since(began))
		}
		return stopped.Err() == nil
	case <-ctx.Done():
	}
	if stopped.Err() != nil {
		return false
	}
	select {
	case err := <-result: // both at once: the result counts
		c.settle(err, time.Since(began))
		return true
	default:
	}
	late := fmt.Errorf("health: check %s did not return within %v", c.Name, c.Timeout)
	c.settle(late, 0)
	select {
	case err := <-result:
		if err == nil {
			err = late // however well it ended
		}
		c.settle(err, time.Since(began))
		return true
	case <-stopped.Done():
		return false
	}
}

func (c *checker) settle(err error, latency time.Duration) {
	c.mu.Lock()
	c.err, c.ran = err, time.Now()
	if latency > 0 {
		c.latency = latency
	}
	c.mu.Unlock()
	if err == nil {
		c.passedOnce.Store(true)
	}
}

func (c *checker) stats(liveness bool) CheckStats {
	c.mu.Lock()
	s, err := CheckStats{Name: c.Name, Liveness: liveness, OK: !c.ran.IsZero() && c.err == nil, Ran: c.ran, Latency: c.latency}, c.err
	c.mu.Unlock()
	if err != nil {
		s.Error = err.Error()
	}
	return s
}
