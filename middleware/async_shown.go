package middleware

import (
	"sync"

	"github.com/spillgate/spillgate/pool/jobs"
)

// shown has jobs that have a result in the form that clients are sent, in memory once however many take it at the time, and however slowly. It
// holds a job for no longer than somebody takes it.
type shown struct {
	mu sync.Mutex
	by map[shownKey]*shownJob
}

type shownKey struct {
	id      string
	version uint64
	form    asyncForm
}

type shownJob struct {
	taken int
	once  sync.Once
	text  []byte
	err   error
}

// take returns what form makes of j. The caller calls done when it has been sent.
func (s *shown) take(j jobs.Job, f asyncForm, form func(jobs.Job) ([]byte, error)) (text []byte, done func(), err error) {
	if len(j.Result) == 0 {
		text, err = form(j) // short, and while the job is not final other by the time
		return text, func() {}, err
	}
	key := shownKey{j.ID, j.Version, f}
	s.mu.Lock()
	x := s.by[key]
	if x == nil {
		if s.by == nil {
			s.by = make(map[shownKey]*shownJob)
		}
		x = new(shownJob)
		s.by[key] = x
	}
	x.taken++
	s.mu.Unlock()
	x.once.Do(func() { x.text, x.err = form(j) })
	return x.text, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if x.taken--; x.taken == 0 {
			delete(s.by, key)
		}
	}, x.err
}
