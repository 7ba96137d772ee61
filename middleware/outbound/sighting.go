package outbound

import (
	"context"
	"net/http/httptrace"
	"sync/atomic"
)

// A sighting tells whether a try that failed ever had a connection, for a [Retry] that may else not make another. All of net/http
// asks for one and says when it has it, which is after the handshake of TLS; of a transport that says neither, nothing is known. Both net/http
// and quic-go ask for another where the one they had, and have lost, has not carried out the request.
type sighting struct{ asked, had atomic.Bool }

// see returns a context for the tries.
func (s *sighting) see(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn: func(string) {
			s.asked.Store(true)
			s.had.Store(false)
		},
		GotConn: func(httptrace.GotConnInfo) { s.had.Store(true) },
	})
}

// next begins another try.
func (s *sighting) next() {
	if s != nil {
		s.asked.Store(false)
		s.had.Store(false)
	}
}

// none reports that the try that has failed had no connection that it could have been sent on.
func (s *sighting) none() bool { return s != nil && s.asked.Load() && !s.had.Load() }
