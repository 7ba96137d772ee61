package outbound

import (
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/spillgate/spillgate/breaker"
)

// A Policy says how a [Set] chooses among the endpoints in service.
type Policy int

const (
	// P2C draws two endpoints, by weight, and takes the one with less in flight for its weight, (in flight + 1) / weight.
	// What is in flight is thus shared by weight; when there is little of it, the heaviest endpoints get more than their
	// part. P2C is as good as looking at all endpoints, costs about the same for any number of them, and a crowd of
	// clients does not run to the same endpoint at once (Mitzenmacher, "The Power of Two Choices in Randomized Load
	// Balancing", 2001).
	P2C Policy = iota
	// RoundRobin takes turns, by weight and evenly mixed as nginx does. It begins at a random endpoint, and again after
	// each change of the list, so that processes are not in step.
	RoundRobin
	// Random draws one endpoint, by weight.
	Random

	hashed
)

var policyNames = [...]string{"P2C", "RoundRobin", "Random"}

// String returns the name of the policy: "P2C", "RoundRobin" or "Random".
func (p Policy) String() string {
	if p >= 0 && int(p) < len(policyNames) {
		return policyNames[p]
	}
	return "Policy(" + strconv.Itoa(int(p)) + ")"
}

// pick chooses an endpoint and asks its breaker, for a try that waits for a limit
// before it is made if waits is true. It allocates nothing.
func (s *Set) pick(req *http.Request, now time.Time, waits bool) (*endpoint, breaker.Call, error) {
	list := s.list.Load()
	at := now.Sub(s.clock.start)
	ask := breaker.Request{Arrived: now, Long: asksForLong(req), Waits: waits}
	t := triesIn(req.Context())
	if t != nil && !t.of(s) {
		t = nil
	}
	first := t == nil || !t.any()

	var thinned *endpoint
	// The usual case needs to look at two endpoints only.
	if s.policy == P2C && first && len(list.tiers) == 1 && len(list.all) > 1 {
		a, b := list.two()
		bothIn := a.in(at) && b.in(at)
		panicking := false
		if !bothIn {
			// While ejection is suspended the draw stands: another one would favour
			// those in service.
			_, panicking = s.serving(list, at)
		}
		if bothIn || panicking {
			e := s.lighter(a, b, at)
			call, err := e.breaker.Admit(ask)
			if err != nil && !e.refused(err, at) {
				thinned = e
			}
			if err == nil || panicking {
				if t != nil {
					t.note(e, s.others(list.all, e, t, at))
				}
				return e, call, nil
			}
		}
	}
	return s.search(req, list, t, ask, at, thinned)
}

// refused notes how long the breaker of an endpoint will refuse all calls. It
// reports false if it refused this one only, as on the ramp after an ejection.
func (e *endpoint) refused(err error, at time.Duration) bool {
	open, ok := err.(*breaker.OpenError)
	if !ok {
		return false
	}
	if open.State == breaker.Closed {
		e.ramp.Store(int64(at + open.RetryAfter))
		return false
	}
	wait := open.RetryAfter
	if open.State == breaker.HalfOpen || wait <= 0 {
		wait = min(max(wait, time.Millisecond), 100*time.Millisecond) // a probe may end any time
	}
	e.out.Store(int64(at + wait))
	return true
}

