package metrics

import (
	"math"
	"strconv"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
)

// A layer is told by the pattern of its For, and by which it is of the layers of its kind with this pattern. What stands in several has
// the patterns of all, or none if one of them is for every request.
const (
	labelFor = "for"
	labelNth = "nth"
)

// OfStack are those of a stack.
var OfStack Families

var (
	stackInFlight = OfStack.upDown("active_requests", "Requests inside the stack.")
	stackRejected = OfStack.counter("requests_rejected_total", "Requests refused, by layer.", "layer")

	rateDecisions = OfStack.counter("rate_requests_total", "Decisions of a rate limit: acquired, rejected, or shadowed (let pass only by shadow mode).", labelFor, labelNth, "result")
	rateWaiting   = OfStack.upDown("rate_queued_requests", "Calls waiting for tokens.", labelFor, labelNth)
	rateKeys      = OfStack.upDown("rate_keys", "Keys whose buckets are not full.", labelFor, labelNth)
	rateCapacity  = OfStack.gauge("rate_keys_capacity", "How many keys there is room for.", labelFor, labelNth)
	rateEvicted   = OfStack.counter("rate_keys_evicted_total", "Buckets that were not full and were evicted to make room for a new key.", labelFor, labelNth)
	rateShared    = OfStack.counter("rate_keys_shared_total", "New keys that shared a budget because there was no room.", labelFor, labelNth)
	rateStore     = OfStack.counter("rate_store_questions_total", "Events for a store: asked about, of these failed, or skipped because the store had failed before.", labelFor, labelNth, "outcome")
	rateLimit     = OfStack.gauge("rate_limit", "Tokens a second, by policy.", labelFor, labelNth, "policy")
	rateBurst     = OfStack.gauge("rate_burst", "Tokens at once, by policy.", labelFor, labelNth, "policy")

	concLimit      = OfStack.gauge("concurrency_limit", "The limit: permits in all.", labelFor, labelNth)
	concInFlight   = OfStack.upDown("concurrency_active_requests", "Permits taken.", labelFor, labelNth)
	concQueued     = OfStack.upDown("concurrency_queued_requests", "Requests waiting for a permit.", labelFor, labelNth)
	concQueueLimit = OfStack.gauge("concurrency_queue_limit", "Places in the queue.", labelFor, labelNth)
	concQueueWait  = OfStack.gauge("concurrency_queue_wait_limit_seconds", "Longest wait that the queue allows.", labelFor, labelNth)
	concNewest     = OfStack.gauge("concurrency_newest_first", "1 while the queue is last in, first out.", labelFor, labelNth)
	concShadow     = OfStack.gauge("concurrency_shadow", "1 in shadow mode, which refuses nothing and only counts.", labelFor, labelNth)
	concAdmitted   = OfStack.counter("concurrency_admitted_total", "Permits granted.", labelFor, labelNth)
	concWaited     = OfStack.counter("concurrency_waited_total", "Permits granted after a wait.", labelFor, labelNth)
	concWaitTime   = OfStack.counter("concurrency_time_in_queue_seconds_total", "Total time that requests which were granted a permit waited for it.", labelFor, labelNth)
	concReleased   = OfStack.counter("concurrency_released_total", "Permits returned, by outcome.", labelFor, labelNth, "outcome")
	concShed       = OfStack.counter("concurrency_shed_total", "Requests refused: queue full, evicted from the queue, expired in it, or sure to miss their deadline.", labelFor, labelNth, "reason")
	concLeft       = OfStack.counter("concurrency_left_total", "Requests whose client left while waiting in the queue.", labelFor, labelNth)
	concRetryAfter = OfStack.gauge("concurrency_retry_after_seconds", "The Retry-After that a refusal would carry now.", labelFor, labelNth)
	concAdaptive   = OfStack.gauge("concurrency_adaptive", "1 if the limit is adaptive; only then are there metrics with concurrency_adaptive_ in their names.", labelFor, labelNth)
	concSettling   = OfStack.gauge("concurrency_adaptive_settling", "1 while the service settles after the limit has moved.", labelFor, labelNth)
	concGate       = OfStack.gauge("concurrency_adaptive_gate", "How many requests may be between permit and work; 0 means any number.", labelFor, labelNth)
	concBase       = OfStack.gauge("concurrency_adaptive_base_latency_seconds", "Estimated time in service without a queue.", labelFor, labelNth)
	concLatency    = OfStack.gauge("concurrency_adaptive_latency_seconds", "Recent mean time in service.", labelFor, labelNth)
	concThroughput = OfStack.gauge("concurrency_adaptive_throughput", "Recent successes a second.", labelFor, labelNth)
	concElasticity = OfStack.gauge("concurrency_adaptive_elasticity", "Estimated elasticity of throughput to the limit.", labelFor, labelNth)
	concShedRatio  = OfStack.gauge("concurrency_adaptive_shed_ratio", "Fraction of recent arrivals that was refused.", labelFor, labelNth)

	breakerKeys      = OfStack.upDown("breaker_keys", "Keys with a breaker.", labelFor, labelNth)
	breakerLimit     = OfStack.gauge("breaker_keys_limit", "How many keys there is room for.", labelFor, labelNth)
	breakerNotClosed = OfStack.upDown("breaker_keys_open", "Keys whose breaker is open, half-open or forced open.", labelFor, labelNth)
	breakerGone      = OfStack.counter("breaker_keys_gone_total", "Breakers forgotten: to make room, because they were idle, or long after they had opened.", labelFor, labelNth, "reason")
	breakerUntracked = OfStack.counter("breaker_untracked_total", "Requests whose key found no room.", labelFor, labelNth)
	breakerOpen      = OfStack.gauge("breaker_open", "1 if the breaker is open, half-open or forced open, by route.", labelFor, labelNth, "route")
	breakerShadow    = OfStack.gauge("breaker_shadow", "1 in shadow mode, which refuses nothing and only counts, by route.", labelFor, labelNth, "route")
	breakerShare     = OfStack.gauge("breaker_passing_ratio", "Fraction of the calls that the breaker lets pass, by route.", labelFor, labelNth, "route")
	breakerWindow    = OfStack.upDown("breaker_window_calls", "Calls in the window: successes, failures, slow ones among these, and overdue ones.", labelFor, labelNth, "route", "outcome")
	breakerOpenings  = OfStack.counter("breaker_openings_total", "How often the breaker opened, including again after a probe, by route. Starts again at 0 when a forgotten key comes back.", labelFor, labelNth, "route")
	breakerRejected  = OfStack.counter("breaker_rejected_total", "Calls refused, or let pass only by shadow mode, by route.", labelFor, labelNth, "route")
	breakerIgnored   = OfStack.counter("breaker_ignored_total", "Calls that said nothing about the handler, by route.", labelFor, labelNth, "route")
	breakerLost      = OfStack.counter("breaker_probes_lost_total", "Probes whose outcome did not arrive in time, by route.", labelFor, labelNth, "route")

	cacheRequests   = OfStack.counter("cache_requests_total", "Requests by how they were answered.", labelFor, labelNth, "result")
	cacheForwarded  = OfStack.counter("cache_forwarded_total", "Requests that stored responses alone could not answer, by reason.", labelFor, labelNth, "reason")
	cacheStored     = OfStack.counter("cache_stored_total", "Responses stored.", labelFor, labelNth)
	cacheRefused    = OfStack.counter("cache_refused_total", "Responses that were not stored.", labelFor, labelNth)
	cacheBackground = OfStack.counter("cache_revalidations_total", "Background validations: begun, and of these failed or panicked.", labelFor, labelNth, "outcome")
	cacheRecalled   = OfStack.counter("cache_recalled_total", "Responses that were in the store and not in memory.", labelFor, labelNth)
	cacheErrors     = OfStack.counter("cache_store_errors_total", "Failed calls of a store.", labelFor, labelNth)
	cachePurges     = OfStack.counter("cache_relayed_purges_total", "Purges sent to other servers, and received from them.", labelFor, labelNth, "direction")
	cachePending    = OfStack.upDown("cache_relay_pending", "Purges still to be sent to other servers.", labelFor, labelNth)
	cacheRelayErr   = OfStack.counter("cache_relay_errors_total", "Failed calls of a relay.", labelFor, labelNth)
	cacheDoubts     = OfStack.counter("cache_relay_doubts_total", "How often everything was made stale because purges may have been missed.", labelFor, labelNth)
	cacheBehind     = OfStack.gauge("cache_relay_behind_seconds", "How long ago it was last certain that no purge was missed.", labelFor, labelNth)
	cacheBytes      = OfStack.upDown("cache_bytes", "Bytes held.", labelFor, labelNth)
	cacheMaxBytes   = OfStack.gauge("cache_max_bytes", "The byte budget.", labelFor, labelNth)
	cacheEntries    = OfStack.upDown("cache_entries", "Responses held.", labelFor, labelNth)
	cacheEvictions  = OfStack.counter("cache_evictions_total", "Responses evicted to make room.", labelFor, labelNth)
	cacheFills      = OfStack.upDown("cache_fills", "Runs of the handler under way.", labelFor, labelNth)
	cacheRecording  = OfStack.upDown("cache_recording_bytes", "Bytes recorded by runs of the handler under way.", labelFor, labelNth)

	poolSlots      = OfStack.upDown("pool_slots", "Slots in all.", labelFor, labelNth)
	poolUsed       = OfStack.upDown("pool_used", "Slots taken.", labelFor, labelNth)
	poolWaiting    = OfStack.upDown("pool_waiting", "Tasks waiting for a slot.", labelFor, labelNth)
	poolRefused    = OfStack.counter("pool_refused_total", "Tasks refused a slot, by reason; tasks after Shutdown are counted only in pool_kind_refused_total.", labelFor, labelNth, "reason")
	poolRetryAfter = OfStack.gauge("pool_retry_after_seconds", "How long until the tasks now waiting will have been served.", labelFor, labelNth)
	poolDraining   = OfStack.gauge("pool_draining", "1 after Shutdown.", labelFor, labelNth)
	poolKind       = OfStack.upDown("pool_kind_tasks", "Tasks of a kind, waiting or running.", labelFor, labelNth, "kind", "state")
	poolBegun      = OfStack.counter("pool_kind_begun_total", "Tasks of a kind that got a slot.", labelFor, labelNth, "kind")
	poolTurned     = OfStack.counter("pool_kind_refused_total", "Tasks of a kind that were refused a slot.", labelFor, labelNth, "kind")
	poolWait       = OfStack.summary("pool_kind_wait_seconds", "How long tasks that found no free slot waited; quantiles since the start.", labelFor, labelNth, "kind")
	poolRun        = OfStack.summary("pool_kind_run_seconds", "How long tasks ran (of brief ones, one in 16 is measured); quantiles since the start.", labelFor, labelNth, "kind")
)

