// Package prommw exports what Spillgate does as metrics of Prometheus.
//
//	requests := prommw.NewRequests()
//	stack := middleware.New(append(middleware.Defaults(), requests.Layer())...)
//	prometheus.MustRegister(requests, prommw.Stack(stack))
//	site := http.NewServeMux()
//	site.Handle("GET /metrics", promhttp.Handler()) // outside of the stack
//	site.Handle("/", stack.Handler(mux))
//
// [Stack], [Jobs], [Transport], [Set] and [Health] read the Stats of what they are given at each scrape and cost nothing in between.
// [Requests] measures each request, by its route: the pattern of a [http.ServeMux] inside, as above. Around another router the route is not known,
// and each request has that of the mux outside, "/" above: put the stack inside, where the router has found the route, as examples/routers shows (with
// chi, r.Use(stack.Handler) in a Group).
//
// What is in no stack of a server, such as the breakers of the hosts that [outbound.Breaker] calls or the pool that jobs run in, is exported by a stack that
// nothing goes through:
//
//	hosts := breaker.NewGroup()
//	calls := outbound.New(nil, outbound.Retry(), outbound.Breaker(hosts))
//	others := middleware.New(middleware.Breaker(hosts), middleware.Pool(p))
//	for name, s := range map[string]*middleware.Stack{"server": stack, "others": others} {
//		prometheus.WrapRegistererWith(prometheus.Labels{"stack": name}, prometheus.DefaultRegisterer).MustRegister(prommw.Stack(s))
//	}
//
// The route of such a breaker is its host: where a client can choose that, there is [WithoutRoutes]. A [middleware.For] with a pattern of one's choice gives each of several limits a name, in the label for.
//
// Times are in seconds. A registry takes each of them once: to export two stacks give each labels of its own, by
// [prometheus.WrapRegistererWith], as above. What stands in both, as a cache of two servers in one process, is exported by each: choose one where you add up. What a label holds is bounded by construction and comes from the source of the server: patterns, kinds of tasks, and the
// keys of breakers, unless a [middleware.WithBreakerKey] takes them from a request: [WithoutRoutes] is for that. Bytes that are no UTF-8 are quoted as in Go.
//
// Serve /metrics outside of the stack, as above, or on a listener of its own: inside, a scrape is refused when it matters, in an overload and
// while the stack drains.
package prommw
