package cache

import (
	"net/http"
	"sync/atomic"
	"time"
)

// Stats is what a cache has done and what it holds.
type Stats struct {
	// How requests were answered; see [Result].
	Hits        int64 `json:"hits"`
	Stale       int64 `json:"stale"`
	Revalidated int64 `json:"revalidated"`
	Collapsed   int64 `json:"collapsed"`
	Misses      int64 `json:"misses"`
	Bypassed    int64 `json:"bypassed"`

	// Requests for which the store alone was not enough, by reason: nothing was stored under the URL, no variant matched,
	// the stored response was stale, or the client asked for a new one. They do not add up to Misses: such a request may
	// end as Collapsed, Revalidated or, if the handler failed, Stale as well. A response that is served stale while it is
	// validated in the background counts in none of them.
	MissURL     int64 `json:"miss_url"`
	MissVary    int64 `json:"miss_vary"`
	MissStale   int64 `json:"miss_stale"`
	MissRequest int64 `json:"miss_request"`

	// Responses that were stored, and responses that must not be.
	Stored  int64 `json:"stored"`
	Refused int64 `json:"refused"`

	// Background validations: begun, failed, and ended by a panic of the handler other than [http.ErrAbortHandler].
	Revalidations      int64 `json:"revalidations"`
	RevalidationErrors int64 `json:"revalidation_errors"`
	RevalidationPanics int64 `json:"revalidation_panics"`

	// What the [Store] had where memory had nothing, and how many calls of the Store failed.
	Recalled    int64 `json:"recalled,omitempty"`
	StoreErrors int64 `json:"store_errors,omitempty"`

	// What [Cache.Follow] has told other servers and heard from them; what waits to be told; calls of the [Relay] that
	// failed; and how often everything was made stale because purges of others may have been missed. RelayBehind is how
	// long ago it was last certain that no purge was missed: up to two seconds where all is well.
	PurgesSent     int64         `json:"purges_sent,omitempty"`
	PurgesReceived int64         `json:"purges_received,omitempty"`
	PurgesPending  int64         `json:"purges_pending,omitempty"`
	RelayErrors    int64         `json:"relay_errors,omitempty"`
	RelayDoubts    int64         `json:"relay_doubts,omitempty"`
	RelayBehind    time.Duration `json:"relay_behind,omitempty"`

	// What memory holds now. Bytes counts bodies, header fields, keys and overhead.
	Bytes     int64 `json:"bytes"`
	MaxBytes  int64 `json:"max_bytes"`
	Entries   int64 `json:"entries"`
	Evictions int64 `json:"evictions"`
	// Fills is how many runs of the handler are under way, and Recording how many bytes they have recorded.
	Fills     int64 `json:"fills"`
	Recording int64 `json:"recording"`
}

type counters struct {
	results                             [numResults]atomic.Int64
	missURL, missVary, missStale        atomic.Int64
	missRequest, stored, refused, fills atomic.Int64
	revalidations, revErrors, revPanics atomic.Int64
}

// Stats returns the counts so far. It is safe for concurrent use; counts that belong together may differ by the
// requests under way.
func (c *Cache) Stats() Stats {
	s := &c.stats
	var recalled, failed int64
	if b := c.backing; b != nil {
		recalled, failed = b.hits.Load(), b.errors.Load()
	}
	st := Stats{
		Recalled: recalled, StoreErrors: failed,
		Hits: s.results[Hit].Load(), Stale: s.results[Stale].Load(), Revalidated: s.results[Revalidated].Load(),
		Collapsed: s.results[Collapsed].Load(), Misses: s.results[Miss].Load(), Bypassed: s.results[Bypass].Load(),
		MissURL: s.missURL.Load(), MissVary: s.missVary.Load(), MissStale: s.missStale.Load(), MissRequest: s.missRequest.Load(),
		Stored: s.stored.Load(), Refused: s.refused.Load(),
		Revalidations: s.revalidations.Load(), RevalidationErrors: s.revErrors.Load(), RevalidationPanics: s.revPanics.Load(),
		Bytes: c.store.bytes.Load(), MaxBytes: c.store.maxBytes.Load(),
		Entries: c.store.entries.Load(), Evictions: c.store.evictions.Load(),
		Fills: s.fills.Load(), Recording: c.recorded.Load(),
	}
	if r := c.relayed; r != nil {
		st.PurgesSent, st.PurgesReceived, st.PurgesPending = r.sent.Load(), r.received.Load(), int64(r.queue.pending())
		st.RelayErrors, st.RelayDoubts, st.RelayBehind = r.errors.Load(), r.doubts.Load(), r.behind(time.Now())
	}
	return st
}

// Trace is a set of functions that are called as things happen. Any of them may be nil. They are called on the
// goroutine that serves the request, with no lock held, and by many goroutines at once.
type Trace struct {
	// Served is called once it is known how a request will be answered, before it is answered.
	Served func(r *http.Request, res Result)
	// RevalidationPanic is called when the handler panics in a background validation, where no server logs the panic. It
	// is not called for [http.ErrAbortHandler], which a server would not log either. The stale response goes on being
	// served within its window. RevalidationPanic runs on the goroutine of the validation, where a panic of its own ends
	// the program.
	RevalidationPanic func(r *http.Request, value any, stack []byte)
	// RelayFailed is called with the error of a call of the [Relay] that failed, on a goroutine of [Cache.Follow].
	RelayFailed func(err error)
}
