// Package cache is a shared HTTP cache (RFC 9111) in front of an [http.Handler].
//
//	c := cache.New(64 << 20)
//	http.ListenAndServe(addr, c.Handler(mux))
//
// The handler decides what is stored, by the response fields that every cache obeys: Cache-Control, Expires, Vary,
// CDN-Cache-Control. A response that may not be stored is passed through, byte for byte, and never waits behind another
// request.
//
// A response that states no lifetime but has Last-Modified, as files do, is fresh for a tenth of the time since then,
// for at most 24 h (RFC 9111, section 4.2.2), unless its request carried a cookie or credentials. A response that says
// no-cache is not fresh by this rule; with [WithOnlyExplicit], only one that says public is.
//
// The age of a stored response follows the monotonic clock, or the wall clock where that has advanced further, as it
// has after the machine was suspended. Setting the wall clock back makes no response younger.
//
// The cache collapses requests for the same response: one of them runs the handler, on its own goroutine, and the
// others read what it records, while it is being written if its length is known. A stale response is validated with the
// handler. Where the response or an option allows it (RFC 5861), the stale response is served while the handler fails,
// while an inner layer refuses (see [ShedMarker]), or while it is validated in the background.
//
// A response that breaks off is not stored. A response has broken off if it is shorter than its Content-Length, if the
// handler panics, or if its context has ended; over HTTP/1, or in the background, also if an [io.Copy] to the
// ResponseWriter fails. If the source of a handler fails in another way, and the response has no Content-Length, the
// handler must panic with [http.ErrAbortHandler]. Otherwise the response ends as if it were whole, for its client as
// well.
//
// A request to switch to another protocol, such as a websocket, is passed through. An offer of HTTP/2 without TLS
// (Upgrade: h2c), which some clients make with each request, is not such a request: the cache answers it like any
// other, and removes the offer from a request to the handler whose response others may share. A handler that accepts
// the offer (golang.org/x/net/http2/h2c) bypasses the cache.
//
// A GET or HEAD with a body or trailers is passed through. Over HTTP/3 (quic-go) the header does not say whether there is
// one: unless the request bypasses the cache anyway, the cache waits until the client has sent the first byte of a body
// or ended its request. Nearly all clients end it with the header.
//
// A request with an unsafe method that succeeds removes what is stored under its URL, and under those in Location and
// Content-Location (RFC 9111, section 4.4). A COPY or MOVE (WebDAV) also removes what is stored under its Destination.
// What is below a collection that is deleted, copied or moved stays: see [Cache.PurgePrefix].
//
// The byte budget given to [New] bounds memory; the least recently used entries are evicted first. [Cache.Purge] and
// its relatives remove entries, and beat every fill that began before them. A [Store] may stand behind the memory, and
// a [Relay] may carry purges to other servers.
//
// The public test suite for HTTP caches scores how well the package follows the RFCs: see package conformance in the
// folder of that name.
package cache
