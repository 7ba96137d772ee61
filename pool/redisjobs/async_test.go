//go:build unix

package redisjobs_test

import (
	"net/http"
	"testing"

	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool/internal/remote/remotetest"
	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/redisjobs"
)

// Two web servers and a worker behind middleware.Async.
func TestAsync(t *testing.T) {
	t.Parallel()
	prefix := service()
	m := kinds()
	remotetest.Async(t, m,
		func() jobs.Engine { return engine(t, shared.client(t), m, prefix, redisjobs.WithCapacity(10, 2)) },
		func() jobs.Engine { return engine(t, shared.client(t), m, prefix, redisjobs.WithWorkers(4)) },
		func(e jobs.Engine, kind string) http.Handler {
			return middleware.Async(e, kind, middleware.WithOwner(func(r *http.Request) string { return r.Header.Get("X-User") }))
		})
}

// A stream of events over HTTP tells of a job that runs elsewhere.
func TestAsyncStream(t *testing.T) {
	t.Parallel()
	prefix := service()
	remotetest.AsyncStream(t,
		func(m *jobs.Mux) jobs.Engine { return engine(t, shared.client(t), m, prefix) },
		func(m *jobs.Mux) jobs.Engine { return engine(t, shared.client(t), m, prefix, redisjobs.WithWorkers(1)) },
		func(e jobs.Engine, kind string) http.Handler { return middleware.Async(e, kind) })
}
