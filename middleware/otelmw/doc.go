// Package otelmw tells OpenTelemetry what Spillgate alone knows: metrics of what its layers do, and events on the spans
// of requests.
//
//	requests, err := otelmw.NewRequests(provider)
//	...
//	stack := middleware.New(append(middleware.Defaults(), requests.Layer())...)
//	registration, err := otelmw.Stack(provider, stack)
//	...
//	http.ListenAndServe(addr, otelhttp.NewHandler(stack.Handler(mux), "server"))
//
// [Stack], [Jobs], [Transport], [Set] and [Health] read Stats when metrics are collected and cost nothing in between.
// [Requests] adds an event to the span in the context of a request when a layer decides something about it. otelhttp
// around the stack puts a span there, and measures how long requests take; this package does not measure that again.
//
// Some parts are in no stack of a server, such as the breakers of the hosts that [outbound.Breaker] calls, or the pool
// that jobs run in. Export them by a stack that no request goes through, as package prommw shows: Stack(provider,
// middleware.New(middleware.Breaker(hosts)), WithAttributes(...)).
//
// Names are those of package prommw with dots: spillgate_concurrency_active_requests is
// spillgate.concurrency.active_requests, with the attributes spillgate.for and spillgate.nth. The dashboard and the
// alerts of examples/grafana query what prommw exports: on the way from here to a Prometheus, the labels become
// spillgate_for and the like, and how long requests take has the names of otelhttp. Times are in seconds. A summary of
// prommw is two counters here, the seconds and how many there were (spillgate.pool.kind_run and
// spillgate.pool.kind_run_count).
//
// Attributes are bounded by construction and come from the source of the server, except the keys of breakers if a
// [middleware.WithBreakerKey] takes them from a request. [WithoutRoutes] is for that, and for groups of more than 500
// keys: by default the SDK keeps 2,000 sets of attributes apart for an instrument, and a breaker has four for the calls
// in its window.
package otelmw
