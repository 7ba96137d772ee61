package prommw

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillgate/spillgate/middleware/health"
	"github.com/spillgate/spillgate/middleware/outbound"
	"github.com/spillgate/spillgate/pool/jobs"
)

var ofJobs families

var (
	jobsHeld      = ofJobs.gauge("jobs", "Jobs that an engine holds, by what they are.", "state")
	jobsBytes     = ofJobs.gauge("jobs_bytes", "Bytes of payloads, results and details.")
	jobsSubmitted = ofJobs.counter("jobs_submitted_total", "Jobs accepted.")
	jobsEnded     = ofJobs.counter("jobs_ended_total", "Jobs that ended, by state.", "state")
	jobsRetried   = ofJobs.counter("jobs_retried_total", "Attempts that failed and were to be repeated.")
	jobsPanics    = ofJobs.counter("jobs_panics_total", "Attempts that panicked.")
	jobsForgotten = ofJobs.counter("jobs_forgotten_total", "Jobs that expired, or were gone to make room.")
	jobsMeanRun   = ofJobs.gauge("jobs_mean_run_seconds", "How long an attempt took lately.")
)

// Jobs returns a collector of what [jobs.Local.Stats] says. It panics if l is nil.
func Jobs(l *jobs.Local) prometheus.Collector {
	if l == nil {
		panic("prommw: Jobs: l is nil: give one that jobs.NewLocal has made")
	}
	return &collector{ofJobs, func(e emit) { e.jobs(l.Stats()) }}
}

func (e emit) jobs(s jobs.Stats) {
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

var ofTransport families

var (
	outRequests = ofTransport.counter("outbound_requests_total", "Requests that came to Retry.")
	outRetries  = ofTransport.counter("outbound_retries_total", "Tries that were retries, and those that the budget denied.", "outcome")
	outHedges   = ofTransport.counter("outbound_hedges_total", "Hedges that were sent, and of these won or panicked, and those that the budget denied.", "outcome")
	outTimeouts = ofTransport.counter("outbound_timeouts_total", "Tries without a response header in time, and bodies that stalled.")
	outRefused  = ofTransport.counter("outbound_refused_total", "Tries refused here: by a limit, by an open breaker, or for want of an endpoint.", "reason")
)

// Transport returns a collector of what [outbound.Transport.Stats] says. It panics if t is nil.
func Transport(t *outbound.Transport) prometheus.Collector {
	if t == nil {
		panic("prommw: Transport: t is nil: give one that outbound.New has made")
	}
	return &collector{ofTransport, func(e emit) { e.transport(t.Stats()) }}
}

func (e emit) transport(s outbound.Stats) {
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

var ofSet families

var (
	setPanic    = ofSet.gauge("endpoints_panic", "1 while so few endpoints are in service that none is kept out.")
	setUp       = ofSet.gauge("endpoint_up", "1 if the endpoint gets requests: not ejected by its breaker, and not down by its check.", "url")
	setEjected  = ofSet.gauge("endpoint_ejected", "1 if its breaker keeps requests away.", "url")
	setDown     = ofSet.gauge("endpoint_down", "1 if its active check keeps requests away.", "url")
	setWeight   = ofSet.gauge("endpoint_weight", "Its weight.", "url")
	setTier     = ofSet.gauge("endpoint_tier", "Its tier.", "url")
	setShare    = ofSet.gauge("endpoint_share_ratio", "Part of its work that it gets, below 1 on its slow start.", "url")
	setInFlight = ofSet.gauge("endpoint_in_flight", "Tries under way.", "url")
	setRequests = ofSet.counter("endpoint_requests_total", "Tries sent.", "url")
	setFailures = ofSet.counter("endpoint_failures_total", "Tries that its breaker took for failures.", "url")
	setOpenings = ofSet.counter("endpoint_ejections_total", "How often its breaker opened.", "url")
)

// Set returns a collector of what [outbound.Set.Stats] says. It panics if s is nil.
func Set(s *outbound.Set) prometheus.Collector {
	if s == nil {
		panic("prommw: Set: s is nil: give one that outbound.NewSet has made")
	}
	return &collector{ofSet, func(e emit) { e.set(s.Stats()) }}
}

func (e emit) set(s outbound.SetStats) {
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

var ofHealth families

var (
	healthStarted  = ofHealth.gauge("health_started", "1 once each readiness check has passed.")
	healthReady    = ofHealth.gauge("health_ready", "1 while the process wants new requests.")
	healthLive     = ofHealth.gauge("health_live", "1 while the liveness checks pass.")
	healthDraining = ofHealth.gauge("health_draining", "1 once the process leaves its load balancer.")
	healthCheck    = ofHealth.gauge("health_check_up", "1 if a check passed when it ran last.", "probe", "check")
	healthRan      = ofHealth.gauge("health_check_last_run_timestamp_seconds", "When a check ended or was given up last; 0 before the first time.", "probe", "check")
	healthLatency  = ofHealth.gauge("health_check_duration_seconds", "How long a check took that returned last.", "probe", "check")
)

// Health returns a collector of what [health.Health.Stats] says, without the texts of errors. It panics if h is nil.
func Health(h *health.Health) prometheus.Collector {
	if h == nil {
		panic("prommw: Health: h is nil: give one that health.New has made")
	}
	return &collector{ofHealth, func(e emit) { e.health(h.Stats()) }}
}

func (e emit) health(s health.Stats) {
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
