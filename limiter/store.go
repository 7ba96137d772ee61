package limiter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

// Store keeps token buckets outside of this process, so that several processes share them. Package redisstore, in a
// module of its own, keeps them in Redis; package limitertest has the tests that every Store must pass.
//
// An implementation must be safe for concurrent use and return when ctx ends at the latest. It must not keep the
// policies or states that it was given.
type Store interface {
	// Take decides about one event. If every policy has the tokens for it, Take takes them from each, and returns true;
	// otherwise it takes nothing, and returns false. It then writes the resulting state of each policy into states,
	// which has the length of req.Policies. After an error nothing is known: the tokens may have been taken or not.
	Take(ctx context.Context, req StoreRequest, states []PolicyState) (ok bool, err error)
}

// StoreRequest is one event for a [Store] to decide about.
type StoreRequest struct {
	// Key names the buckets, one for each policy. Any string is possible, of any length.
	Key string
	// Cost is how many tokens the event takes from each bucket. If it is 0, the event takes none, and is admitted unless
	// the key is in debt.
	Cost int
	// Force takes the tokens whether they are there or not. What is missing is a debt, which an implementation may bound
	// at one burst or more. With a Cost below 0, Force gives tokens back, at most up to the burst: [math.MinInt] resets
	// the key. Take returns true.
	Force bool
	// Policies are the current policies of the key. Limits and bursts may change from one call to the next: what is
	// spent then stays spent, in tokens. With [WithKeyLimit] those of the first policy differ from key to key.
	Policies []Policy
}

// StoreFailure says what happens to an event that a [Store] did not decide about.
type StoreFailure int

const (
	// FailLocal lets the buckets of this process decide, which know what it admitted and what the store said last. It is
	// the default.
	FailLocal StoreFailure = iota
	// FailOpen admits the event. If a deadline of the caller ended the question to the store, the event is decided as by
	// [FailLocal].
	FailOpen
	// FailClosed refuses the event with [ErrStoreFailed].
	FailClosed
)

// String returns "local", "open" or "closed".
func (f StoreFailure) String() string {
	switch f {
	case FailLocal:
		return "local"
	case FailOpen:
		return "open"
	case FailClosed:
		return "closed"
	}
	return fmt.Sprintf("StoreFailure(%d)", int(f))
}

// ErrStoreFailed says that a [Store] did not answer and that the Rate is set to refuse in that case. It is no fault
// of the key.
var ErrStoreFailed = errors.New("limiter: store failed")

const (
	storeTimeout = 50 * time.Millisecond
	storeTrip    = 5               // failures in a row until the store is left alone
	storeRest    = 2 * time.Second // how long
	storeGrace   = 10 * time.Millisecond
	storeApart   = 20 * time.Millisecond // between two failures of questions that were under way together
	storeAgain   = time.Second           // between two questions about what the local buckets refuse
)

// WithStore keeps the buckets in a store. The buckets of this process stand before it: if they refuse an event, the
// store is not asked, since it would refuse the event too. If their refusal would last longer than a second, the
// store is nevertheless asked about one event of the key each second: another process may have given tokens back, or
// reset the key. Keeping that time takes 8 more bytes in every slot of the table. After 5 failures in a row the store
// is left alone for 2 seconds, and then asked about one event. Questions that are under way at the same time and fail
// together, as after a moment in which the process had no processor, count as one failure. [WithStoreFailure] says
// what happens to events that the store does not decide about.
//
// Rates that share a store share the buckets of a key where their policies have the same names, such as "default":
// each charges the key for the other, and tokens flow in for both at the higher limit. Give limits that are not the
// same limit names of their own, with [WithName], or a store each.
//
// With [WithKeyLimit] the store uses the key's own limit: give all processes the same function. The store is not
// asked about a key that is exempt from all policies or refused by its own limit, nor told what such a key is
// charged. When a key's limit changes, what is spent stays spent in the store, in tokens. The buckets of this process
// keep the time until they are full: after a raise they may, for that long, hold the key to its new limit without the
// burst.
//
// It panics if s is nil.
func WithStore(s Store) RateOption {
	if s == nil {
		panic("limiter: WithStore: s is nil: give a Store")
	}
	return rateOption(func(c *rateConfig) { c.store = s })
}

