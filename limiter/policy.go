package limiter

import (
	"fmt"
	"math"
	"math/bits"
	"time"

	"golang.org/x/time/rate"
)

// ratePolicyMax is how many policies one [Rate] may hold: the words of a bucket
// are kept side by side, and their copies on the stack have a fixed size.
const ratePolicyMax = 8

// Policy is one of the token buckets that a [Rate] keeps for every key.
type Policy struct {
	// Name is unique within its Rate. It is printable ASCII without quote and backslash, so that it can be sent as it is
	// (RFC 9651, section 3.3.3).
	Name string `json:"name"`
	// Limit is how many tokens flow in each second. 0 means none, ever; [rate.Inf] means that this policy admits
	// everything.
	Limit rate.Limit `json:"limit"`
	// Burst is how many tokens the bucket holds. A new key starts with a full bucket.
	Burst int `json:"burst"`
}

// Window returns the quota q and the window w in whole seconds that describe the policy in a RateLimit-Policy field
// (draft-ietf-httpapi-ratelimit-headers). w is the time in which an empty bucket fills, rounded up, and at least 1. q
// is what flows in during w, and at least the burst. ok is false for a policy that has no such description: one with
// an infinite limit, a limit of 0, or numbers that RFC 9651 cannot carry.
func (p Policy) Window() (q, w int64, ok bool) {
	const most = 999_999_999_999_999 // RFC 9651, section 3.3.1
	if policyInfinite(p.Limit) || p.Limit <= 0 {
		return 0, 0, false
	}
	// A little less than the quotient, so that 100 at 100/60 a second are 60 s and not 61.
	fill := math.Max(1, math.Ceil(float64(p.Burst)/float64(p.Limit)*(1-1e-12)))
	quota := math.Max(float64(p.Burst), math.Floor(float64(p.Limit)*fill*(1+1e-12)))
	if fill > most || quota > most {
		return 0, 0, false
	}
	return int64(quota), int64(fill), true
}

// PolicyState is the state of one policy's bucket after a decision.
type PolicyState struct {
	// Limit and Burst are those that the decision used: the policy's, or the key's own (see [WithKeyLimit]). A [Store]
	// need not set them.
	Limit rate.Limit `json:"limit"`
	Burst int        `json:"burst"`
	// Remaining is how many tokens are left, rounded down; never below 0.
	Remaining int `json:"remaining"`
	// RetryAfter is the time until this policy would admit the same request. It is 0 if the policy admits it now, or if
	// no wait helps (the cost is above the burst, or the limit is 0).
	RetryAfter time.Duration `json:"retry_after"`
	// ResetAfter is the time until the bucket is full again if nothing else is taken.
	ResetAfter time.Duration `json:"reset_after"`
	// Refused is set if this policy did not admit the request.
	Refused bool `json:"refused"`
}

// policyUnbounded is the burst and what remains of an infinite policy.
const policyUnbounded = math.MaxInt

// policyInfinite reports whether the limit admits everything. From 2^62 tokens a second
// on a bucket would fill in less than the resolution of any clock.
func policyInfinite(l rate.Limit) bool { return l >= 1<<62 }

// policyLimit has [rate.Inf] for whatever is infinite: JSON has no infinities, and a [Store] knows no other.
func policyLimit(l rate.Limit) rate.Limit {
	if policyInfinite(l) {
		return rate.Inf
	}
	return l
}

// policyCheck says what is wrong with a limit and a burst; "" if nothing is.
func policyCheck(limit rate.Limit, burst int) string {
	switch {
	case math.IsNaN(float64(limit)):
		return "limit is NaN: give tokens a second, rate.Every(interval), or rate.Inf"
	case limit < 0:
		return fmt.Sprintf("limit is %v: give tokens a second, 0 for none, or rate.Inf", limit)
	case burst < 0:
		return fmt.Sprintf("burst is %d: give the number of tokens that a full bucket holds", burst)
	case burst == 0 && !policyInfinite(limit):
		return "burst is 0, which admits nothing under a finite limit: give at least 1, or the limit rate.Inf"
	}
	return ""
}

// policyNameOK reports whether a name can be sent as an RFC 9651 String without escapes.
func policyNameOK(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e || s[i] == '"' || s[i] == '\\' {
			return false
		}
	}
	return true
}

