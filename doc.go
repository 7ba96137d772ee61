// Package spillgate protects a net/http server from its own success.
//
// The packages below it hold the five protections; this package holds no code.
//
//   - [github.com/spillgate/spillgate/limiter] decides how much: rate limits and concurrency limits.
//   - [github.com/spillgate/spillgate/breaker] stops calling work that fails.
//   - [github.com/spillgate/spillgate/cache] is a shared HTTP cache (RFC 9111).
//   - [github.com/spillgate/spillgate/pool] bounds CPU-bound work and runs background jobs.
//   - [github.com/spillgate/spillgate/middleware] puts them around a handler with one call.
//
// A stack orders its layers the same way whatever order they were given in, outermost first:
//
//	trace(rate(cache(bufferbody(concurrency(breaker(pool(handler)))))))
package spillgate
