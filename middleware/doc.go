// Package middleware puts the protections of this module around any [http.Handler].
//
// One call protects a server with defaults that need no number:
//
//	http.ListenAndServe(addr, middleware.Wrap(mux))
//
// On a server that clients reach directly, set [http.Server.ReadTimeout] and [http.Server.WriteTimeout], and where
// clients upload over HTTP/2, [http.Server.HTTP2]: [Concurrency] says what happens without them.
//
// Every protection is a [Layer] that also works alone. Its Handler method has the shape func(http.Handler)
// http.Handler, which net/http, chi, gorilla/mux and alice take as it is (echo through its WrapMiddleware):
//
//	r.Use(middleware.Rate(l).Handler)
//
// # Order
//
// [Wrap] and [New] put their layers in one fixed order, outermost first, whatever order they are given in:
//
//	trace(rate(cache(bufferbody(concurrency(breaker(pool(handler)))))))
//
// Rate is outermost, so that abuse is refused before any work is done. The cache is outside the concurrency limit, so
// that a hit takes no permit, and a stored response can stand in while the server is full or the breaker is open. The
// breaker is inside the concurrency limit, since being full is not a failure of the handler. The pool is innermost:
// it is for the routes that compute, named with [For]. [Chain] keeps the order it is given.
//
// # What the layers know of each other
//
// A request that one of the layers refuses is not a failure to any layer around it, nor a measurement to an adaptive
// limit. A client that leaves is not a failure. A panic travels on untouched, with its stack; permits, slots and
// probes are given back on its way. All layers of a request share one wrapper around its ResponseWriter, which offers
// Flush, ReadFrom, Hijack, Push and Unwrap exactly as the writer below it does.
//
// # What belongs outside
//
// [http.MaxBytesHandler], CORS and compression go around the layers: Wrap goes inside them. After a body that is too
// large, net/http closes the connection only if http.MaxBytesHandler was given net/http's own ResponseWriter; no
// wrapper can stand in for that. [http.TimeoutHandler] goes inside: the layers then see its answer as the failure
// that it is.
//
// The handler of golang.org/x/net/http2/h2c goes around the layers, too: h2c.NewHandler(Wrap(mux), s). If it is
// inside, all requests of an HTTP/2 connection are one request to the layers, which are done with it as soon as the
// connection is let in: nothing is limited. With net/http's own support, [http.Protocols.SetUnencryptedHTTP2], there
// is no such order to keep.
//
// An adaptor that runs the rest of the chain only after the layers have returned leaves them nothing to protect, but for
// Rate: permits and slots are back before the handler begins, and every request is a success. adaptor.HTTPMiddleware of
// fiber is one. Put the layers around the whole app, Wrap(adaptor.FiberApp(app)), and serve that with net/http.
//
// # HTTP/3
//
// The layers protect a handler behind a server of HTTP/3 (quic-go) as over HTTP/2. A handler that takes over a stream, as
// those of WebTransport and of UDP proxying (MASQUE) do, asks its ResponseWriter for methods with types of quic-go, which
// no wrapper can have; Unwrap leads to them. Libraries that do not unwrap, such as webtransport-go, panic: WithSkip as a
// layer of the stack gives them the server's own writer. No layer, nor [Stack.Shutdown], then knows of these requests:
//
//	Wrap(mux, append(Defaults(), WithSkip(func(r *http.Request) bool {
//		return r.ProtoMajor == 3 && r.Method == http.MethodConnect
//	}))...)
//
// # Before anything is refused
//
// [limiter.WithRateShadow], [limiter.WithShadow] and [breaker.WithShadow] make a layer count what it would refuse,
// and refuse nothing; see the example "Shadow". [WithSkip] on a layer lets you start with some of the requests, or
// turn the layer off and on. The example "Refusals" tests what clients see.
//
// # On the wire
//
// A client over its own quota gets 429; a server that is full, open or draining answers 503. Both carry Retry-After
// in whole seconds, Cache-Control: no-store, and a body of type application/problem+json (RFC 9457). [WithReject]
// replaces them. To a client of gRPC, both are Unavailable.
package middleware
