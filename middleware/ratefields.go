package middleware

import (
	"math"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/spillgate/spillgate/limiter"
)

// rateFields are the response fields of a Rate, prepared once: writing them takes no
// formatting for limits and numbers that have been sent before.
type rateFields struct {
	names []string // of the policies
	// policies holds descriptions of recent limits, by a hash of the first: those of all keys, or those that keys have
	// of their own.
	policies [64]atomic.Pointer[ratePolicies]
	// values holds recent values of RateLimit, by a hash of its numbers. It serves one policy
	// only: the numbers of several rarely meet again.
	values [256]atomic.Pointer[rateValue]
	// bodies holds the problem documents by the set of policies that refused.
	bodies [1 << ratePolicyMax]atomic.Pointer[rejectBody]
}

// ratePolicyMax is the most policies a limiter.Rate has.
const ratePolicyMax = 8

// ratePolicies describes the limits that a decision went by.
type ratePolicies struct {
	limits []limiter.Policy
	field  []string // RateLimit-Policy; nil if no policy can be described
}

type rateValue struct {
	r, t  int64
	value []string
	text  [1]string // what value is a slice of, so that both are one allocation
}

func newRateFields(policies []limiter.Policy) *rateFields {
	f := new(rateFields)
	for _, p := range policies {
		f.names = append(f.names, p.Name)
	}
	return f
}

// of returns the description of the limits in each.
func (f *rateFields) of(each []limiter.PolicyState) *ratePolicies {
	const ways = 4 // so that a few plans do not displace each other
	hash := (math.Float64bits(float64(each[0].Limit)) ^ uint64(each[0].Burst)) * 0x9e3779b97f4a7c15 >> 32
	cell := func(i uint64) *atomic.Pointer[ratePolicies] { return &f.policies[(hash+i)%uint64(len(f.policies))] }
	for i := range uint64(ways) {
		if p := cell(i).Load(); p != nil && p.describes(each) {
			return p
		}
	}
	p := newRatePolicies(f.names, each)
	for i := range uint64(ways) {
		if cell(i).CompareAndSwap(nil, p) {
			return p
		}
	}
	cell(0).Store(p)
	return p
}

func (p *ratePolicies) describes(each []limiter.PolicyState) bool {
	for i := range p.limits {
		if p.limits[i].Limit != each[i].Limit || p.limits[i].Burst != each[i].Burst {
			return false
		}
	}
	return true
}

func newRatePolicies(names []string, each []limiter.PolicyState) *ratePolicies {
	out := new(ratePolicies)
	var b []byte
	for i, name := range names {
		p := limiter.Policy{Name: name, Limit: each[i].Limit, Burst: each[i].Burst}
		out.limits = append(out.limits, p)
		q, w, ok := p.Window()
		if !ok {
			continue // no limit, or one that no window describes
		}
		if len(b) > 0 {
			b = append(b, ", "...)
		}
		b = appendName(b, p.Name)
		b = append(b, ";q="...)
		b = strconv.AppendInt(b, q, 10)
		b = append(b, ";w="...)
		b = strconv.AppendInt(b, w, 10)
	}
	if len(b) > 0 {
		out.field = []string{string(b)}
	}
	return out
}

// appendName writes a policy's name as an RFC 9651 String; the limiter admits only names
// that need no escapes.
func appendName(b []byte, name string) []byte {
	b = append(b, '"')
	b = append(b, name...)
	return append(b, '"')
}

// numbers returns the parameters of one policy in the RateLimit field. t < 0 means none.
//
// r is what the client may use in the next t seconds. The draft (section 8.5) warns of an r that
// is large for its t, since a client may infer r/t as its rate; so t is the time in which r flows in,
// and what is told is never faster than the policy. With nothing left t is when the next token comes.
// A refusal's t is never later than its Retry-After.
func numbers(s *limiter.PolicyState) (r, t int64, ok bool) {
	if s.Remaining == math.MaxInt || math.IsInf(float64(s.Limit), 1) {
		return 0, 0, false // no quota
	}
	r, t = int64(min(float64(s.Remaining), 1e15-1)), -1 // the most that RFC 9651, section 3.3.1, can carry
	switch {
	case r > 0 && s.Limit > 0:
		t = int64(min(math.Ceil(float64(r)/float64(s.Limit)*(1-1e-12)), 1e12))
	case r == 0 && s.Limit > 0:
		// The bucket is full in ResetAfter, which is Burst tokens and the rest of the one under way.
		next := float64(s.ResetAfter)/float64(time.Second) - float64(s.Burst-1)/float64(s.Limit)
		t = int64(min(max(1, math.Ceil(next)), 1e12))
	}
	if t >= 0 {
		t = max(t, 1)
		if s.Refused && s.RetryAfter > 0 {
			t = min(t, ceilSeconds(s.RetryAfter))
		}
	}
	return r, t, true
}

func (f *rateFields) setDraft(h http.Header, each []limiter.PolicyState) {
	policy := f.of(each).field
	if policy != nil {
		h["Ratelimit-Policy"] = policy
	}
	if len(f.names) == 1 {
		r, t, ok := numbers(&each[0])
		if !ok {
			return
		}
		cell := &f.values[uint64(r*31+t)%uint64(len(f.values))]
		v := cell.Load()
		if v == nil || v.r != r || v.t != t {
			var buf [128]byte
			v = &rateValue{r: r, t: t}
			v.text[0] = string(appendLimit(buf[:0], f.names[0], r, t))
			v.value = v.text[:]
			cell.Store(v)
		}
		h["Ratelimit"] = v.value
		if policy == nil {
			delete(h, "Ratelimit-Policy") // what a layer outside has set is not of this policy
		}
		return
	}
	var buf [256]byte
	b := buf[:0]
	for i := range f.names {
		r, t, ok := numbers(&each[i])
		if !ok {
			continue
		}
		if len(b) > 0 {
			b = append(b, ", "...)
		}
		b = appendLimit(b, f.names[i], r, t)
	}
	if len(b) > 0 {
		h["Ratelimit"] = []string{string(b)}
		if policy == nil {
			delete(h, "Ratelimit-Policy")
		}
	}
}

func appendLimit(b []byte, name string, r, t int64) []byte {
	b = appendName(b, name)
	b = append(b, ";r="...)
	b = strconv.AppendInt(b, r, 10)
	if t >= 0 {
		b = append(b, ";t="...)
		b = strconv.AppendInt(b, t, 10)
	}
	return b
}

func setLegacy(h http.Header, d *limiter.Decision) {
	if d.Limit == math.MaxInt {
		return
	}
	h["X-Ratelimit-Limit"] = decimal(int64(d.Limit))
	h["X-Ratelimit-Remaining"] = decimal(int64(d.Remaining))
	h["X-Ratelimit-Reset"] = decimal(ceilSeconds(d.ResetAfter))
}

// body returns the problem document that names the policies which refused.
func (f *rateFields) body(each []limiter.PolicyState) *rejectBody {
	set := 0
	for i := range each {
		if each[i].Refused {
			set |= 1 << i
		}
	}
	if b := f.bodies[set].Load(); b != nil {
		return b
	}
	var names []string
	for i, name := range f.names {
		if set&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	b := newRejectBody(problemQuota, "Quota exceeded", http.StatusTooManyRequests,
		"The client has used up its quota. Retry after the time given.", names)
	f.bodies[set].Store(b)
	return b
}
