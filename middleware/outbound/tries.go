package outbound

import (
	"context"
	"slices"
	"sync"
)

// tries is what the tries of one request know of each other. Retry or Hedge makes
// it and puts it into the context; Balance reads and writes it.
type tries struct {
	retried bool // a Retry is at work outside, so one inside passes on

	mu     sync.Mutex
	set    *Set        // that they are spread over
	used   []*endpoint // endpoints tried, in order
	others bool        // at the last choice, another endpoint was there that had not been tried
}

type triesKey struct{}
type hedgeKey struct{}

func triesIn(ctx context.Context) *tries {
	t, _ := ctx.Value(triesKey{}).(*tries)
	return t
}

// isHedge reports whether a try is a second one beside a first that still runs.
func isHedge(ctx context.Context) bool { return ctx.Value(hedgeKey{}) != nil }

// of reports whether the tries are spread over s, which is the first set that asks: one further in may be that of another
// request, as for a token, that was made with the context of this one.
func (t *tries) of(s *Set) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.set == nil {
		t.set = s
	}
	return t.set == s
}

func (t *tries) note(e *endpoint, others bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.used = append(t.used, e)
	t.others = others
}

// elsewhere reports whether the next try can go to an endpoint that had none.
func (t *tries) elsewhere() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.others
}

func (t *tries) tried(e *endpoint) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Contains(t.used, e)
}

func (t *tries) any() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.used) > 0
}
