// Package limiter decides how much work a server takes on.
//
// [Rate] answers "is this client within its quota?" with token buckets, one for each key. [Concurrency] answers "is
// there room for one more?" with permits, a fixed or an adaptive limit, and one bounded queue.
//
// The package does not import net/http: a gRPC server or a queue worker can use it as well. The HTTP layers are in
// package middleware.
package limiter
