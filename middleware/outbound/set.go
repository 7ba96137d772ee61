package outbound

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/limiter"
)

// A Set spreads requests over endpoints that do the same work; [Balance] puts it into a transport. Make one with
// [NewSet]. It is safe for concurrent use.
//
// Choosing by load alone is dangerous: an endpoint that fails at once has the fewest requests in flight and draws all
// of them. So each endpoint has a [breaker.Breaker], and while that is open the endpoint is ejected: it gets no
// requests. When its open time is over, a few requests probe it, and its share grows again slowly.
//
// If more than half of a tier would be ejected, or is down by the active checks, the whole tier is used: when most
// endpoints look broken, the fault is likely elsewhere, and the others could not carry the load anyway.
// [WithMaxEjected] moves that threshold.
type Set struct {
	setConfig
	clock clock
	list  atomic.Pointer[roster]
	turns sync.Mutex // guards endpoint.turn

	mu      sync.Mutex // guards changes of list, and what follows
	closed  bool
	stop    context.CancelFunc
	ctx     context.Context
	probing sync.WaitGroup
}

// A roster is the endpoints at one time. It does not change.
type roster struct {
	all   []*endpoint
	sums  []int64       // of the weights up to each of all; nil if they weigh the same
	tiers [][]*endpoint // lowest first, none empty
}

