package limiter

import (
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Rate admits events as long as their key is within its quota. Each key has a token bucket for each policy: every
// event takes a token from it, and limit tokens a second flow in until it is full. A key never seen before has full
// buckets.
//
// Over any time t a key is admitted at most burst + limit*t tokens, to the nanosecond; decisions are those of a
// [rate.Limiter] for each key. Keys cost 16 bytes each in a table of fixed size without pointers (see [WithMaxKeys]),
// and nothing runs in the background.
//
// Make a Rate with [NewRate]; the zero value does not work. A Rate is safe for concurrent use.
type Rate struct {
	origin  time.Time // of all readings
	table   *table
	single  *rateSingle // instead of table, without keys
	store   *storeFront // behind either; nil for none
	maxWait time.Duration
	keyRule func(key string) (rate.Limit, int)
	trace   RateTrace
	shadow  atomic.Bool
	waiting atomic.Int64

	offenders *rateOffenders // nil unless asked for

	setMu    sync.Mutex // held by SetLimit and SetPolicy only
	policies atomic.Pointer[[]Policy]
}

// Decision is the answer of a [Rate]. Its numbers are those of one policy: the one that refused (if several did, the
// one with the longest wait), or else the one with the fewest tokens left.
type Decision struct {
	// OK reports whether the event may happen. If OK is true and both Shadow and Unavailable are false, the tokens have
	// been taken.
	OK bool
	// Shadow is set if only [WithRateShadow] kept the event from being refused. Then OK and RetryAfter are set too, and
	// nothing was taken.
	Shadow bool
	// Policy is the name of the policy that the numbers are from.
	Policy string
	// Limit is the burst of the policy: the most that Remaining can be. It is [math.MaxInt] if the policy's limit is
	// infinite.
	Limit int
	// Remaining is how many tokens are left in the bucket, rounded down.
	Remaining int
	// RetryAfter is how long to wait before the same event can be admitted, rounded up to the nanosecond. It is 0 if the
	// event was admitted, or if no wait helps: the cost is above the burst, or the limit is 0.
	RetryAfter time.Duration
	// ResetAfter is the time until the bucket is full if nothing else is taken.
	ResetAfter time.Duration
	// Unavailable is set if the store did not answer, and [FailClosed] refuses, which is no fault of the key, or
	// [FailOpen] admits. Nothing was taken here.
	Unavailable bool
}

// Err returns nil if the event may happen, and otherwise an [*Error] that is [ErrRateLimited], or [ErrStoreFailed] if
// Unavailable is set.
func (d Decision) Err() error {
	switch {
	case d.OK:
		return nil
	case d.Unavailable:
		return &Error{Err: ErrStoreFailed, RetryAfter: d.RetryAfter}
	}
	return &Error{Err: ErrRateLimited, RetryAfter: d.RetryAfter, Policy: d.Policy}
}

// NewRate returns a Rate that admits limit events a second, and burst at once, for every key.
//
// The limit may be 0 (a key gets its burst once and never more) or [rate.Inf] (everything is admitted); [rate.Every]
// makes one from an interval. NewRate panics if limit is negative or NaN, if burst is negative, or 0 under a finite
// limit, and if an option is wrong.
//
//	limiter.NewRate(100, 200)                                // 100 a second, 200 at once
//	limiter.NewRate(rate.Every(12*time.Second), 5)           // 5 a minute
//	limiter.NewRate(10, 20, limiter.WithPolicy("daily", 10_000.0/86_400, 10_000))
func NewRate(limit rate.Limit, burst int, opts ...RateOption) *Rate {
	cfg := rateConfig{
		policies: []Policy{{Name: "default", Limit: policyLimit(limit), Burst: burst}},
		maxKeys:  65_536,
		maxWait:  time.Minute,

		storeTimeout: storeTimeout,
	}
	if fault := policyCheck(limit, burst); fault != "" {
		panic("limiter: NewRate: " + fault)
	}
	for i, o := range opts {
		if o == nil {
			panic(fmt.Sprintf("limiter: NewRate: option %d is nil; leave it out", i))
		}
		o.applyRate(&cfg)
	}
	cfg.check()
	r := &Rate{origin: time.Now(), maxWait: cfg.maxWait, keyRule: cfg.keyRule, trace: cfg.trace}
	if cfg.offenders > 0 {
		r.offenders = newRateOffenders(cfg.offenders)
	}
	if cfg.store != nil {
		r.store = newStoreFront(&cfg)
	}
	r.shadow.Store(cfg.shadow)
	r.policies.Store(&cfg.policies)
	if cfg.unkeyed {
		r.single = newRateSingle(cfg.policies, cfg.maxWait)
		return r
	}
	var budget *tableBudget
	if cfg.budget != nil {
		budget = &tableBudget{clock: tableClock{newest: math.MinInt64}, rule: newPolicyRule(cfg.budget.Limit, cfg.budget.Burst, cfg.maxWait, false)}
	}
	r.table = newTable(cfg.maxKeys, cfg.exact, cfg.store != nil, r.newRules(cfg.policies), budget)
	return r
}

func (r *Rate) newRules(policies []Policy) *tableRules {
	rules := &tableRules{}
	for i, p := range policies {
		rules.policies = append(rules.policies, newPolicyRule(p.Limit, p.Burst, r.maxWait, i == 0 && r.keyRule != nil))
	}
	return rules
}

// Allow takes one token from each of the key's buckets, if every policy has one. The empty key is a key like any
// other. Allow does not allocate.
func (r *Rate) Allow(key string) Decision { return r.AllowAt(time.Time{}, key, 1) }

// AllowN takes n tokens from each of the key's buckets, or none: nothing is taken unless every policy admits the
// event. An n above the burst is never admitted. An n below 1 takes nothing, and is admitted unless the key is in
// debt.
func (r *Rate) AllowN(key string, n int) Decision { return r.AllowAt(time.Time{}, key, n) }

// AllowAt is AllowN at a time that the caller has read already. If the time is zero, AllowAt reads the clock.
//
// A time with a monotonic reading (from [time.Now]) never steps. Other times may. A step back, also one to a time
// that has a monotonic reading, admits no more than is due; from the second event on it costs a key at most the time
// in which its bucket fills, or [WithMaxWait] if that is more, plus 2 seconds. A step ahead fills the bucket.
func (r *Rate) AllowAt(now time.Time, key string, n int) Decision {
	return r.AllowEach(now, key, n, nil)
}

// AllowEach is AllowAt that also fills each, from its first element on, with the state of every policy in the order
// of [Rate.Policies], as far as each has room.
//
// The other forms of Allow call it. With a [WithStore] it may take up to [WithStoreTimeout]; [Rate.AllowContext] ends
// at a deadline, too.
func (r *Rate) AllowEach(now time.Time, key string, n int, each []PolicyState) (d Decision) {
	if r.store != nil {
		return r.AllowContext(context.Background(), now, key, n, each)
	}
	q := r.question(now, key, n)
	var a tableAnswer
	r.takeLocal(&q, now, each, &a)
	r.decide(&q, &a, &d)
	return d
}

// CallsOut reports whether a decision may run somebody else's code, which may take any time: a [Store], the function
// of [WithKeyLimit], or a hook of [WithRateTrace].
func (r *Rate) CallsOut() bool {
	t := &r.trace
	return r.store != nil || r.keyRule != nil || t.Rejected != nil || t.Evicted != nil || t.Saturated != nil || t.StoreFailed != nil
}

// AllowContext is AllowEach for a Rate that may have a store. The store gets the values of ctx and its deadline.
//
// Cancellation of ctx does not end the question to the store: the context of a client that has hung up is canceled,
// and clients could hang up in order not to be counted. If the deadline of ctx comes first, the event is decided
// without the store, which is told of it all the same. Where clients choose deadlines, as those of gRPC do, pass
// [context.WithoutCancel] of their context: otherwise they get at each server what its own buckets hold. Without a
// store ctx does not matter.
func (r *Rate) AllowContext(ctx context.Context, now time.Time, key string, n int, each []PolicyState) Decision {
	if r.store == nil {
		return r.AllowEach(now, key, n, each)
	}
	if ctx.Done() != nil {
		deadline, has := ctx.Deadline()
		ctx = context.WithoutCancel(ctx)
		if has {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadline(ctx, deadline)
			defer cancel()
		}
	}
	q := r.question(now, key, n)
	var a tableAnswer
	r.takeStored(ctx, &q, now, each, &a, true)
	r.store.count(&q, &a)
	var d Decision
	r.decide(&q, &a, &d)
	return d
}

// Peek returns the decision that AllowN would return, and takes nothing. The event is not counted, and no store is
// asked.
func (r *Rate) Peek(key string, n int) Decision {
	q := r.question(time.Time{}, key, n)
	q.peek = true
	var a tableAnswer
	r.takeLocal(&q, time.Time{}, nil, &a)
	var d Decision
	r.decide(&q, &a, &d)
	return d
}

// Refund gives back n tokens to each of the key's buckets, which never hold more than their bursts. It is for an
// event that turned out not to count, such as a request that a cache answered. An n below 1 does nothing.
func (r *Rate) Refund(key string, n int) {
	if n > 0 {
		r.adjust(key, -n)
	}
}

// Charge takes n tokens from each of the key's buckets whether they are there or not. It is for a cost that is known
// only when the work is done. What is missing is a debt, which has to flow in before the key is admitted again. A
// debt is at most one burst, or what flows in during [WithMaxWait] if that is more. An n below 1 does nothing.
func (r *Rate) Charge(key string, n int) {
	if n > 0 {
		r.adjust(key, n)
	}
}

// Reset makes the key's buckets full.
func (r *Rate) Reset(key string) {
	if r.store != nil {
		r.forceStored(key, math.MinInt, *r.policies.Load())
	}
	if r.single != nil {
		r.single.reset()
		return
	}
	r.table.reset(key)
}

// SetLimit changes the limit and the burst of the first policy, for events from now on. What is spent stays spent, in
// tokens: a key that has used 7 of 10 has 13 left of 20, and is 2 in debt of 5. SetLimit goes over the whole table
// once. It returns an error, and changes nothing, if limit is negative or NaN, or if burst is negative, or 0 under a
// finite limit.
func (r *Rate) SetLimit(limit rate.Limit, burst int) error {
	return r.setPolicy(0, "SetLimit", limit, burst)
}

// SetPolicy is [Rate.SetLimit] for the policy of that name. It returns an error if there is none.
func (r *Rate) SetPolicy(name string, limit rate.Limit, burst int) error {
	for i, p := range *r.policies.Load() {
		if p.Name == name {
			return r.setPolicy(i, "SetPolicy", limit, burst)
		}
	}
	return fmt.Errorf("limiter: SetPolicy: there is no policy %q; WithPolicy adds one at construction", name)
}

func (r *Rate) setPolicy(i int, fn string, limit rate.Limit, burst int) error {
	if fault := policyCheck(limit, burst); fault != "" {
		return fmt.Errorf("limiter: %s(%v, %d): %s", fn, limit, burst, fault)
	}
	r.setMu.Lock()
	defer r.setMu.Unlock()
	policies := append([]Policy(nil), *r.policies.Load()...)
	policies[i].Limit, policies[i].Burst = policyLimit(limit), burst
	if r.single != nil {
		r.single.setPolicy(i, policies[i].Limit, burst, time.Now())
	} else {
		rules, before := r.newRules(policies), r.table.present()
		for j := range rules.policies {
			rules.policies[j] = rules.policies[j].after(&before.policies[j])
		}
		r.table.setRules(rules, r.origin)
	}
	r.policies.Store(&policies)
	return nil
}

// SetShadow switches [WithRateShadow] on or off for events from now on.
func (r *Rate) SetShadow(on bool) { r.shadow.Store(on) }

// Policies returns the current policies, the one of NewRate first.
func (r *Rate) Policies() []Policy { return r.AppendPolicies(nil) }

// AppendPolicies appends the current policies to dst and returns it, without allocating if dst has room for them; a
// Rate has at most 8.
func (r *Rate) AppendPolicies(dst []Policy) []Policy { return append(dst, *r.policies.Load()...) }

// question prepares one. No lock is held while the caller's function runs.
func (r *Rate) question(now time.Time, key string, n int) tableTake {
	q := tableTake{n: max(n, 0), shadow: r.shadow.Load()}
	if r.single != nil {
		return q
	}
	q.key, q.ns, q.wall = key, r.reading(now), rateWall(now)
	if r.keyRule != nil {
		q.own = true
		q.limit, q.burst = r.keyRule(key)
	}
	return q
}

// time returns now, read from the clock if it is zero.
func (r *Rate) time(now time.Time) time.Time {
	if now.IsZero() {
		return time.Now()
	}
	return now
}

// rateWall reports whether a time is from a clock that may step: one without a monotonic reading, which Round takes off.
func rateWall(now time.Time) bool { return !now.IsZero() && now == now.Round(0) }

// reading returns the time since the origin in nanoseconds.
func (r *Rate) reading(now time.Time) int64 {
	if now.IsZero() {
		return int64(time.Since(r.origin))
	}
	return int64(now.Sub(r.origin))
}

func (r *Rate) takeLocal(q *tableTake, now time.Time, each []PolicyState, a *tableAnswer) {
	if r.single != nil {
		r.single.take(q, now, each, nil, a)
		return
	}
	r.table.take(q, each, nil, a)
}

func (r *Rate) adjust(key string, n int) {
	q := r.question(time.Time{}, key, 0)
	q.n = n
	evicted := false
	if r.single != nil {
		r.single.adjust(n, time.Now())
	} else {
		evicted = r.table.adjust(&q)
	}
	if r.store != nil {
		r.forceStored(key, n, r.storePolicies(&q))
	}
	if evicted && r.trace.Evicted != nil {
		r.trace.Evicted()
	}
}

// decide puts an answer into the caller's terms and tells the trace.
func (r *Rate) decide(q *tableTake, a *tableAnswer, d *Decision) {
	r.answer(q, a, d)
	if !q.peek {
		r.traceDecision(q, a, d)
	}
}

// answer puts an answer into the caller's terms.
func (r *Rate) answer(q *tableTake, a *tableAnswer, d *Decision) {
	d.OK, d.Unavailable = a.ok, a.unavailable
	d.Policy = (*r.policies.Load())[a.policy].Name
	d.Limit, d.Remaining = a.burst, a.state.Remaining
	d.RetryAfter, d.ResetAfter = a.state.RetryAfter, a.state.ResetAfter
	if !a.ok && q.shadow {
		d.OK, d.Shadow = true, true
	}
}
