package riverjobs

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// notices tells those who watch a job that it has changed. One connection listens for all, from the first watcher on until there has been none
// for a minute.
type notices struct {
	pool   *pgxpool.Pool
	schema string
	ctx    context.Context // ends with close
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu        sync.Mutex
	watchers  map[string]map[*watcher]struct{}
	listening bool // the goroutine runs
	hearing   bool // and has a connection
}

// watcher is told of changes of one job.
type watcher struct {
	id      string
	changed chan struct{} // holds a token after a change
}

// listenIdle is how long the connection is kept that nobody needs.
const listenIdle = time.Minute

func newNotices(pool *pgxpool.Pool, schema string) *notices {
	n := &notices{pool: pool, schema: schema, watchers: make(map[string]map[*watcher]struct{})}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n
}

// join adds a watcher and has somebody listen for it, leave takes it out.
func (n *notices) join(id string) *watcher {
	w := &watcher{id: id, changed: make(chan struct{}, 1)}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.watchers[id] == nil {
		n.watchers[id] = make(map[*watcher]struct{})
	}
	n.watchers[id][w] = struct{}{}
	if !n.listening && n.ctx.Err() == nil {
		n.listening = true
		n.done.Go(n.listen)
	}
	return w
}

func (n *notices) leave(w *watcher) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.watchers[w.id], w)
	if len(n.watchers[w.id]) == 0 {
		delete(n.watchers, w.id)
	}
}

// tell wakes those who watch a job; all of them if id is empty.
func (n *notices) tell(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	wake := func(all map[*watcher]struct{}) {
		for w := range all {
			select {
			case w.changed <- struct{}{}:
			default:
			}
		}
	}
	if id != "" {
		wake(n.watchers[id])
		return
	}
	for _, all := range n.watchers {
		wake(all)
	}
}

// pause is how long a watcher waits that has seen no change; the longer the more often it has not. Where somebody listens it need not ask.
func (n *notices) pause(wait *time.Duration) time.Duration {
	n.mu.Lock()
	hearing := n.hearing
	n.mu.Unlock()
	if hearing {
		return jitter(askTold)
	}
	d := *wait
	*wait = min(2*d, askLast)
	return jitter(d)
}

// listen has a connection as long as somebody watches, and tries to have one again where it is lost.
func (n *notices) listen() {
	wait := askFirst
	for {
		if n.hear() {
			wait = askFirst
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
		timer := time.NewTimer(jitter(wait))
		wait = min(2*wait, askLast)
		select {
		case <-timer.C:
		case <-n.ctx.Done():
			timer.Stop()
		}
	}
}

// hear listens until the connection is lost or nobody watches. It reports whether it has listened.
func (n *notices) hear() bool {
	pooled, err := n.pool.Acquire(n.ctx)
	if err != nil {
		return false
	}
	conn := pooled.Hijack() // since one that listens must not come back
	defer conn.Close(context.WithoutCancel(n.ctx))
	schema := n.schema
	if schema == "" {
		if err := conn.QueryRow(n.ctx, "SELECT current_schema()").Scan(&schema); err != nil {
			return false
		}
	}
	if _, err := conn.Exec(n.ctx, "LISTEN "+pgx.Identifier{schema + ".spillgate_job"}.Sanitize()); err != nil {
		return false
	}
	n.mu.Lock()
	n.hearing = true
	n.mu.Unlock()
	n.tell("") // of what has changed before
	for {
		ctx, cancel := context.WithTimeout(n.ctx, listenIdle)
		said, err := conn.WaitForNotification(ctx)
		idle := ctx.Err() != nil
		cancel()
		switch {
		case err == nil:
			n.tell(said.Payload)
		case idle && n.ctx.Err() == nil && n.watched():
			if conn.Ping(n.ctx) != nil {
				return true
			}
		default:
			return true
		}
	}
}

func (n *notices) watched() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.watchers) > 0
}

// close ends the connection. Who watches asks by himself from then on.
func (n *notices) close() {
	n.mu.Lock() // or join might begin to listen meanwhile
	n.cancel()
	n.mu.Unlock()
	n.done.Wait()
}
