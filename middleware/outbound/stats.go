package outbound

import "sync/atomic"

// Stats counts what the layers of a [Transport] did since it was made. A count
// stays 0 if its layer was not given.
type Stats struct {
	// Requests that came to Retry. Retries / Requests is what retrying adds to
	// the load of the hosts.
	Requests uint64 `json:"requests"`
	// Retries that were sent, each counted when its header has come or it has failed: one that no
	// layer beneath let pass is none.
	Retries uint64 `json:"retries"`
	// RetriesDenied would have been made if the budget of their host had
	// allowed it.
	RetriesDenied uint64 `json:"retries_denied"`
	// Hedges that were sent, each counted when it is over: one that no layer beneath
	// let pass is none.
	Hedges uint64 `json:"hedges"`
	// HedgesWon are the hedges that answered first.
	HedgesWon uint64 `json:"hedges_won"`
	// HedgesDenied would have been made if the budget had allowed it.
	HedgesDenied uint64 `json:"hedges_denied"`
	// HedgePanics are panics in hedges that had lost: there was no caller left for
	// them to travel on to.
	HedgePanics uint64 `json:"hedge_panics"`
	// Timeouts are tries that got no response header in time, and bodies that stalled.
	Timeouts uint64 `json:"timeouts"`
	// Limited are the tries that Limit refused.
	Limited uint64 `json:"limited"`
	// Open are the tries that Breaker refused; hedges that it held back are not among them.
	Open uint64 `json:"open"`
	// NoEndpoint are the tries for which Balance had none; hedges are not among them.
	NoEndpoint uint64 `json:"no_endpoint"`
}

type counts struct {
	requests, retries, retriesDenied    atomic.Uint64
	hedges, hedgesWon, hedgesDenied     atomic.Uint64
	hedgePanics                         atomic.Uint64
	timeouts, limited, open, noEndpoint atomic.Uint64
}

// Stats returns the counts so far.
func (t *Transport) Stats() Stats {
	c := &t.counts
	return Stats{
		Requests:      c.requests.Load(),
		Retries:       c.retries.Load(),
		RetriesDenied: c.retriesDenied.Load(),
		Hedges:        c.hedges.Load(),
		HedgesWon:     c.hedgesWon.Load(),
		HedgesDenied:  c.hedgesDenied.Load(),
		HedgePanics:   c.hedgePanics.Load(),
		Timeouts:      c.timeouts.Load(),
		Limited:       c.limited.Load(),
		Open:          c.open.Load(),
		NoEndpoint:    c.noEndpoint.Load(),
	}
}
