package redisjobs

import (
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// Option sets one thing about an [Engine].
type Option interface{ apply(*config) }

type config struct {
	workers             int
	prefix              string
	unfinished, share   int
	payload, result     int
	shareBytes          int64
	retain, poll, lease time.Duration
	logger              *slog.Logger
}

type option func(*config)

func (f option) apply(c *config) { f(c) }

// WithWorkers makes a started engine run up to n jobs at a time. The default is 0: the engine only submits, answers and
// watches. It panics unless n is from 1 to 10,000.
func WithWorkers(n int) Option {
	if n < 1 || n > 10000 {
		panic(fmt.Sprintf("redisjobs: WithWorkers(%d): give 1 to 10000, or leave the option out where no jobs are to run", n))
	}
	return option(func(c *config) { c.workers = n })
}

// WithPrefix sets the prefix that separates the jobs of one service from those of others on the same server; the
// default is "spillgate:jobs". All keys and channels begin with it, in braces, so that those of one prefix are in one
// slot of a cluster. It panics unless prefix has 1 to 100 bytes and no braces.
func WithPrefix(prefix string) Option {
	if prefix == "" || len(prefix) > 100 || strings.ContainsAny(prefix, "{}") {
		panic(fmt.Sprintf("redisjobs: WithPrefix(%q): give 1 to 100 bytes without braces, which are put around it", prefix))
	}
	return option(func(c *config) { c.prefix = prefix })
}

// WithCapacity bounds the unfinished jobs, and those of one client among them; the defaults are 10,000 and a quarter of that. It
// panics unless both are positive and share is at most unfinished.
func WithCapacity(unfinished, share int) Option {
	if unfinished < 1 || share < 1 || share > unfinished {
		panic(fmt.Sprintf("redisjobs: WithCapacity(%d, %d): both must be at least 1 and the share no more than the whole", unfinished, share))
	}
	return option(func(c *config) { c.unfinished, c.share = unfinished, share })
}

// maxBytes is half of what a server takes as one value.
const maxBytes = 256 << 20

// WithSizes bounds the bytes of one payload, of one result, and of the payloads of one client's unfinished jobs; the defaults are
// 64 KiB, 1 MiB and 16 MiB. It panics unless all are positive, payload and result have at most 256 MiB and the share holds one payload.
func WithSizes(payload, result int, share int64) Option {
	if payload < 1 || result < 1 || payload > maxBytes || result > maxBytes || share < int64(payload) {
		panic(fmt.Sprintf("redisjobs: WithSizes(%d, %d, %d): all must be positive, the first two at most %d and the share hold one payload", payload, result, share, maxBytes))
	}
	return option(func(c *config) { c.payload, c.result, c.shareBytes = payload, result, share })
}

// WithRetention sets how long a job that this engine submits is kept after it has ended; the default is 1 h. A kind can
// have its own retention ([jobs.WithRetain]). It panics if d is not positive.
func WithRetention(d time.Duration) Option {
	if d <= 0 {
		panic(fmt.Sprintf("redisjobs: WithRetention(%v): the time must be positive", d))
	}
	return option(func(c *config) { c.retain = d })
}

// WithPollInterval sets how often a worker with a free place looks for jobs that it was not told of; the default is 1 s. It panics if d is less than
// a millisecond.
func WithPollInterval(d time.Duration) Option {
	if d < time.Millisecond {
		panic(fmt.Sprintf("redisjobs: WithPollInterval(%v): give a millisecond or more", d))
	}
	return option(func(c *config) { c.poll = d })
}

// WithLease sets after how long a silence a worker is taken for lost, so that its jobs run again elsewhere; the default
// is 30 s. They run again after a quarter more than that. Workers report four times per lease that they are alive, and
// then learn what they were not told of: that a job was cancelled. It panics if d is less than a second.
func WithLease(d time.Duration) Option {
	if d < time.Second {
		panic(fmt.Sprintf("redisjobs: WithLease(%v): give a second or more: to say that it is alive a worker needs the server, which may be busy", d))
	}
	return option(func(c *config) { c.lease = d })
}

// WithLogger sets where a worker logs failures of the server that nobody waited for, and that other workers were lost;
// by default it does not log. It panics if l is nil.
func WithLogger(l *slog.Logger) Option {
	if l == nil {
		panic("redisjobs: WithLogger: l is nil; leave the option out")
	}
	return option(func(c *config) { c.logger = l })
}