// Stack sends what a stack says.
func (e Emit) Stack(s middleware.Stats) {
	e.value(stackInFlight, float64(s.InFlight))
	count(e, stackRejected, "rate", s.Rejected.Rate)
	count(e, stackRejected, "concurrency", s.Rejected.Concurrency)
	count(e, stackRejected, "breaker", s.Rejected.Breaker)
	count(e, stackRejected, "pool", s.Rejected.Pool)
	count(e, stackRejected, "drain", s.Rejected.Drain)
	nth := map[[2]string]int{}
	for _, l := range once(s.Layers) {
		is := [2]string{l.Layer, l.For}
		nth[is]++
		e := e.with(l.For, strconv.Itoa(nth[is]))
		switch {
		case l.Rate != nil:
			e.rate(l.Rate)
		case l.Concurrency != nil:
			e.concurrency(l.Concurrency)
		case l.Breaker != nil:
			e.breaker(l.Breaker)
		case l.Cache != nil:
			e.cache(l.Cache)
		case l.Pool != nil:
			e.pool(l.Pool)
		}
	}
}

// once returns the layers without those that go by what an earlier one does, which is for the requests of all of them.
func once(layers []middleware.LayerStats) []middleware.LayerStats {
	var out []middleware.LayerStats
	at := map[middleware.LayerStats]int{}
	for _, l := range layers {
		is := l
		is.For = "" // its pointers are left, which tell
		i, ok := at[is]
		switch {
		case !ok:
			at[is] = len(out)
			out = append(out, l)
		case l.For == "" || out[i].For == "":
			out[i].For = ""
		default:
			out[i].For += " | " + l.For
		}
	}
	return out
}

