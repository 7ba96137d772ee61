// Package prommw exports what Spillgate does as Prometheus metrics.
//
//	requests := prommw.NewRequests()
//	stack := middleware.New(append(middleware.Defaults(), requests.Layer())...)
//	prometheus.MustRegister(requests, prommw.Stack(stack))
//	site := http.NewServeMux()
//	site.Handle("GET /metrics", promhttp.Handler()) // outside of the stack
//	site.Handle("/", stack.Handler(mux))
//
// [Stack], [Jobs], [Transport], [Set] and [Health] read Stats at each scrape and cost nothing in between. [Requests]
// measures each request by its route: the pattern of a [http.ServeMux] inside, as above. Around another router the
// route is not known, and each request has that of the mux outside, "/" above. Put the stack inside instead, where the
// router has found the route, as examples/routers shows (with chi, r.Use(stack.Handler) in a Group).
//
// Some parts are in no stack of a server, such as the breakers of the hosts that [outbound.Breaker] calls, or the pool
// that jobs run in. Export them by a stack that no request goes through:
//
//	hosts := breaker.NewGroup()
//	calls := outbound.New(nil, outbound.Retry(), outbound.Breaker(hosts))
//	others := middleware.New(middleware.Breaker(hosts), middleware.Pool(p))
//	for name, s := range map[string]*middleware.Stack{"server": stack, "others": others} {
//		prometheus.WrapRegistererWith(prometheus.Labels{"stack": name}, prometheus.DefaultRegisterer).MustRegister(prommw.Stack(s))
//	}
//
// The route of such a breaker is its host: if a client can choose that, use [WithoutRoutes]. To give each of several
// limits a name, in the label for, use a [middleware.For] with a pattern of your choice.
//
// Times are in seconds. A registry accepts each metric once: to export two stacks, give each its own labels with
// [prometheus.WrapRegistererWith], as above. What is in both, such as a cache of two servers in one process, is
// exported by each: choose one where you add up. Label values are bounded by construction and come from the source of
// the server: patterns, kinds of tasks, and the keys of breakers. The exception is a [middleware.WithBreakerKey] that
// takes keys from a request: [WithoutRoutes] is for that. Bytes that are not UTF-8 are quoted as in Go.
//
// Serve /metrics outside the stack, as above, or on a listener of its own: inside, a scrape is refused when it matters,
// in an overload and while the stack drains.
package prommw