// policyRule is the arithmetic of one token bucket in one word, the generic cell rate
// algorithm (ITU-T I.371) with a clock of its own.
//
// The clock of a rule ticks 2^shift times for every token that flows in. The word of a bucket is the
// reading of that clock at which the bucket is full again; what is spent is the word
// less the present reading, and taking n tokens adds exactly n<<shift. So no error builds
// up, however odd the limit: only the reading is rounded, by less than a tick, and a
// tick is 0.03 to 0.06 ns for all but absurd limits and bursts. A limit of 0 is a clock that
// stands still. Readings wrap around; only differences count, and these are good for 8
// years and more.
//
// A rule is immutable.
type policyRule struct {
	limit rate.Limit
	burst int
	// maxWait is how far ahead tokens may be reserved.
	maxWait time.Duration

	infinite bool
	shift    uint   // ticks a token, as a power of two
	mul      uint64 // ticks a nanosecond, in units of 2^-mulShift
	mulShift uint

	nsPerTick float64
	capacity  int64 // the burst in ticks
	// grace is the shortfall that is still admitted: the part of a nanosecond that a caller cannot
	// wait for. x/time/rate cuts the same part off.
	grace int64
	debt  int64 // the most that Charge makes of what is spent
	// far is the most that can be spent, under this rule and those before it. More is the mark of a clock
	// that was set back.
	far int64

	// tick is how many ticks a token costs, where that is no power of two: under a
	// limit that is one key's own, on the clock that all keys share.
	tick float64
}

const (
	policyTickBits = 35                  // a clock ticks between 2^34 and 2^35 times a second
	policyMost     = 1 << 60             // no bucket holds more ticks
	policySkew     = 1 << policyTickBits // readings taken in one order may be used in another
)

// newPolicyRule returns the rule of a checked limit and burst.
// If shared is set, the clock does not depend on the limit, so that keys with limits of
// their own can use it.
func newPolicyRule(limit rate.Limit, burst int, maxWait time.Duration, shared bool) policyRule {
	p := policyRule{limit: limit, burst: burst, maxWait: maxWait, infinite: policyInfinite(limit)}
	if shared {
		return p.sharedClock()
	}
	if p.infinite {
		return p
	}
	room := max(0, 60-bits.Len64(uint64(burst)))
	if limit <= 0 {
		p.shift = uint(min(32, room))
	} else {
		_, e := math.Frexp(float64(limit))
		p.shift = uint(max(0, min(policyTickBits-e, room)))
	}
	p.setClock(math.Ldexp(float64(max(limit, 0)), int(p.shift)))
	p.capacity = p.cost(burst)
	p.setDebt()
	return p
}

// sharedClock returns a rule that has only a clock; forKey makes it one for a key.
func (p policyRule) sharedClock() policyRule {
	p.setClock(1 << (policyTickBits - 1))
	p.infinite, p.tick, p.capacity, p.debt, p.far = false, 1, policyMost, 2*policyMost, 2*policyMost
	return p
}

// forKey returns the rule for a key with a limit of its own, on the clock of p. A limit that
// is not positive (or not a number) admits nothing.
func (p policyRule) forKey(limit rate.Limit, burst int) policyRule {
	p.limit, p.burst, p.infinite, p.far = policyLimit(limit), burst, policyInfinite(limit), 0
	if p.infinite {
		return p
	}
	if !(limit > 0) || burst <= 0 {
		p.limit, p.burst, p.tick, p.capacity, p.debt, p.far = 0, 0, 1, 0, 2*policyMost, 2*policyMost
		return p
	}
	p.tick = (1 << (policyTickBits - 1)) / float64(limit)
	if ticks := float64(burst) * p.tick; ticks <= policyMost {
		p.capacity = int64(ticks)
	} else {
		// An event of more than what is there would cost no more than all of it.
		p.capacity, p.burst = policyMost, max(1, int(policyMost/p.tick))
	}
	p.setDebt()
	return p
}

// setClock makes the clock tick so many times a second.
func (p *policyRule) setClock(ticks float64) {
	perNs := ticks / 1e9
	if perNs > 0 {
		p.nsPerTick = min(1/perNs, math.MaxFloat64) // an infinity times 0 is no time
		p.grace = int64(math.Max(1, math.Floor(perNs)-2))
	}
	frac, e := math.Frexp(perNs)
	p.mul = uint64(math.Ldexp(frac, 63))
	s := 63 - e
	if s > 63 {
		p.mul >>= uint(min(s-63, 64))
		s = 63
	}
	p.mulShift = uint(s)
}