func (e Emit) rate(s *limiter.RateStats) {
	count(e, rateDecisions, "acquired", s.Admitted)
	count(e, rateDecisions, "rejected", s.Rejected)
	count(e, rateDecisions, "shadowed", s.Shadowed)
	e.value(rateWaiting, float64(s.Waiting))
	e.value(rateKeys, float64(s.LiveKeys))
	e.value(rateCapacity, float64(s.Capacity))
	e.value(rateEvicted, float64(s.EvictedLive))
	e.value(rateShared, float64(s.SharedNewKeys))
	count(e, rateStore, "asked", s.StoreAsked)
	count(e, rateStore, "failed", s.StoreFailed)
	count(e, rateStore, "skipped", s.StoreSkipped)
	for _, p := range s.Policies {
		e := e.with(p.Name)
		limit := float64(p.Limit)
		if p.Limit == rate.Inf {
			limit = math.Inf(1)
		}
		e.value(rateLimit, limit)
		e.value(rateBurst, float64(p.Burst))
	}
}

func (e Emit) concurrency(s *limiter.ConcurrencyStats) {
	e.value(concLimit, float64(s.Limit))
	e.value(concInFlight, float64(s.InFlight))
	e.value(concQueued, float64(s.Queued))
	e.value(concQueueLimit, float64(s.QueueLimit))
	e.seconds(concQueueWait, s.QueueWait)
	e.flag(concNewest, s.NewestFirst)
	e.flag(concShadow, s.Shadow)
	e.value(concAdmitted, float64(s.Admitted))
	e.value(concWaited, float64(s.Waited))
	e.seconds(concWaitTime, s.WaitTime)
	count(e, concReleased, "success", s.Success)
	count(e, concReleased, "failure", s.Failure)
	count(e, concReleased, "ignored", s.Ignored)
	count(e, concShed, "full", s.Full)
	count(e, concShed, "evicted", s.Evicted)
	count(e, concShed, "expired", s.Expired)
	count(e, concShed, "deadline", s.Deadline)
	e.value(concLeft, float64(s.Left))
	e.seconds(concRetryAfter, s.RetryAfter)
	e.flag(concAdaptive, s.Adaptive)
	if s.Adaptive {
		e.flag(concSettling, s.Phase == "settle")
		e.value(concGate, float64(s.Gate))
		e.seconds(concBase, s.BaseLatency)
		e.seconds(concLatency, s.Latency)
		e.value(concThroughput, s.Throughput)
		e.value(concElasticity, s.Elasticity)
		e.value(concShedRatio, s.ShedFraction)
	}
}