// WithStoreTimeout sets how long a store may take for one answer; the default is 50 ms. A store that goes on after
// the end of its context has failed 10 ms later, and its answer is dropped. It panics if d is not positive.
func WithStoreTimeout(d time.Duration) RateOption {
	if d <= 0 {
		panic(fmt.Sprintf("limiter: WithStoreTimeout: %v: give a positive duration", d))
	}
	return rateOption(func(c *rateConfig) { c.storeTimeout = d })
}

// WithStoreFailure sets what happens to events that the store does not decide about; the default is [FailLocal]. It
// panics if f is none of the three.
func WithStoreFailure(f StoreFailure) RateOption {
	if f < FailLocal || f > FailClosed {
		panic(fmt.Sprintf("limiter: WithStoreFailure: %v: give FailLocal, FailOpen or FailClosed", f))
	}
	return rateOption(func(c *rateConfig) { c.storeFailure = f })
}

// storeFront asks a Store, unless it is known to fail.
type storeFront struct {
	store   Store
	prompt  bool // it never waits for anything
	timeout time.Duration
	failure StoreFailure
	breaker *gobreaker.TwoStepCircuitBreaker[struct{}]

	base time.Time
	last atomic.Int64 // when it failed last, since base

	asked    atomic.Uint64
	failed   atomic.Uint64 // asked and no answer
	skipped  atomic.Uint64 // not asked, as the store is left alone
	admitted atomic.Uint64
	rejected atomic.Uint64
	shadowed atomic.Uint64
}

// asksStore reports whether the store is to be asked about an event that the key's own local buckets refuse, and notes when.
func (q *tableTake) asksStore(a *tableAnswer, asked *int64) bool {
	if wait := a.state.RetryAfter; q.n > a.burst || wait > 0 && wait <= storeAgain {
		return false
	}
	if since := time.Duration(q.ns - *asked); *asked != 0 && -storeAgain < since && since < storeAgain {
		return false
	}
	*asked = q.ns
	return true
}

var errStoreExit = errors.New("limiter: the store ended its goroutine")

// errStoreLeft is what a caller's own end of ctx is to the breaker: no failure of the store.
var errStoreLeft = errors.New("limiter: the caller left")

// errStoreSame is the rest of a failure that has been told of.
var errStoreSame = errors.New("limiter: the same failure of the store")

func newStoreFront(c *rateConfig) *storeFront {
	_, prompt := c.store.(*MemoryStore)
	return &storeFront{
		store:   c.store,
		base:    time.Now(),
		prompt:  prompt,
		timeout: c.storeTimeout,
		failure: c.storeFailure,
		breaker: gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
			Timeout:     storeRest,
			ReadyToTrip: func(n gobreaker.Counts) bool { return n.ConsecutiveFailures >= storeTrip },
			IsExcluded:  func(err error) bool { return err == errStoreLeft || err == errStoreSame },
		}),
	}
}

var errStorePanicked = errors.New("limiter: the store panicked")

// ask returns what the store says. The breaker hears of every outcome, a panic too, so that no probe is lost. With beyond the
// question goes on where ctx ends before the store's time is up.
func (f *storeFront) ask(ctx context.Context, req StoreRequest, states []PolicyState, beyond bool) (ok bool, err error) {
	report, err := f.breaker.Allow()
	if err != nil {
		f.skipped.Add(1)
		return false, err
	}
	f.asked.Add(1)
	begun := time.Since(f.base)
	done := func(err error) {
		if err != nil && err != errStoreLeft && !f.failsAnew(begun) {
			err = errStoreSame
		}
		report(err)
	}
	if deadline, has := ctx.Deadline(); beyond && has && !f.prompt && time.Until(deadline) < f.timeout {
		return f.askBeyond(ctx, req, states, done)
	}
	outcome := errStorePanicked
	defer func() { done(outcome) }()
	limited, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	ok, err = f.take(limited, req, states)
	outcome = err
	if err != nil {
		f.failed.Add(1)
		if ctx.Err() != nil {
			outcome = errStoreLeft
		}
	}
	return ok, err
}

