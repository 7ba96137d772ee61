package metrics

import (
	"github.com/spillgate/spillgate/middleware/health"
	"github.com/spillgate/spillgate/middleware/outbound"
	"github.com/spillgate/spillgate/pool/jobs"
)

// OfJobs are those of an engine of jobs.
var OfJobs Families

var (
	jobsHeld      = OfJobs.upDown("jobs_held", "Jobs that an engine holds, by state.", "state")
	jobsBytes     = OfJobs.upDown("jobs_bytes", "Bytes of payloads, results and details.")
	jobsSubmitted = OfJobs.counter("jobs_submitted_total", "Jobs accepted.")
	jobsEnded     = OfJobs.counter("jobs_ended_total", "Jobs that ended, by state.", "state")
	jobsRetried   = OfJobs.counter("jobs_retried_total", "Failed attempts that were to be retried.")
	jobsPanics    = OfJobs.counter("jobs_panics_total", "Attempts that panicked.")
	jobsForgotten = OfJobs.counter("jobs_forgotten_total", "Jobs forgotten because they expired or to make room.")
	jobsMeanRun   = OfJobs.gauge("jobs_mean_run_seconds", "Recent mean duration of an attempt.")
)

// Jobs sends what that says.
func (e Emit) Jobs(s jobs.Stats) {
	count(e, jobsHeld, "queued", int64(s.Queued))
	count(e, jobsHeld, "delayed", int64(s.Delayed))
	count(e, jobsHeld, "running", int64(s.Running))
	count(e, jobsHeld, "finished", int64(s.Finished))
	e.value(jobsBytes, float64(s.Bytes))
	e.value(jobsSubmitted, float64(s.Submitted))
	count(e, jobsEnded, "succeeded", s.Succeeded)
	count(e, jobsEnded, "failed", s.Failed)
	count(e, jobsEnded, "cancelled", s.Cancelled)
	e.value(jobsRetried, float64(s.Retried))
	e.value(jobsPanics, float64(s.Panics))
	e.value(jobsForgotten, float64(s.Forgotten))
	e.seconds(jobsMeanRun, s.MeanRun)
}

// OfTransport are those of a transport.
var OfTransport Families

var (
	outRequests = OfTransport.counter("outbound_requests_total", "Requests that came to Retry.")
	outRetries  = OfTransport.counter("outbound_retries_total", "Retries: sent, and denied by the budget.", "outcome")
	outHedges   = OfTransport.counter("outbound_hedges_total", "Hedges: sent, of these won or panicked, and denied by the budget.", "outcome")
	outTimeouts = OfTransport.counter("outbound_timeouts_total", "Tries without a response header in time, and bodies that stalled.")
	outRefused  = OfTransport.counter("outbound_refused_total", "Tries refused before they were sent: by a limit, by an open breaker, or because no endpoint was available.", "reason")
)

// Transport sends what that says.
func (e Emit) Transport(s outbound.Stats) {
	e.value(outRequests, float64(s.Requests))
	count(e, outRetries, "sent", s.Retries)
	count(e, outRetries, "denied", s.RetriesDenied)
	count(e, outHedges, "sent", s.Hedges)
	count(e, outHedges, "won", s.HedgesWon)
	count(e, outHedges, "panicked", s.HedgePanics)
	count(e, outHedges, "denied", s.HedgesDenied)
	e.value(outTimeouts, float64(s.Timeouts))
	count(e, outRefused, "limit", s.Limited)
	count(e, outRefused, "open", s.Open)
	count(e, outRefused, "no-endpoint", s.NoEndpoint)
}

// OfSet are those of a set of endpoints.
var OfSet Families

var (
	setPanic    = OfSet.gauge("endpoints_panic", "1 while so few endpoints are healthy that none is kept out.")
	setUp       = OfSet.gauge("endpoint_up", "1 if the endpoint gets requests: not ejected by its breaker, and not down by its check.", "url")
	setEjected  = OfSet.gauge("endpoint_ejected", "1 if the breaker of the endpoint keeps requests away.", "url")
	setDown     = OfSet.gauge("endpoint_down", "1 if the active check of the endpoint keeps requests away.", "url")
	setWeight   = OfSet.gauge("endpoint_weight", "Weight of the endpoint.", "url")
	setTier     = OfSet.gauge("endpoint_tier", "Tier of the endpoint.", "url")
	setShare    = OfSet.gauge("endpoint_share_ratio", "Fraction of its share of the requests that the endpoint gets; below 1 during its slow start.", "url")
	setInFlight = OfSet.upDown("endpoint_in_flight", "Tries under way.", "url")
	setRequests = OfSet.counter("endpoint_requests_total", "Tries sent.", "url")
	setFailures = OfSet.counter("endpoint_failures_total", "Tries that the breaker of the endpoint counted as failures.", "url")
	setOpenings = OfSet.counter("endpoint_ejections_total", "How often the breaker of the endpoint opened, including again after a probe.", "url")
)

// Set sends what that says.
func (e Emit) Set(s outbound.SetStats) {
	e.flag(setPanic, s.Panic)
	for _, p := range s.Endpoints {
		e := e.with(p.URL)
		e.flag(setUp, !p.Ejected && !p.Down)
		e.flag(setEjected, p.Ejected)
		e.flag(setDown, p.Down)
		e.value(setWeight, float64(p.Weight))
		e.value(setTier, float64(p.Tier))
		e.value(setShare, p.Share)
		e.value(setInFlight, float64(p.InFlight))
		e.value(setRequests, float64(p.Requests))
		e.value(setFailures, float64(p.Failures))
		e.value(setOpenings, float64(p.Breaker.Openings))
	}
}

// OfHealth are those of probes and checks.
var OfHealth Families

var (
	healthStarted  = OfHealth.gauge("health_started", "1 once each readiness check has passed.")
	healthReady    = OfHealth.gauge("health_ready", "1 while the process wants new requests.")
	healthLive     = OfHealth.gauge("health_live", "1 while the liveness checks pass.")
	healthDraining = OfHealth.gauge("health_draining", "1 once the process is leaving its load balancer.")
	healthCheck    = OfHealth.gauge("health_check_up", "1 if the last run of the check passed.", "probe", "check")
	healthRan      = OfHealth.gauge("health_check_last_run_timestamp_seconds", "When the check last ended or was given up; 0 before the first time.", "probe", "check")
	healthLatency  = OfHealth.gauge("health_check_duration_seconds", "How long the last run of the check that returned took.", "probe", "check")
)

// Health sends what that says.
func (e Emit) Health(s health.Stats) {
	e.flag(healthStarted, s.Started)
	e.flag(healthReady, s.Ready)
	e.flag(healthLive, s.Live)
	e.flag(healthDraining, s.Draining)
	for _, c := range s.Checks {
		probe := "ready"
		if c.Liveness {
			probe = "live"
		}
		e := e.with(probe, c.Name)
		e.flag(healthCheck, c.OK)
		ran := 0.
		if !c.Ran.IsZero() {
			ran = float64(c.Ran.UnixMilli()) / 1e3
		}
		e.value(healthRan, ran)
		e.seconds(healthLatency, c.Latency)
	}
}
