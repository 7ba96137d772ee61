package middleware

import (
	"math"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/spillgate/spillgate/limiter"
)

// rateFields are the response fields of a set of policies, prepared once: writing them takes no
// formatting for numbers that have been sent before.
type rateFields struct {
	policies []limiter.Policy
	policy   []string // RateLimit-Policy; nil if no policy can be described
	// values holds recent values of RateLimit, by a hash of its numbers. It serves one policy
	// only: the numbers of several rarely meet again.
	values [256]atomic.Pointer[rateValue]
	// bodies holds the problem documents by the set of policies that refused.
	bodies [1 << ratePolicies]atomic.Pointer[rejectBody]
}

type rateValue struct {
	r, t  int64
	value []string
	text  [1]string // what value is a slice of, so that both are one allocation
}

func newRateFields(policies []limiter.Policy) *rateFields {
	f := &rateFields{policies: policies}
	var b []byte
	for _, p := range policies {
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
		f.policy = []string{string(b)}
	}
	return f
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
func numbers(p *limiter.Policy, d *limiter.Decision, s *limiter.PolicyState) (r, t int64, ok bool) {
	if s.Remaining == math.MaxInt || math.IsInf(float64(p.Limit), 1) {
		return 0, 0, false // no quota
	}
	r, t = int64(s.Remaining), -1
	own := d.Policy == p.Name && d.Limit != p.Burst // the key has a limit of its own, which is not known here
	switch {
	case r > 0 && p.Limit > 0 && !own:
		t = int64(min(math.Ceil(float64(r)/float64(p.Limit)*(1-1e-12)), 1e12))
	case r == 0 && p.Limit > 0 && !own:
		// The bucket is full in ResetAfter, which is Burst tokens and the rest of the one under way.
		next := float64(s.ResetAfter)/float64(time.Second) - float64(p.Burst-1)/float64(p.Limit)
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

func (f *rateFields) setDraft(h http.Header, d *limiter.Decision, each []limiter.PolicyState) {
	if f.policy != nil {
		h["Ratelimit-Policy"] = f.policy
	}
	if len(f.policies) == 1 {
		r, t, ok := numbers(&f.policies[0], d, &each[0])
		if !ok {
			return
		}
		cell := &f.values[uint64(r*31+t)%uint64(len(f.values))]
		v := cell.Load()
		if v == nil || v.r != r || v.t != t {
			var buf [128]byte
			v = &rateValue{r: r, t: t}
			v.text[0] = string(appendLimit(buf[:0], f.policies[0].Name, r, t))
			v.value = v.text[:]
			cell.Store(v)
		}
		h["Ratelimit"] = v.value
		return
	}
	var buf [256]byte
	b := buf[:0]
	for i := range f.policies {
		r, t, ok := numbers(&f.policies[i], d, &each[i])
		if !ok {
			continue
		}
		if len(b) > 0 {
			b = append(b, ", "...)
		}
		b = appendLimit(b, f.policies[i].Name, r, t)
	}
	if len(b) > 0 {
		h["Ratelimit"] = []string{string(b)}
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
	for i := range f.policies {
		if set&(1<<i) != 0 {
			names = append(names, f.policies[i].Name)
		}
	}
	b := newRejectBody(problemQuota, "Quota exceeded", http.StatusTooManyRequests,
		"The client has used up its quota. Retry after the time given.", names)
	f.bodies[set].Store(b)
	return b
}