// failsAnew notes that a question has failed that began then, and reports whether that is news: it was asked after the last failure, or fails well after it. A
// process that is short of a processor for longer than the store may take, as in a container that has used up its quota, finds all questions late that were
// under way, and the answers there.
func (f *storeFront) failsAnew(begun time.Duration) bool {
	now := time.Since(f.base)
	for {
		last := f.last.Load()
		if int64(begun) < last && int64(now) < last+int64(storeApart) {
			return false
		}
		if f.last.CompareAndSwap(last, int64(now)) {
			return true
		}
	}
}

// askBeyond is ask for one who has less time than the store: whether that is well is known when its own is up. Where nobody had as much, a
// store that hangs took all of it from each. And the event is charged there, whatever its deadline.
func (f *storeFront) askBeyond(ctx context.Context, req StoreRequest, states []PolicyState, done func(error)) (bool, error) {
	answer := make(chan storeAnswer, 1)
	go func() {
		whole, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.timeout)
		defer cancel()
		a := storeAnswer{err: errStorePanicked}
		defer func() {
			a.panicked = recover()
			done(a.err)
			answer <- a
		}()
		a.ok, a.err = f.take(whole, req, states)
	}()
	var a storeAnswer
	select {
	case a = <-answer:
	case <-ctx.Done():
		a.err = ctx.Err()
	}
	if a.err != nil {
		f.failed.Add(1)
	}
	if a.panicked != nil {
		panic(a.panicked)
	}
	return a.ok, a.err
}

// take calls the store, and returns soon after the end of ctx whatever the store does: many a client library goes by
// timeouts of its own. After an error states may still be written to.
func (f *storeFront) take(ctx context.Context, req StoreRequest, states []PolicyState) (bool, error) {
	if f.prompt {
		return f.store.Take(ctx, req, states)
	}
	answer := make(chan storeAnswer, 1)
	go func() {
		a := storeAnswer{err: errStoreExit}
		defer func() {
			a.panicked = recover() // for the caller, or for nobody if he has left: to him it was a failure
			answer <- a
		}()
		a.ok, a.err = f.store.Take(ctx, req, states)
	}()
	var a storeAnswer
	select {
	case a = <-answer:
	case <-ctx.Done():
		grace := time.NewTimer(storeGrace)
		defer grace.Stop()
		select {
		case a = <-answer:
		case <-grace.C:
			a.err = ctx.Err()
		}
	}
	if a.panicked != nil {
		panic(a.panicked)
	}
	return a.ok, a.err
}

type storeAnswer struct {
	ok       bool
	err      error
	panicked any
}

// takeStored decides by the local buckets first and then by the store, which is asked beyond the end of ctx where that is said. The answer is as from the local buckets alone.
func (r *Rate) takeStored(ctx context.Context, q *tableTake, now time.Time, each []PolicyState, a *tableAnswer, beyond bool) {
	q.half = true
	at := now
	if r.single != nil {
		at = r.time(now)
		q.ns = r.reading(at)
	}
	local := each
	if n := len(*r.policies.Load()); len(local) < n {
		local = make([]PolicyState, n)
	}
	r.takeLocal(q, at, local, a)
	again := !a.ok
	var policies []Policy
	if !again || a.asks {
		policies = r.storePolicies(q)
	}
	if policies == nil {
		copy(each, local)
		return
	}
	// The store is free to move its arguments to the heap; the caller's array stays where it is.
	states := make([]PolicyState, len(policies))
	ok, err := r.store.ask(ctx, StoreRequest{Key: q.key, Cost: q.n, Policies: policies}, states, beyond)
	switch {
	case err != nil && again:
		copy(each, local)
		return
	case err != nil:
		copy(each, local)
		a.storeErr = err
		if r.store.failure != FailOpen || ctx.Err() == nil {
			r.storeFailed(q, now, a)
		}
		return
	}
	if !again && !ok {
		r.giveLocal(q, now, a)
	}
	r.followStore(q, now, states, again && ok)
	if ok && !again {
		// The local buckets may know of more, as of what they admitted while the store was away: they refuse what is beyond it.
		for i := range states {
			if local[i].Remaining < states[i].Remaining {
				states[i].Remaining, states[i].ResetAfter = local[i].Remaining, max(local[i].ResetAfter, states[i].ResetAfter)
			}
		}
	}
	storeChoose(policies, states, ok, a)
	copy(each, states)
}