func (e Emit) breaker(s *middleware.BreakerStats) {
	e.value(breakerKeys, float64(s.Group.Keys))
	e.value(breakerLimit, float64(s.Group.Limit))
	e.value(breakerNotClosed, float64(s.Group.Open))
	count(e, breakerGone, "evicted", s.Group.Evicted)
	count(e, breakerGone, "expired", s.Group.Expired)
	count(e, breakerGone, "forgotten", s.Group.Forgotten)
	e.value(breakerUntracked, float64(s.Group.Untracked))
	for route, b := range s.Routes {
		e := e.with(route)
		e.flag(breakerOpen, b.State == breaker.Open || b.State == breaker.HalfOpen || b.State == breaker.ForcedOpen)
		e.flag(breakerShadow, b.Settings.Shadow && b.State != breaker.ForcedOpen)
		e.value(breakerShare, b.Ramp)
		count(e, breakerWindow, "success", b.Successes)
		count(e, breakerWindow, "failure", b.Failures)
		count(e, breakerWindow, "slow", b.Slow)
		count(e, breakerWindow, "overdue", b.Overdue)
		e.value(breakerOpenings, float64(b.Openings))
		e.value(breakerRejected, float64(b.Rejected))
		e.value(breakerIgnored, float64(b.Ignored))
		e.value(breakerLost, float64(b.LostProbes))
	}
}

