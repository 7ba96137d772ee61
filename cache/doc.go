// Package cache is a shared HTTP cache (RFC 9111) in front of an [http.Handler].
//
//	c := cache.New(64 << 20)
//	http.ListenAndServe(addr, c.Handler(mux))
//
// The handler decides what is stored, by the response fields that every cache obeys:
// Cache-Control, Expires, Vary, CDN-Cache-Control. What may not be stored is passed through,
// byte for byte, and never waits behind another request.
//
// A response that states no lifetime but has Last-Modified, as files do, is fresh for a tenth of
// the time since then, 24 h at most (RFC 9111, section 4.2.2), unless its request carried a cookie or
// credentials. A response that says no-cache is not, and with [WithOnlyExplicit] only one that says public is.
//
// What is stored gets older by the monotonic clock, or by that on the wall where this has gone on further, as it has when a machine
// was suspended. A clock that is set back makes nothing younger.
//
// Requests for the same response are collapsed: one of them runs the handler, on its own
// goroutine, and the others read what it records, while it is being written if its length
// is known. A stale response is validated with the handler; where the response or an option
// allows it (RFC 5861), it is served while the handler fails, while an inner layer refuses
// (see [ShedMarker]), or while it is validated in the background.
//
// A response that breaks off is not stored: where it is shorter than its Content-Length, where the handler panics, or its context has ended, and over HTTP/1,
// or in the background, where an [io.Copy] to the ResponseWriter fails. A handler whose source fails otherwise, with no length named, is to panic with [http.ErrAbortHandler]: its response
// else ends as if it were whole, for its client as well.
//
// A request for another protocol, as a websocket, is passed through. An offer of HTTP/2 without TLS (Upgrade: h2c), which some clients make with each request, is none: it
// is answered like all others, and taken off what the handler is asked for others too. A handler that takes it up (golang.org/x/net/http2/h2c) goes around the cache.
//
// Memory is bounded by the byte budget given to [New]; entries are evicted least recently
// used first. [Cache.Purge] and its relatives remove entries, and beat every fill that began
// before them. A [Store] may stand behind the memory, and a [Relay] carry purges to other servers.
//
// How well the package does what the RFCs say is scored by the public suite for HTTP caches: see
// package conformance in the folder of that name.
package cache
