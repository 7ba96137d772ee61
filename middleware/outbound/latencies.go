package outbound

import (
	"math"
	"sync"
	"time"
)

// latencies estimates the 95th percentile of the times it is told, with a
// histogram whose buckets grow by a fifth: the estimate is at most that much too
// high. After 1,000 times all counts are halved, so the latest weigh most.
type latencies struct {
	mu      sync.Mutex
	buckets [latencyBuckets]uint16
	total   int
	fresh   int // times since the last estimate
	known   time.Duration
}

const (
	latencyBuckets = 80 // from 100 µs to 88 s
	latencyFirst   = 100 * time.Microsecond
	latencyStep    = 0.25 // of the binary logarithm: a fifth
	latencyEnough  = 50
	latencyWindow  = 1000
)

func (l *latencies) add(d time.Duration) {
	i := 0
	if d > latencyFirst {
		i = min(latencyBuckets-1, int(math.Ceil(math.Log2(float64(d)/float64(latencyFirst))/latencyStep)))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buckets[i]++
	l.total++
	l.fresh++
	if l.total >= latencyWindow {
		l.total = 0
		for i := range l.buckets {
			l.buckets[i] /= 2
			l.total += int(l.buckets[i])
		}
	}
}

// p95 reports false until enough is known.
func (l *latencies) p95() (time.Duration, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total < latencyEnough {
		return 0, false
	}
	if l.known == 0 || l.fresh >= 16 {
		l.fresh = 0
		above := 0
		i := latencyBuckets
		for i > 1 && (above+int(l.buckets[i-1]))*20 <= l.total {
			i--
			above += int(l.buckets[i])
		}
		l.known = time.Duration(float64(latencyFirst) * math.Exp2(float64(i-1)*latencyStep))
	}
	return l.known, true
}
