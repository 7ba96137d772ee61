package remote

import (
	"context"
	"sync"
	"time"
)

// Notices tells those who watch a job that it has changed. One connection listens for all, from the first watcher on until there has been none
// for a minute.
type Notices struct {
	hear   Hear
	told   time.Duration   // how long watchers wait before they ask where somebody listens
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu        sync.Mutex
	watchers  map[string]map[*Watcher]struct{}
	listening bool // the goroutine runs
	hearing   bool // and has a connection
}

// Watcher is told of changes of one job.
type Watcher struct {
	id      string
	changed chan struct{}
}

// Hear listens until the connection is lost, ctx ends or heard returns false. heard is called with the id of each job that has changed; with none, and
// true, when it has begun to listen; and with neither when there was nothing for a while. Hear reports whether it has listened.
type Hear func(ctx context.Context, heard func(id string, began bool) bool) bool

// NewNotices returns those of what hear hears. Where somebody listens, watchers ask by themselves after told.
func NewNotices(hear Hear, told time.Duration) *Notices {
	n := &Notices{hear: hear, told: told, watchers: make(map[string]map[*Watcher]struct{})}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n
}

// Changed holds a token after a change.
func (w *Watcher) Changed() <-chan struct{} { return w.changed }

// Join adds a watcher and has somebody listen for it; Leave takes it out.
func (n *Notices) Join(id string) *Watcher {
	w := &Watcher{id: id, changed: make(chan struct{}, 1)}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.watchers[id] == nil {
		n.watchers[id] = make(map[*Watcher]struct{})
	}
	n.watchers[id][w] = struct{}{}
	if !n.listening && n.ctx.Err() == nil {
		n.listening = true
		n.done.Go(n.listen)
	}
	return w
}

// Leave takes a watcher out.
func (n *Notices) Leave(w *Watcher) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.watchers[w.id], w)
	if len(n.watchers[w.id]) == 0 {
		delete(n.watchers, w.id)
	}
}

// tell wakes those who watch a job; all of them if id is empty.
func (n *Notices) tell(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if id != "" {
		for w := range n.watchers[id] {
			Signal(w.changed)
		}
		return
	}
	for _, all := range n.watchers {
		for w := range all {
			Signal(w.changed)
		}
	}
}

// Pause is how long a watcher waits that has seen no change; the longer the more often it has not. Where somebody listens it need not ask so often.
func (n *Notices) Pause(wait *time.Duration) time.Duration {
	n.mu.Lock()
	hearing := n.hearing
	n.mu.Unlock()
	if hearing {
		return Jitter(n.told)
	}
	d := *wait
	*wait = min(2*d, AskLast)
	return Jitter(d)
}

// listen has a connection as long as somebody watches, and tries to have one again where it is lost.
func (n *Notices) listen() {
	wait := AskFirst
	for {
		if n.hear(n.ctx, n.heard) {
			wait = AskFirst
		}
		n.mu.Lock()
		n.hearing = false
		if n.ctx.Err() != nil || len(n.watchers) == 0 {
			n.listening = false
			n.mu.Unlock()
			return
		}
		n.mu.Unlock()
		n.tell("") // to ask by themselves from now on
		timer := time.NewTimer(Jitter(wait))
		wait = min(2*wait, AskLast)
		select {
		case <-timer.C:
		case <-n.ctx.Done():
			timer.Stop()
		}
	}
}

// heard takes over what was heard, and reports whether somebody wants to hear more.
func (n *Notices) heard(id string, began bool) bool {
	n.mu.Lock()
	wanted := id != "" || began || len(n.watchers) > 0
	n.hearing = wanted
	n.mu.Unlock()
	if id != "" || began {
		n.tell(id) // all of them where it has just begun: of what has changed before
	}
	return wanted
}

// Close ends the connection. Who watches asks by himself from then on.
func (n *Notices) Close() {
	n.mu.Lock() // or Join might begin to listen meanwhile
	n.cancel()
	n.mu.Unlock()
	n.done.Wait()
}
