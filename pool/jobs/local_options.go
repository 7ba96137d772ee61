package jobs

import (
	"fmt"
	"time"
)

// LocalOption sets one thing about a [Local].
type LocalOption interface{ applyLocal(*localConfig) }

type localConfig struct {
	unfinished, share, finished int
	payload, result             int
	bytes, shareBytes           int64 // shareBytes: of the payloads of one client's unfinished jobs
	retain                      time.Duration
	priority                    int
}

type localOption func(*localConfig)

func (f localOption) applyLocal(c *localConfig) { f(c) }

// WithCapacity bounds the unfinished jobs, those of one client among them, and the finished jobs that are kept; the
// defaults are 10,000, a quarter of that and 10,000. When more jobs than finished have ended, the one that ended first
// is forgotten. If the client that has most of them has a greater part of them than share is of unfinished, the one of
// that client that ended first is forgotten instead. Jobs without a client count as those of one client. WithCapacity
// panics unless all three are positive and share is at most unfinished.
func WithCapacity(unfinished, share, finished int) LocalOption {
	if unfinished < 1 || share < 1 || share > unfinished || finished < 1 {
		panic(fmt.Sprintf("jobs: WithCapacity(%d, %d, %d): all must be at least 1 and the share no more than the whole", unfinished, share, finished))
	}
	return localOption(func(c *localConfig) { c.unfinished, c.share, c.finished = unfinished, share, finished })
}

// WithSizes bounds the bytes of one payload, of one result, and of everything that is kept together; the defaults are
// 64 KiB, 1 MiB and 64 MiB. The payloads of one client's unfinished jobs may take the same part of total as these jobs
// may take of the places ([WithCapacity]), but one payload always fits. To make room, finished jobs are forgotten
// early, in the order that [WithCapacity] describes. WithSizes panics unless all three are positive and total holds at
// least one payload and one result.
func WithSizes(payload, result int, total int64) LocalOption {
	if payload < 1 || result < 1 || total-int64(payload) < int64(result) {
		panic(fmt.Sprintf("jobs: WithSizes(%d, %d, %d): all must be positive and the total hold one payload and one result", payload, result, total))
	}
	return localOption(func(c *localConfig) { c.payload, c.result, c.bytes = payload, result, total })
}

// WithRetention sets how long a job is kept after it has ended; the default is 1 h. A kind can have its own retention
// ([WithRetain]). WithRetention panics if d is not positive.
func WithRetention(d time.Duration) LocalOption {
	if d <= 0 {
		panic(fmt.Sprintf("jobs: WithRetention(%v): the time must be positive", d))
	}
	return localOption(func(c *localConfig) { c.retain = d })
}

// WithPoolPriority sets the priority that all jobs have in the pool, from -8 to 7; the default is -4, and requests
// usually have 0. A value beyond that range counts as the nearest end. The priority counts among tasks without a
// client, see [pool.WithPriority].
func WithPoolPriority(p int) LocalOption {
	return localOption(func(c *localConfig) { c.priority = p })
}