// search looks at every endpoint. thinned has refused this request on its ramp already; nil if none has.
func (s *Set) search(req *http.Request, list *roster, t *tries, ask breaker.Request, at time.Duration, thinned *endpoint) (*endpoint, breaker.Call, error) {
	var space, passedSpace [64]*endpoint
	passed := passedSpace[:0] // endpoints that refused this request only
	untried := false          // one of them had no try
	if thinned != nil {
		passed, untried = append(passed, thinned), true
	}
	hedge := isHedge(req.Context())
	for {
		tier, panicking := s.serving(list, at)
		free, tried := space[:0], false
		for _, e := range tier {
			if !panicking && !e.in(at) || slices.Contains(passed, e) {
				continue
			}
			if hedge && (panicking || e.breaker.State() != breaker.Closed && !inShadow(e.breaker)) {
				continue
			}
			if t != nil && t.tried(e) {
				tried = true
				continue
			}
			free = append(free, e)
		}
		if len(free) == 0 && tried && !hedge && !untried { // all that are left had a try
			for _, e := range tier {
				if (panicking || e.in(at)) && !slices.Contains(passed, e) {
					free = append(free, e)
				}
			}
		}
		if len(free) == 0 {
			if len(passed) == 0 || hedge {
				return nil, breaker.Call{}, ErrNoEndpoint
			}
			// All are on the ramp and let in others: one more must go somewhere. So must a retry
			// where those that had no try are.
			e := s.choose(req, passed, at)
			if t != nil {
				t.note(e, s.others(tier, e, t, at))
			}
			return e, breaker.Call{}, nil
		}
		e := s.choose(req, free, at)
		call, err := admit(e.breaker, ask, hedge)
		if err != nil {
			out := e.refused(err, at)
			if !panicking {
				if !out {
					passed = append(passed, e)
					untried = untried || t == nil || !t.tried(e)
				}
				continue
			}
			// Its breaker does not count what is sent against its word.
		}
		if t != nil {
			t.note(e, s.others(tier, e, t, at))
		}
		return e, call, nil
	}
}

// serving returns the tier that requests go to, and whether too few of it are in
// service to go by that: the first with enough in service, otherwise the one
// with the largest part.
func (s *Set) serving(list *roster, at time.Duration) (tier []*endpoint, panicking bool) {
	// 0.29*100 and (1-0.8)*5 are a little less than 29 and 1.
	const rounding = 1e-9
	best := -1.0
	for _, candidate := range list.tiers {
		n, in := len(candidate), 0
		for _, e := range candidate {
			if e.in(at) {
				in++
			}
		}
		if in >= max(1, n-int(float64(n)*s.maxEjected+rounding)) {
			return candidate, false
		}
		if part := float64(in) / float64(n); part > best {
			best, tier = part, candidate
		}
	}
	return tier, s.maxEjected < 1 && len(tier) > 0
}

// others reports whether an endpoint besides e is there that had no try.
func (s *Set) others(tier []*endpoint, e *endpoint, t *tries, at time.Duration) bool {
	for _, o := range tier {
		if o != e && o.in(at) && !t.tried(o) {
			return true
		}
	}
	return false
}

// choose goes by the policy. from is not empty.
func (s *Set) choose(req *http.Request, from []*endpoint, at time.Duration) *endpoint {
	if len(from) == 1 {
		return from[0]
	}
	switch s.policy {
	case RoundRobin:
		return s.nextInTurn(from, at)
	case Random:
		return draw(from, nil, func(e *endpoint) float64 { return float64(e.weight.Load()) * e.share(at, s.slowStart) })
	case hashed:
		return s.byHash(s.hashKey(req), from, at)
	default:
		weight := func(e *endpoint) float64 { return float64(e.weight.Load()) }
		a := draw(from, nil, weight)
		return s.lighter(a, draw(from, a, weight), at)
	}
}

// two draws two different endpoints of all by weight, in random order. Were each as
// likely, light ones would meet so often that they had more than their part.
func (l *roster) two() (a, b *endpoint) {
	n := uint64(len(l.all))
	if l.sums == nil {
		// One draw gives both: its halves are independent enough for this.
		r := rand.Uint64()
		i := (r >> 32) * n >> 32
		j := (r & (1<<32 - 1)) * (n - 1) >> 32
		if j >= i {
			j++
		}
		return l.all[i], l.all[j]
	}
	total := l.sums[n-1]
	i := l.under(rand.Int64N(total))
	before, weight := int64(0), l.sums[i]
	if i > 0 {
		before = l.sums[i-1]
		weight -= before
	}
	x := rand.Int64N(total - weight)
	if x >= before {
		x += weight
	}
	return l.all[i], l.all[l.under(x)]
}