func (p *policyRule) setDebt() {
	ahead := p.capacity
	if p.nsPerTick > 0 {
		ahead = max(ahead, int64(math.Min(float64(p.maxWait)/p.nsPerTick, policyMost)))
	}
	p.debt = p.capacity + ahead
	p.far = max(p.far, p.debt)
}

// clock returns the reading ns nanoseconds after (or before) the origin.
func (p *policyRule) clock(ns int64) int64 {
	if ns < 0 {
		return -p.clock(-max(ns, -math.MaxInt64))
	}
	hi, lo := bits.Mul64(uint64(ns), p.mul)
	return int64(hi<<(64-p.mulShift) | lo>>p.mulShift)
}

// cost returns n tokens in ticks; n is at least 0 and at most the burst, or else the result is cut off.
func (p *policyRule) cost(n int) int64 {
	if p.tick != 0 {
		return int64(math.Min(math.Round(float64(n)*p.tick), policyMost))
	}
	if int64(n) > policyMost>>p.shift {
		return policyMost
	}
	return int64(n) << p.shift
}

// spent returns how many ticks are spent of a bucket whose word is cell.
func (p *policyRule) spent(cell, clock int64) int64 {
	s := cell - clock
	if s <= 0 {
		return 0
	}
	if s > p.far+policySkew {
		// The clock was set back, or the key has another limit now. The bucket may have been anything between full and empty:
		// empty admits no more than is due, and is mended in the time one burst takes.
		return p.capacity
	}
	return s
}

// tokens returns what is left after so much is spent.
func (p *policyRule) tokens(spent int64) int {
	free := p.capacity - spent + p.grace
	if free <= 0 {
		return 0
	}
	if p.tick != 0 {
		if left := float64(free) / p.tick; left < float64(p.burst) {
			return int(left)
		}
		return p.burst
	}
	return int(min(int64(p.burst), free>>p.shift))
}

// wait returns how long the clock needs for so many ticks, rounded up; 0 if it stands still.
func (p *policyRule) wait(ticks int64) time.Duration {
	ns := math.Ceil(float64(ticks) * p.nsPerTick)
	if ns >= math.MaxInt64 {
		return math.MaxInt64
	}
	return time.Duration(ns)
}

// spentOf returns how much is spent of a bucket in that state, at least.
func (p *policyRule) spentOf(s PolicyState) int64 {
	if s.ResetAfter > 1 && p.nsPerTick > 0 {
		// It was rounded up to a nanosecond; half of one is what it was off by, within the grace. Where a store rounds more, what is left is left.
		spent := min(p.debt, int64((float64(s.ResetAfter)-0.5)/p.nsPerTick))
		if s.Remaining > 0 {
			spent = min(spent, p.capacity-p.cost(min(s.Remaining, p.burst)))
		}
		return spent
	}
	return max(0, p.capacity-p.cost(max(0, min(s.Remaining, p.burst-1))+1))
}

// state describes a bucket of which so much is spent.
func (p *policyRule) state(spent int64) PolicyState {
	if p.infinite {
		return PolicyState{Limit: p.limit, Burst: p.burst, Remaining: policyUnbounded}
	}
	return PolicyState{Limit: p.limit, Burst: p.burst, Remaining: p.tokens(spent), ResetAfter: p.wait(spent)}
}

// policyConvert returns the word under rule to of a bucket whose word under rule from is cell: what is
// spent stays spent, counted in tokens.
func policyConvert(from, to *policyRule, cell, ns int64) int64 {
	reading := to.clock(ns)
	if from.infinite || to.infinite {
		return reading
	}
	s := from.spent(cell, from.clock(ns))
	if from.tick != 0 {
		// On a shared clock keys have limits of their own; it is the time to refill that stays.
		return reading + min(s, to.far)
	}
	return reading + min(policyTicks(from, to, s), to.far)
}

// policyTicks returns as many tokens under rule to as ticks are under rule from, rounded up.
func policyTicks(from, to *policyRule, ticks int64) int64 {
	return int64(math.Min(math.Ceil(math.Ldexp(float64(ticks), int(to.shift)-int(from.shift))), 2*policyMost))
}

// after returns the rule with room for all that may be spent under the one before it.
func (p policyRule) after(before *policyRule) policyRule {
	if !p.infinite && !before.infinite && p.tick == 0 {
		p.far = max(p.far, policyTicks(before, &p, before.far))
	}
	return p
}
