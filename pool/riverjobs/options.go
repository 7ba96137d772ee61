package riverjobs

import (
	"fmt"
	"log/slog"
	"regexp"
	"time"
)

// Option sets one thing about an [Engine].
type Option interface{ apply(*config) }

type config struct {
	workers             int
	queue, schema       string
	unfinished, share   int
	payload, result     int
	shareBytes          int64
	retain, poll, lease time.Duration
	idle                time.Duration // of the connection that listens
	pollOnly            bool
	logger              *slog.Logger
}

type option func(*config)

func (f option) apply(c *config) { f(c) }

// WithWorkers makes a started engine run up to n jobs at a time. The default is 0: the engine only submits, answers and
// watches. It panics unless n is from 1 to 10,000.
func WithWorkers(n int) Option {
	if n < 1 || n > 10000 {
		panic(fmt.Sprintf("riverjobs: WithWorkers(%d): give 1 to 10000, or leave the option out where no jobs are to run", n))
	}
	return option(func(c *config) { c.workers = n })
}

// WithQueue sets the River queue that jobs are submitted to and taken from; the default is "spillgate". Bounds apply to
// all queues of a schema together. It panics unless name is at most 64 lower-case letters and digits, with single "_"
// and "-" between them.
func WithQueue(name string) Option {
	if len(name) > 64 || !queueName.MatchString(name) {
		panic(fmt.Sprintf("riverjobs: WithQueue(%q): give at most 64 lower-case letters and digits, with single _ and - between them", name))
	}
	return option(func(c *config) { c.queue = name })
}

// queueName is what River takes.
var queueName = regexp.MustCompile(`^[a-z0-9]+([_-][a-z0-9]+)*$`)

// SchemaOption is an option of [New] and of [Migrate].
type SchemaOption struct{ name string }

// WithSchema sets the schema of the database that all tables are in; the default, also for an empty name, is the first in
// the connection's search_path. [Migrate] creates it. WithSchema panics unless the name has at most 46 letters, digits and
// underscores, of which the first is no digit.
func WithSchema(name string) SchemaOption {
	if name != "" && (len(name) > 46 || !schemaName.MatchString(name)) {
		panic(fmt.Sprintf("riverjobs: WithSchema(%q): give at most 46 letters, digits and underscores, and no digit first", name))
	}
	return SchemaOption{name}
}

// schemaName is what River takes.
var schemaName = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)

func (s SchemaOption) apply(c *config) { c.schema = s.name }

// WithCapacity bounds the unfinished jobs, and those of one client among them; the defaults are 10,000 and a quarter of that. It
// panics unless both are positive and share is at most unfinished.
func WithCapacity(unfinished, share int) Option {
	if unfinished < 1 || share < 1 || share > unfinished {
		panic(fmt.Sprintf("riverjobs: WithCapacity(%d, %d): both must be at least 1 and the share no more than the whole", unfinished, share))
	}
	return option(func(c *config) { c.unfinished, c.share = unfinished, share })
}

// maxResult is half of what River takes as output: a result is written as a string, which may double it.
const maxResult = 16 << 20

// WithSizes bounds the bytes of one payload, of one result, and of the payloads of one client's unfinished jobs; the
// defaults are 64 KiB, 1 MiB and 16 MiB. It panics unless all are positive, a result has at most 16 MiB and the share
// holds one payload.
func WithSizes(payload, result int, share int64) Option {
	if payload < 1 || result < 1 || result > maxResult || share < int64(payload) {
		panic(fmt.Sprintf("riverjobs: WithSizes(%d, %d, %d): all must be positive, the result at most %d and the share hold one payload", payload, result, share, maxResult))
	}
	return option(func(c *config) { c.payload, c.result, c.shareBytes = payload, result, share })
}

// WithRetention sets how long a job that this engine submits is kept after it has ended; the default is 1 h. A kind can
// have its own retention ([jobs.WithRetain]). It panics if d is not positive.
func WithRetention(d time.Duration) Option {
	if d <= 0 {
		panic(fmt.Sprintf("riverjobs: WithRetention(%v): the time must be positive", d))
	}
	return option(func(c *config) { c.retain = d })
}

// WithPollInterval sets how often a worker looks for jobs that it was not notified of, such as those that have become
// due; the default is 1 s. It panics if d is less than a millisecond.
func WithPollInterval(d time.Duration) Option {
	if d < time.Millisecond {
		panic(fmt.Sprintf("riverjobs: WithPollInterval(%v): give a millisecond or more", d))
	}
	return option(func(c *config) { c.poll = d })
}

// WithPollOnly makes the engine do without LISTEN, which needs a connection that stays the same: workers look for jobs
// every poll interval, and watchers ask after 250 ms to 2 s.
func WithPollOnly() Option { return option(func(c *config) { c.pollOnly = true }) }

// WithLease sets after how long a silence a worker is taken for lost, so that its jobs run again elsewhere; the default
// is 30 s. They run again after a quarter more than that. Workers report four times per lease that they are alive. All
// engines that share a schema should have the same lease. It panics if d is less than a second.
func WithLease(d time.Duration) Option {
	if d < time.Second {
		panic(fmt.Sprintf("riverjobs: WithLease(%v): give a second or more: to say that it is alive a worker needs the database, which may be busy", d))
	}
	return option(func(c *config) { c.lease = d })
}

// WithLogger sets where River logs, and where a worker logs that others are lost or that it cannot report itself alive;
// by default neither logs. It panics if l is nil.
func WithLogger(l *slog.Logger) Option {
	if l == nil {
		panic("riverjobs: WithLogger: l is nil; leave the option out")
	}
	return option(func(c *config) { c.logger = l })
}