// count counts a decision once it is one: what counts up must never count down.
func (f *storeFront) count(q *tableTake, a *tableAnswer) {
	switch {
	case a.ok:
		f.admitted.Add(1)
	case q.again:
	case q.shadow:
		f.shadowed.Add(1)
	default:
		f.rejected.Add(1)
	}
}

// storeFailed decides without the store; the local buckets have admitted the event, and charged it.
func (r *Rate) storeFailed(q *tableTake, now time.Time, a *tableAnswer) {
	switch r.store.failure {
	case FailLocal:
	case FailOpen:
		// Not charged, or an outage would drain the local buckets and they would refuse in the end.
		r.giveLocal(q, now, a)
		a.unavailable = true
	case FailClosed:
		r.giveLocal(q, now, a)
		a.ok, a.unavailable = false, true
		a.state.RetryAfter = storeRest
	}
}

// storeChoose makes the states that a store returned an answer: the policy that refused, and takes longest, or the
// one with the fewest tokens left.
func storeChoose(policies []Policy, states []PolicyState, ok bool, a *tableAnswer) {
	a.ok, a.policy = ok, -1
	for i := range states {
		s := &states[i]
		s.Limit, s.Burst = policies[i].Limit, policies[i].Burst
		s.Refused = s.Refused && !ok
		switch {
		case a.policy < 0:
		case s.Refused != states[a.policy].Refused:
			if !s.Refused {
				continue
			}
		case s.Refused:
			old := states[a.policy].RetryAfter
			if old == 0 || s.RetryAfter != 0 && s.RetryAfter <= old {
				continue
			}
		case s.Remaining >= states[a.policy].Remaining:
			continue
		}
		a.policy = i
	}
	a.state = states[a.policy]
	a.burst = policies[a.policy].Burst
	if policyInfinite(policies[a.policy].Limit) {
		a.burst = policyUnbounded
	}
}

// giveLocal gives back what the local buckets were charged for a.
func (r *Rate) giveLocal(q *tableTake, now time.Time, a *tableAnswer) {
	back := *q
	back.n = -q.n
	switch {
	case r.single != nil:
		r.single.adjust(back.n, r.time(now))
	case a.shared:
		r.table.budget.giveBack(q, a.mark)
	default:
		r.table.adjust(&back)
	}
}

// followStore makes the local buckets as empty as those of the store, and with down as full too.
func (r *Rate) followStore(q *tableTake, now time.Time, states []PolicyState, down bool) {
	if r.single != nil {
		r.single.follow(states, r.time(now), down)
		return
	}
	r.table.follow(q, states, down)
}

// storePolicies returns what a store goes by for a key; nil where the key's own limit leaves it nothing to say.
func (r *Rate) storePolicies(q *tableTake) []Policy {
	policies := *r.policies.Load()
	if !q.own {
		return policies
	}
	own := policyRule{}.forKey(q.limit, q.burst)
	limited := !own.infinite
	for _, p := range policies[1:] {
		limited = limited || !policyInfinite(p.Limit)
	}
	if !limited || !own.infinite && own.burst == 0 {
		return nil
	}
	policies = slices.Clone(policies)
	policies[0].Limit, policies[0].Burst = own.limit, max(own.burst, 0)
	return policies
}

// forceStored charges the store, or gives back to it, whatever it holds.
func (r *Rate) forceStored(key string, n int, policies []Policy) {
	if policies == nil {
		return
	}
	if r.single != nil {
		key = "" // as in every question
	}
	states := make([]PolicyState, len(policies))
	_, err := r.store.ask(context.Background(), StoreRequest{Key: key, Cost: n, Force: true, Policies: policies}, states, false)
	if err != nil && r.trace.StoreFailed != nil {
		r.trace.StoreFailed(err)
	}
}
