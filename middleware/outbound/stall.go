package outbound

import (
	"context"
	"io"
	"time"
)

// A stallBody gives each Read a time limit.
type stallBody struct {
	io.ReadCloser
	t     *timeout
	host  string
	ctx   context.Context
	timer *time.Timer
}

func (s *stallBody) Read(p []byte) (int, error) {
	s.timer.Reset(s.t.stall)
	n, err := s.ReadCloser.Read(p)
	s.timer.Stop()
	if err != nil && err != io.EOF && context.Cause(s.ctx) == errGivenUp {
		s.t.counts.timeouts.Add(1)
		err = &TimeoutError{Host: s.host, After: s.t.stall, Stalled: true}
	}
	return n, err
}

func (s *stallBody) Close() error {
	s.timer.Stop()
	return s.ReadCloser.Close()
}