// NewSet returns a set of the given endpoints. The list may be empty: requests then fail with [ErrNoEndpoint] until
// [Set.Update] adds some. The error names the first endpoint that is invalid or listed twice. A wrong option panics.
//
// With [WithProbe], a set has a goroutine for each endpoint until [Set.Close].
func NewSet(endpoints []Endpoint, opts ...SetOption) (*Set, error) {
	s := &Set{setConfig: defaultSetConfig(), clock: newClock()}
	for i, o := range opts {
		if o == nil {
			panic(nilOption("NewSet", i))
		}
		o.applySet(&s.setConfig)
	}
	// It panics now if an option is wrong, and not when Update brings an endpoint.
	oneClient("NewSet", breaker.New(s.ejection...).Settings())
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.list.Store(&roster{})
	if err := s.update(endpoints, true); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// Update replaces the list of endpoints. Endpoints that stay, by URL, keep their state; new ones start slowly; requests
// in flight to removed ones go on. On an error Update changes nothing.
func (s *Set) Update(endpoints []Endpoint) error { return s.update(endpoints, false) }

func (s *Set) update(endpoints []Endpoint, initial bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	have := map[string]*endpoint{}
	for _, e := range s.list.Load().all {
		have[e.name] = e
	}
	type entry struct {
		Endpoint
		*endpoint
	}
	var entries []entry
	seen := map[string]bool{}
	for _, want := range endpoints {
		want, u, err := want.parse()
		if err != nil {
			return err
		}
		if seen[want.URL] {
			return fmt.Errorf("outbound: endpoint %q is given twice; give it once, with a weight", want.URL)
		}
		seen[want.URL] = true
		e := have[want.URL]
		if e == nil {
			e = newEndpoint(want, u, s.ejection)
		}
		entries = append(entries, entry{want, e})
	}

	next := &roster{}
	changed, even := len(entries) != len(have), true
	byTier := map[int][]*endpoint{}
	var sum int64
	for _, n := range entries {
		even = even && n.Weight == entries[0].Weight
		sum += int64(n.Weight)
		next.sums = append(next.sums, sum)
		e := n.endpoint
		if e.weight.Swap(int64(n.Weight)) != int64(n.Weight) {
			changed = true
		}
		e.tier.Store(int64(n.Tier))
		if have[e.name] == nil {
			changed = true
			if !initial {
				s.warmUp(e)
			}
			s.startProbe(e)
		}
		next.all = append(next.all, e)
		byTier[n.Tier] = append(byTier[n.Tier], e)
	}
	if even {
		next.sums = nil
	}
	for tier := range byTier {
		next.tiers = append(next.tiers, byTier[tier])
	}
	slices.SortFunc(next.tiers, func(a, b []*endpoint) int { return int(a[0].tier.Load() - b[0].tier.Load()) })
	s.list.Store(next)
	if changed { // what was owed by other weights could take as long to pay back as they were large
		s.turns.Lock()
		for _, e := range next.all {
			// Anywhere in the first round: other processes hear of the same list at the same time.
			e.turn = rand.Float64() * float64(e.weight.Load())
		}
		s.turns.Unlock()
	}
	for name, e := range have {
		if !seen[name] && e.probing != nil {
			e.probing()
		}
	}
	return nil
}

// Close stops the active checks and waits for them to end. The set still works, with what it knew. Close may be called
// more than once.
func (s *Set) Close() error {
	s.mu.Lock()
	s.closed = true
	s.stop()
	s.mu.Unlock()
	s.probing.Wait()
	return nil
}

// shut reports whether every endpoint is ejected, and still will be after wait, where that is not suspended.
func (s *Set) shut(wait time.Duration) bool {
	if s.maxEjected < 1 {
		return false
	}
	return !slices.ContainsFunc(s.list.Load().all, func(e *endpoint) bool { return !shut(e.breaker, wait) })
}

func (s *Set) now() time.Duration { return s.clock.since() }

// warmUp begins the slow start of an endpoint.
func (s *Set) warmUp(e *endpoint) {
	if s.slowStart > 0 {
		e.warm.Store(int64(s.now() + s.slowStart))
	}
}

// EndpointStats is what a [Set] knows about an endpoint.
type EndpointStats struct {
	URL      string `json:"url"`
	Weight   int    `json:"weight"`
	Tier     int    `json:"tier"`
	InFlight int64  `json:"in_flight"` // tries whose response body is not over
	Requests uint64 `json:"requests"`  // tries sent; one that Limit refused does not count
	Failures uint64 `json:"failures"`  // tries that its breaker counted as failures
	// Ejected says that its breaker keeps requests away.
	Ejected bool `json:"ejected"`
	// Down says that its active check keeps requests away.
	Down bool `json:"down"`
	// Share is the part of its work that the endpoint gets, below 1 during its slow start.
	Share   float64       `json:"share"`
	Breaker breaker.Stats `json:"breaker"`
}

// SetStats is what a [Set] knows.
type SetStats struct {
	// Panic says that too few endpoints of every tier are in service, so that
	// ejection is suspended.
	Panic     bool            `json:"panic"`
	Endpoints []EndpointStats `json:"endpoints"`
}

// Stats returns the current state, with the endpoints in the order of the list.
func (s *Set) Stats() SetStats {
	list, at := s.list.Load(), s.now()
	stats := SetStats{Endpoints: make([]EndpointStats, 0, len(list.all))}
	_, stats.Panic = s.serving(list, at)
	for _, e := range list.all {
		stats.Endpoints = append(stats.Endpoints, EndpointStats{
			URL: e.name, Weight: int(e.weight.Load()), Tier: int(e.tier.Load()),
			InFlight: e.inflight.Load(), Requests: e.sent.Load(), Failures: e.failed.Load(),
			Ejected: int64(at) < e.out.Load() || e.breaker.State() == breaker.Open && !inShadow(e.breaker), Down: e.down.Load(),
			Share: e.share(at, s.slowStart), Breaker: e.breaker.Stats(),
		})
	}
	return stats
}

// Balance sends each try to an endpoint of s, and reports the outcome to the breaker of that endpoint. It judges by the
// rules of [Breaker] or [WithOutcome], except that a 503 with Retry-After is a failure: another endpoint may do the
// work, and one that refuses has little in flight and would draw all of it. Balance replaces scheme and host of the
// URL, and puts the path of the endpoint, if any, in front. The Host header stays that of the request, unless
// [WithEndpointHost] is given. [Retry] and [Hedge] go to an endpoint that had no try yet, if there is one. The error is
// [ErrNoEndpoint] if the set is empty.
//
// A try is in flight until its response body has been read to the end or closed, whatever the status. A response that
// nobody closes makes its endpoint look busier for good, and [P2C] sends it less.
//
// All requests go to the set, whatever host they name. If a response redirects to another host, or from http to https
// of the same, an [http.Client] sends that request to the set as well, with everything in its URL. If your servers
// redirect like that, give the client a CheckRedirect that returns [http.ErrUseLastResponse].
func Balance(s *Set) Layer {
	if s == nil {
		panic("outbound: Balance: nil; make a set with NewSet")
	}
	return Layer{
		place: placeBalance,
		share: func(c *composition) { c.shut = func(_ *http.Request, wait time.Duration) bool { return s.shut(wait) } },
		wrap: func(next http.RoundTripper, c *composition) http.RoundTripper {
			return &balance{set: s, next: next, limits: c.limits, counts: c.counts, shared: c.shared}
		},
	}
}

type balance struct {
	set    *Set
	next   http.RoundTripper
	limits *limits // nil for none
	counts *counts
	shared bool // connections are: see composition
}

func (b *balance) RoundTrip(req *http.Request) (*http.Response, error) {
	began := b.set.clock.now()
	e, call, err := b.set.pick(req, began, b.limits != nil)
	if err != nil {
		if !isHedge(req.Context()) { // the first try has one
			b.counts.noEndpoint.Add(1)
		}
		return refuse(req, err)
	}
	e.inflight.Add(1)
	s := sent{e: e, req: req}
	var up *upload
	returned, lost := false, breaker.Ignored // until it is sent
	defer func() {
		if !returned { // a panic, which travels on
			s.failed = true
			defer s.release() // whoever is told of a change by the call may panic, too
			up.ended(call).Done(lost, -1)
		}
	}()
	out := e.address(req, b.set.ownHost)
	if b.limits != nil {
		key := e.url.Host
		s.permit, err = b.limits.enter(req.Context(), key)
		if err != nil {
			b.counts.limited.Add(1)
			call.Done(breaker.Ignored, 0)
			returned = true
			e.inflight.Add(-1)
			return refuse(req, err)
		}
		began = b.set.clock.now() // the wait was ours
		call = call.Begin(began)
	} else if !e.breaker.Passing() { // a function of the user's may have been told of a change
		began = b.set.clock.now()
	}
	passing := e.breaker.Passing()
	if up = uploading(req, b.set.clock, call, !passing); up != nil {
		out.Body = up
	}
	probe := !passing && call != (breaker.Call{})
	if probe {
		out = e.mute.probe(out, b.shared)
	}
	e.sent.Add(1)
	lost = breaker.Failure
	resp, err := b.next.RoundTrip(out)
	now := b.set.clock.now()
	lost = breaker.Ignored // a panic is one of WithOutcome now
	o, took := b.set.judge(req, resp, err, up, now.Sub(began), e.breaker)
	if o == breaker.Failure {
		e.failed.Add(1)
	}
	if o != breaker.Success || probe {
		e.mute.note(err)
	}
	s.call, s.up = up.ended(call), up
	report(s.call, o, took, now, resp)
	returned = true
	if err != nil {
		s.failed = true
		s.release()
		return nil, err
	}
	s.good = o == breaker.Success
	s.failed = !good(resp, err)
	watch(resp, s)
	return resp, nil
}

// sent is a try at an endpoint; it is over when the response body is.
type sent struct {
	e      *endpoint
	call   breaker.Call
	req    *http.Request
	up     *upload
	permit limiter.Permit
	good   bool // to the breaker, at its header
	failed bool // to the limiter
}

func (s sent) ended(err error) {
	s.failed = s.failed || err != nil // also by the caller's deadline: what was cut off is no throughput
	defer s.release()
	if err != nil && s.good && callersEnd(s.req) == nil && !s.up.spoiled(err) {
		s.e.failed.Add(1)
		s.call.Fail()
	}
}

func (s sent) release() {
	s.e.inflight.Add(-1)
	switch {
	case errors.Is(s.req.Context().Err(), context.Canceled):
		s.permit.Release(limiter.Ignored)
	case s.failed:
		s.permit.Release(limiter.Failure)
	default:
		s.permit.Release(limiter.Success)
	}
}
