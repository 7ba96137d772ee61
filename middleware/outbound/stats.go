package outbound

import "sync/atomic"

// Stats counts what the layers of a [Transport] did since it was made. A count
// stays 0 if its layer was not given.
type Stats struct {
	// Requests is how many requests came to Retry. Retries / Requests is what retrying adds to the load of the hosts.
	Requests uint64 `json:"requests"`
	// Retries is how many retries were sent. Each is counted when its header has come or it has failed; one that no layer
	// beneath let pass is not counted.
	Retries uint64 `json:"retries"`
	// RetriesDenied is how many retries would have been made if the budget of their host had allowed it.
	RetriesDenied uint64 `json:"retries_denied"`
	// Hedges is how many hedges were sent. Each is counted when it is over; one that no layer beneath let pass is not
	// counted.
	Hedges uint64 `json:"hedges"`
	// HedgesWon is how many hedges answered first.
	HedgesWon uint64 `json:"hedges_won"`
	// HedgesDenied is how many hedges would have been made if the budget had allowed it.
	HedgesDenied uint64 `json:"hedges_denied"`
	// HedgePanics is how many hedges panicked after they had lost, with no caller left for the panic to travel on to.
	HedgePanics uint64 `json:"hedge_panics"`
	// Timeouts is how many tries got no response header in time, plus how many bodies stalled.
	Timeouts uint64 `json:"timeouts"`
	// Limited is how many tries Limit refused.
	Limited uint64 `json:"limited"`
	// Open is how many tries Breaker refused, without the hedges that it held back.
	Open uint64 `json:"open"`
	// NoEndpoint is for how many tries Balance had no endpoint, hedges not included.
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