// under returns which endpoint has x of the sum of all weights.
func (l *roster) under(x int64) int {
	i, _ := slices.BinarySearch(l.sums, x+1)
	return i
}

// draw draws an endpoint that is not other by weight. There must be one.
func draw(from []*endpoint, other *endpoint, weight func(*endpoint) float64) *endpoint {
	var total float64
	for _, e := range from {
		if e != other {
			total += weight(e)
		}
	}
	x := rand.Float64() * total
	var last *endpoint
	for _, e := range from {
		if e == other {
			continue
		}
		last = e
		if x -= weight(e); x < 0 {
			break
		}
	}
	return last // also if Update has made them lighter meanwhile
}

// lighter returns the endpoint with less in flight for its weight; of equals,
// the first, so the caller's order must be random.
func (s *Set) lighter(a, b *endpoint, at time.Duration) *endpoint {
	// On its slow start an endpoint takes part with its share of chances. Its
	// load would not do: while there is little of it, any endpoint has none.
	if warmA, warmB := s.takesPart(a, at), s.takesPart(b, at); warmA != warmB {
		if warmA {
			return a
		}
		return b
	}
	loadA, loadB := (a.inflight.Load()+1)*b.weight.Load(), (b.inflight.Load()+1)*a.weight.Load()
	if loadB < loadA {
		a, b = b, a
	}
	// Having little in flight it would win each time that it takes part, which is twice as often as others do.
	if loadA != loadB && a.grows(at) && !b.grows(at) && rand.Uint64()&1 == 0 {
		return b
	}
	return a
}

// grows reports whether an endpoint is on its slow start, or on the ramp after an ejection.
func (e *endpoint) grows(at time.Duration) bool {
	return int64(at) < e.warm.Load() || int64(at) < e.ramp.Load()
}

func (s *Set) takesPart(e *endpoint, at time.Duration) bool {
	if int64(at) >= e.warm.Load() {
		return true
	}
	return rand.Float64() < e.share(at, s.slowStart)
}

// nextInTurn is the smooth weighted round robin of nginx: each endpoint gains its
// weight, the richest is chosen and pays what all gained.
func (s *Set) nextInTurn(from []*endpoint, at time.Duration) *endpoint {
	s.turns.Lock()
	defer s.turns.Unlock()
	var total float64
	best := from[0]
	for _, e := range from {
		w := float64(e.weight.Load()) * e.share(at, s.slowStart)
		e.turn += w
		total += w
		if e.turn > best.turn {
			best = e
		}
	}
	best.turn -= total
	return best
}

// loadBound is how many times its part of the requests in flight an endpoint may
// have before keys pass it by.
const loadBound = 1.25

// byHash is weighted rendezvous hashing (Schindelhauer and Schomaker, 2005) among
// the endpoints below the load bound.
func (s *Set) byHash(key string, from []*endpoint, at time.Duration) *endpoint {
	h := hash(key)
	var inflight int64
	var weights float64
	for _, e := range from {
		inflight += e.inflight.Load()
		weights += float64(e.weight.Load())
	}
	var best *endpoint
	highest := math.Inf(-1)
	for _, e := range from {
		w := float64(e.weight.Load())
		if float64(e.inflight.Load()) >= math.Ceil(loadBound*float64(inflight+1)*w/weights) {
			continue
		}
		u := (float64(mix(h^e.seed)>>11) + 0.5) / (1 << 53)
		if score := w * e.share(at, s.slowStart) / -math.Log(u); score > highest {
			best, highest = e, score
		}
	}
	if best == nil { // requests came between the two loops
		return from[0]
	}
	return best
}

// hash is FNV-1a, mixed. It must stay what it is: processes find the same endpoint for a key because they
// have the same hash, also those of two versions side by side.
func hash(text string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(text) {
		h = (h ^ uint64(text[i])) * 1099511628211
	}
	return mix(h)
}

// mix is the finalizer of SplitMix64: every bit of the result depends on every
// bit of x.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
