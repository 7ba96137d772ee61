package health

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// An Option configures a [Health]. The functions that make options panic if a value cannot work: a time below zero, a
// [Check] without name or function, a path without its slash.
type Option interface{ apply(*config) }

type optionFunc func(*config)

func (f optionFunc) apply(c *config) { f(c) }

type config struct {
	readyChecks, liveChecks        []Check
	manualStart                    bool
	livePath, readyPath, startPath string
	drainStatus                    int
	wait, idle                     time.Duration
	shutdown, release              time.Duration
	shared                         bool
}

func defaultConfig() config {
	return config{
		livePath:    "/livez",
		readyPath:   "/readyz",
		startPath:   "/startupz",
		drainStatus: http.StatusServiceUnavailable,
		wait:        15 * time.Second,
		shutdown:    10 * time.Second,
		release:     5 * time.Second,
	}
}

// WithCheck makes readiness depend on c. The package comment says what such a
// check should look at, and what it should not.
func WithCheck(c Check) Option {
	c = c.valid("WithCheck")
	return optionFunc(func(cfg *config) {
		cfg.readyChecks = append(unique(cfg.readyChecks, c), c)
	})
}

// WithLiveCheck makes liveness depend on c. A process that is not live is
// restarted, so c should fail only for what a restart repairs.
func WithLiveCheck(c Check) Option {
	c = c.valid("WithLiveCheck")
	return optionFunc(func(cfg *config) {
		cfg.liveChecks = append(unique(cfg.liveChecks, c), c)
	})
}

func unique(have []Check, c Check) []Check {
	for _, h := range have {
		if h.Name == c.Name {
			panic("health: two checks are named " + c.Name + "; give each a name of its own")
		}
	}
	return have
}

// WithManualStart keeps the process from counting as started and ready until [Health.Started] is called. It is for
// programs that listen before they have warmed up.
func WithManualStart() Option {
	return optionFunc(func(c *config) { c.manualStart = true })
}

// WithPaths replaces /livez, /readyz and /startupz, each of which must begin
// with a slash. No two may be the same: they are different questions. An empty
// path turns that probe of [Health.Handler] off.
func WithPaths(live, ready, startup string) Option {
	paths := []string{live, ready, startup}
	for i, p := range paths {
		switch {
		case p == "":
		case !strings.HasPrefix(p, "/"):
			panic("health: WithPaths: path " + p + " must begin with a slash")
		case slices.Contains(paths[:i], p):
			panic("health: WithPaths: two probes have the path " + p + "; give each one of its own, or none")
		}
	}
	return optionFunc(func(c *config) { c.livePath, c.readyPath, c.startPath = live, ready, startup })
}

// WithDrainStatus sets what readyz answers while draining: 503, the default, or 404 for HAProxy with "http-check
// disable-on-404", which then finishes the sessions it has and opens no new ones, instead of taking the server for
// down. It panics for any other status.
func WithDrainStatus(status int) Option {
	if status != http.StatusServiceUnavailable && status != http.StatusNotFound {
		panic(fmt.Sprintf("health: WithDrainStatus: status is %d; give 503 or 404", status))
	}
	return optionFunc(func(c *config) { c.drainStatus = status })
}

// WithDrainWait sets how long a draining server goes on serving before it stops listening; the default is 15 s. It
// must be as long as the proxies in front take to notice: their probe interval times the number of failures they
// want, and a margin. HAProxy: 2 s x 3. Kubernetes: readiness is not even asked; endpoints are removed when the pod
// begins to terminate, which takes a few seconds to reach every node. AWS ALB: 30 s x 2.
// [github.com/spillgate/spillgate/middleware/outbound.Probe] with its defaults: 12 s x 3, so give it a shorter
// Interval, or wait longer. Zero does not wait.
//
// It should also be longer than proxies keep idle connections to this server (nginx: keepalive_timeout in the
// upstream block). Connections that get a request during the wait are closed with its response. The rest are closed
// at its end, and a request may be on its way on them.
//
// Wait, shutdown and release timeouts together should stay below the time after which the process is killed: 30 s in
// Kubernetes, which the defaults add up to. [Health.Run] and [Health.Serve] take up to a second more, for requests
// that were just read.
func WithDrainWait(d time.Duration) Option {
	notNegative("WithDrainWait", d)
	return optionFunc(func(c *config) { c.wait = d })
}

// WithDrainIdle lets the wait of a drain end early, once no request other than
// probes has arrived for d. Zero, the default, waits in full: a quiet service
// cannot tell an idle proxy from one that has noticed. It needs
// [Health.Handler] around the server's handler.
func WithDrainIdle(d time.Duration) Option {
	notNegative("WithDrainIdle", d)
	return optionFunc(func(c *config) { c.idle = d })
}

// WithShutdownTimeout sets how long requests in flight may take after the server has stopped listening; the default
// is 10 s. Then their connections are cut; zero cuts them at once.
func WithShutdownTimeout(d time.Duration) Option {
	notNegative("WithShutdownTimeout", d)
	return optionFunc(func(c *config) { c.shutdown = d })
}

// WithReleaseTimeout sets how long everything that is shut down after the server may take, together; the default is 5
// s. With zero, each is called with a context that has ended.
func WithReleaseTimeout(d time.Duration) Option {
	notNegative("WithReleaseTimeout", d)
	return optionFunc(func(c *config) { c.release = d })
}

// WithSharedListener tells [Health.Serve] that other processes have the socket too: a manager that starts this
// process by socket activation, or the successor that the socket was handed on to. The socket is then closed in this
// process and goes on listening for the others, and the connections that wait on it are theirs. Without this option,
// on Linux, the socket ends for all processes that have it.
func WithSharedListener() Option {
	return optionFunc(func(c *config) { c.shared = true })
}

func notNegative(option string, d time.Duration) {
	if d < 0 {
		panic("health: " + option + ": " + d.String() + " is negative; give zero or more")
	}
}
