package limiter

import (
	"math"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// rateSingle is what a Rate without keys has instead of a table: a rate.Limiter for each policy. The mutex
// makes one decision of theirs.
type rateSingle struct {
	mu       sync.Mutex
	maxWait  time.Duration
	policies []Policy // as the buckets have them
	buckets  []*rate.Limiter
	taken    []float64 // of each bucket since the start, less what was given back
	last     time.Time
	asked    int64 // when a store was asked last about what is refused here
	admitted uint64
	rejected uint64
	shadowed uint64
}

func newRateSingle(policies []Policy, maxWait time.Duration) *rateSingle {
	s := &rateSingle{maxWait: maxWait, policies: slices.Clone(policies), taken: make([]float64, len(policies))}
	for _, p := range policies {
		s.buckets = append(s.buckets, rate.NewLimiter(p.Limit, p.Burst))
	}
	return s
}

// clock returns the time to decide at. Goroutines may arrive in another order than they read the clock, and a rate.Limiter would fill
// its bucket twice for the time between; only after a clock that may step, or by one, what is back by more than anyone may wait starts again from there.
func (s *rateSingle) clock(now time.Time) time.Time {
	switch d := s.last.Sub(now); {
	case d <= 0:
	case d-time.Second <= s.maxWait || !rateWall(now) && !rateWall(s.last):
		return s.last
	default:
		for _, b := range s.buckets {
			b.ReserveN(now, 0) // nothing, but so that what flows in counts from now
		}
	}
	s.last = now
	return now
}

// rateReserved is what giveBack has to know: the bucket, and what was taken of it by then. A rate.Reservation would do only as long
// as nothing but reservations changes the bucket.
type rateReserved struct {
	bucket *rate.Limiter
	mark   float64
}

func (s *rateSingle) take(q *tableTake, now time.Time, each []PolicyState, reserved *[ratePolicyMax]rateReserved, a *tableAnswer) {
	if now.IsZero() {
		now = time.Now()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now = s.clock(now)
	a.ok = true
	nearest := math.Inf(1)
	var never bool
	var lefts [ratePolicyMax]float64
	for i, b := range s.buckets {
		limit, burst := s.policies[i].Limit, s.policies[i].Burst
		if limit == rate.Inf {
			state := PolicyState{Limit: limit, Burst: burst, Remaining: policyUnbounded}
			if i == 0 {
				a.burst, a.state = policyUnbounded, state
			}
			rateSingleEach(each, i, state)
			continue
		}
		tokens := b.TokensAt(now)
		left := tokens - float64(q.n)
		lefts[i] = left
		state := rateSingleState(tokens, limit, burst)
		refused := false
		if q.n > burst || left < 0 {
			// Like rate.Limiter, cut off the part of a nanosecond that nobody can wait for.
			wait := rateSingleNs(-left, limit)
			refused = q.n > burst || math.Floor(wait) > float64(q.maxWait)
			if refused {
				state.Refused = true
				if q.n <= burst && wait < math.MaxInt64 {
					state.RetryAfter = rateSingleWait(-left, limit)
				}
			} else {
				a.wait = max(a.wait, time.Duration(wait))
			}
		}
		switch {
		case refused && (a.ok || !never && (state.RetryAfter == 0 || state.RetryAfter > a.state.RetryAfter)):
			a.policy, a.state, a.burst = i, state, burst
			a.ok, never = false, state.RetryAfter == 0
		case !refused && a.ok && left < nearest:
			a.policy, a.state, a.burst, nearest = i, state, burst, left
		}
		rateSingleEach(each, i, state)
	}
	if a.ok && !q.peek {
		for i, b := range s.buckets {
			limit, burst := s.policies[i].Limit, s.policies[i].Burst
			if limit == rate.Inf {
				continue
			}
			b.ReserveN(now, q.n)
			s.taken[i] += float64(q.n)
			if reserved != nil {
				reserved[i] = rateReserved{b, s.taken[i]}
			}
			if i != a.policy && i >= len(each) {
				continue
			}
			state := rateSingleState(lefts[i], limit, burst)
			if i == a.policy {
				a.state = state
			}
			rateSingleEach(each, i, state)
		}
	}
	if q.half && !a.ok {
		a.asks = q.asksStore(a, &s.asked)
	}
	switch {
	case q.peek, q.half:
	case a.ok:
		s.admitted++
	case q.shadow:
		s.shadowed++
	default:
		s.rejected++
	}
}

func rateSingleState(tokens float64, limit rate.Limit, burst int) PolicyState {
	return PolicyState{Limit: limit, Burst: burst, Remaining: rateSingleFloor(tokens, limit, burst), ResetAfter: rateSingleWait(float64(burst)-tokens, limit)}
}

func rateSingleEach(each []PolicyState, i int, state PolicyState) {
	if i < len(each) {
		each[i] = state
	}
}

// rateSingleFloor rounds tokens down, apart from what flows in within a nanosecond.
func rateSingleFloor(tokens float64, limit rate.Limit, burst int) int {
	return min(burst, rateSingleInt(math.Max(0, math.Floor(tokens+float64(limit)*0.9e-9))))
}

func rateSingleNs(tokens float64, limit rate.Limit) float64 {
	switch {
	case tokens <= 0:
		return 0
	case limit <= 0:
		return math.Inf(1)
	}
	return tokens / float64(limit) * 1e9
}

// rateSingleWait returns how long tokens take to flow in, rounded up; 0 if they never do.
func rateSingleWait(tokens float64, limit rate.Limit) time.Duration {
	ns := math.Ceil(rateSingleNs(tokens, limit))
	switch {
	case math.IsInf(ns, 1):
		return 0
	case ns >= math.MaxInt64:
		return math.MaxInt64
	}
	return time.Duration(ns)
}

func (s *rateSingle) adjust(n int, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now = s.clock(now)
	for i, b := range s.buckets {
		if b.Limit() == rate.Inf {
			continue
		}
		burst, tokens, n := float64(b.Burst()), b.TokensAt(now), n
		if n > 0 {
			debt := math.Max(burst, float64(b.Limit())*s.maxWait.Seconds())
			n = rateSingleInt(math.Max(0, math.Min(float64(n), tokens+debt)))
		}
		rateSingleAdd(b, now, -n)
		s.taken[i] += math.Max(float64(n), math.Floor(tokens-burst))
	}
}

// rateSingleInt returns a number above the greatest int as that.
func rateSingleInt(n float64) int {
	if n >= math.MaxInt {
		return math.MaxInt
	}
	return int(n)
}

// rateSingleAdd puts n tokens into a bucket, or takes them if n is below 0.
func rateSingleAdd(b *rate.Limiter, now time.Time, n int) {
	burst := b.Burst()
	if -n > burst {
		// Only a bucket that could hold them lets go of so many.
		b.SetBurstAt(now, -n)
		defer b.SetBurstAt(now, burst)
	}
	b.ReserveN(now, -n)
}

// follow makes the buckets as empty as the states say, in whole tokens, and with down as full too.
func (s *rateSingle) follow(states []PolicyState, now time.Time, down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now = s.clock(now)
	for i, b := range s.buckets {
		if s.policies[i].Limit == rate.Inf {
			continue
		}
		if more := math.Floor(b.TokensAt(now)) - float64(states[i].Remaining); more > 0 || down {
			rateSingleAdd(b, now, -rateSingleInt(more))
		}
	}
}

// giveBack is that of table.
func (s *rateSingle) giveBack(reserved *[ratePolicyMax]rateReserved, n int, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now = s.clock(now)
	for i, b := range s.buckets {
		if reserved[i].bucket != b { // it was filled meanwhile, or has no limit
			continue
		}
		back := float64(n)
		if b.TokensAt(now) < 0 {
			back -= math.Max(0, s.taken[i]-reserved[i].mark)
		}
		if back > 0 {
			rateSingleAdd(b, now, int(back))
			s.taken[i] -= back
		}
	}
}

func (s *rateSingle) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, b := range s.buckets {
		s.buckets[i] = rate.NewLimiter(b.Limit(), b.Burst())
	}
}

func (s *rateSingle) setPolicy(i int, limit rate.Limit, burst int, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now = s.clock(now)
	b := s.buckets[i]
	s.policies[i].Limit, s.policies[i].Burst = limit, burst
	if limit == rate.Inf || b.Limit() == rate.Inf {
		s.buckets[i] = rate.NewLimiter(limit, burst)
		return
	}
	b.SetLimitAt(now, limit)
	if more := burst - b.Burst(); more > 0 {
		b.SetBurstAt(now, burst)
		rateSingleAdd(b, now, more)
	} else if more < 0 {
		rateSingleAdd(b, now, more)
		b.SetBurstAt(now, burst)
	}
}

func (s *rateSingle) stats(out *RateStats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out.Admitted, out.Rejected, out.Shadowed = s.admitted, s.rejected, s.shadowed
}
