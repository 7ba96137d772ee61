package limiter

import "time"

// RateStats is what a [Rate] has counted since it was made.
type RateStats struct {
	// Admitted, Rejected and Shadowed count decisions; Shadowed are those that only [WithRateShadow] admitted. A call of
	// Wait is at most one decision, however often it asks a store.
	Admitted uint64 `json:"admitted"`
	Rejected uint64 `json:"rejected"`
	Shadowed uint64 `json:"shadowed"`
	// Waiting is how many calls of Wait are waiting now.
	Waiting int `json:"waiting"`
	// LiveKeys is how many keys have a bucket that is not full, out of at most Capacity; Saturation is their ratio. All
	// are 0 without keys.
	LiveKeys   int     `json:"live_keys"`
	Capacity   int     `json:"capacity"`
	Saturation float64 `json:"saturation"`
	// EvictedLive is how often a new key displaced a bucket that was not full, so that its key starts anew.
	// SharedNewKeys is how often [WithNewKeyBudget] admitted a new key instead. Either says that WithMaxKeys is too low
	// for the traffic.
	EvictedLive   uint64 `json:"evicted_live"`
	SharedNewKeys uint64 `json:"shared_new_keys"`
	// StoreAsked counts the questions to a store, StoreFailed those without an answer, and StoreSkipped the events for
	// which the store was not asked because it had failed before.
	StoreAsked   uint64 `json:"store_asked"`
	StoreFailed  uint64 `json:"store_failed"`
	StoreSkipped uint64 `json:"store_skipped"`
	// Policies are the current policies.
	Policies []Policy `json:"policies"`
	// Offenders are the keys refused most of late, the most refused first, if [WithOffenders] is set.
	Offenders []RateOffender `json:"offenders,omitempty"`
}

// RateTrace is a set of functions to be called when something happens in a [Rate]. Each may be nil. They are called
// on the goroutine that made the call, with no lock held, and must be safe for concurrent use.
type RateTrace struct {
	// Rejected is called for every refusal, and for events that only [WithRateShadow] admits, which have d.Shadow set.
	Rejected func(key string, d Decision)
	// Evicted is called when a new key displaced a bucket that was not full.
	Evicted func()
	// Saturated is called when there was no slot for a new key, and [WithNewKeyBudget] decided.
	Saturated func(d Decision)
	// StoreFailed is called when [WithStoreFailure] decided because the store did not.
	StoreFailed func(err error)
}

// Stats returns the counts. To count live keys it goes over the whole table, which takes a millisecond if 65,536 are
// live and some tens of milliseconds for a million (go test -run '^$' -bench RateStats ./limiter); a decision waits
// for at most a 64th of that.
func (r *Rate) Stats() RateStats {
	s := RateStats{Waiting: int(r.waiting.Load()), Policies: r.Policies()}
	if r.offenders != nil {
		s.Offenders = r.offenders.top(r.reading(time.Time{}))
	}
	if r.single != nil {
		r.single.stats(&s)
	} else {
		r.table.stats(&s, r.reading(time.Time{}))
	}
	if f := r.store; f != nil {
		s.StoreAsked, s.StoreFailed, s.StoreSkipped = f.asked.Load(), f.failed.Load(), f.skipped.Load()
		s.Admitted, s.Rejected, s.Shadowed = f.admitted.Load(), f.rejected.Load(), f.shadowed.Load()
	}
	return s
}

func (r *Rate) traceDecision(q *tableTake, a *tableAnswer, d *Decision) {
	refused := !a.ok && !q.again
	if r.offenders != nil && refused {
		r.offenders.refused(q.key, q.ns)
	}
	if r.trace.Rejected != nil && refused {
		r.trace.Rejected(q.key, *d)
	}
	if r.trace.Evicted != nil && a.evicted {
		r.trace.Evicted()
	}
	if r.trace.Saturated != nil && a.shared {
		r.trace.Saturated(*d)
	}
	if r.trace.StoreFailed != nil && a.storeErr != nil {
		r.trace.StoreFailed(a.storeErr)
	}
}