func (e Emit) cache(s *cache.Stats) {
	for r, n := range map[cache.Result]int64{
		cache.Hit: s.Hits, cache.Stale: s.Stale, cache.Revalidated: s.Revalidated,
		cache.Collapsed: s.Collapsed, cache.Miss: s.Misses, cache.Bypass: s.Bypassed,
	} {
		count(e, cacheRequests, r.String(), n)
	}
	count(e, cacheForwarded, "url", s.MissURL)
	count(e, cacheForwarded, "vary", s.MissVary)
	count(e, cacheForwarded, "stale", s.MissStale)
	count(e, cacheForwarded, "request", s.MissRequest)
	e.value(cacheStored, float64(s.Stored))
	e.value(cacheRefused, float64(s.Refused))
	count(e, cacheBackground, "begun", s.Revalidations)
	count(e, cacheBackground, "failed", s.RevalidationErrors)
	count(e, cacheBackground, "panicked", s.RevalidationPanics)
	e.value(cacheRecalled, float64(s.Recalled))
	e.value(cacheErrors, float64(s.StoreErrors))
	count(e, cachePurges, "sent", s.PurgesSent)
	count(e, cachePurges, "received", s.PurgesReceived)
	e.value(cachePending, float64(s.PurgesPending))
	e.value(cacheRelayErr, float64(s.RelayErrors))
	e.value(cacheDoubts, float64(s.RelayDoubts))
	e.seconds(cacheBehind, s.RelayBehind)
	e.value(cacheBytes, float64(s.Bytes))
	e.value(cacheMaxBytes, float64(s.MaxBytes))
	e.value(cacheEntries, float64(s.Entries))
	e.value(cacheEvictions, float64(s.Evictions))
	e.value(cacheFills, float64(s.Fills))
	e.value(cacheRecording, float64(s.Recording))
}

func (e Emit) pool(s *pool.Stats) {
	e.value(poolSlots, float64(s.Slots))
	e.value(poolUsed, float64(s.Used))
	e.value(poolWaiting, float64(s.Waiting))
	count(e, poolRefused, "share", s.Share)
	count(e, poolRefused, "full", s.Full)
	count(e, poolRefused, "evicted", s.Evicted)
	count(e, poolRefused, "expired", s.Expired)
	count(e, poolRefused, "deadline", s.Deadline)
	count(e, poolRefused, "left", s.Left)
	e.seconds(poolRetryAfter, s.RetryAfter)
	e.flag(poolDraining, s.Draining)
	for _, k := range s.Kinds {
		e := e.with(k.Kind)
		count(e, poolKind, "waiting", int64(k.Waiting))
		count(e, poolKind, "running", int64(k.Running))
		e.value(poolBegun, float64(k.Begun))
		e.value(poolTurned, float64(k.Refused))
		e.timing(poolWait, k.Wait)
		e.timing(poolRun, k.Run)
	}
}
