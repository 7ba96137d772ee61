package redisjobs

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// listenIdle is how long nothing may be heard until it is seen whether the connection is there, and how long one is kept that nobody needs. It is
// a variable for the sake of tests.
var listenIdle = time.Minute

// pongTime is how long the server may take to say that it is.
const pongTime = 10 * time.Second

// hear listens to a channel until the connection is lost, ctx ends or told returns false. told is called with each message; with none, and true, when
// it has begun to listen; and with neither when there was nothing for a while. hear reports whether it has listened.
func hear(ctx context.Context, client redis.UniversalClient, channel string, told func(said string, began bool) bool) bool {
	p := client.Subscribe(ctx, channel)
	defer p.Close()
	defer context.AfterFunc(ctx, func() { p.Close() })() // ends what waits for the next message
	listened, asked := false, false
	for {
		patience := listenIdle
		if asked || !listened {
			patience = pongTime
		}
		m, err := p.ReceiveTimeout(ctx, patience)
		if err != nil {
			timeout, ok := errors.AsType[net.Error](err)
			if !ok || !timeout.Timeout() || asked || !listened || ctx.Err() != nil {
				return listened
			}
			if asked = true; p.Ping(ctx) != nil || !told("", false) {
				return listened
			}
			continue
		}
		asked = false
		switch m := m.(type) {
		case *redis.Subscription:
			listened = true
			if !told("", true) {
				return true
			}
		case *redis.Message:
			if !told(m.Payload, false) {
				return true
			}
		}
	}
}

// notices tells those who watch a job that it has changed. One connection listens for all, from the first watcher on until there has been none
// for a minute.
type notices struct {
	client  redis.UniversalClient
	channel string
	ctx     context.Context // ends with close
	cancel  context.CancelFunc
	done    sync.WaitGroup

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

func newNotices(client redis.UniversalClient, channel string) *notices {
	n := &notices{client: client, channel: channel, watchers: make(map[string]map[*watcher]struct{})}
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
	if id != "" {
		for w := range n.watchers[id] {
			signal(w.changed)
		}
		return
	}
	for _, all := range n.watchers {
		for w := range all {
			signal(w.changed)
		}
	}
}

// pause is how long a watcher waits that has seen no change; the longer the more often it has not. Where somebody listens it need not ask so often.
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
		if hear(n.ctx, n.client, n.channel, n.heard) {
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

// heard takes over what was heard, and reports whether somebody wants to hear more.
func (n *notices) heard(said string, began bool) bool {
	n.mu.Lock()
	wanted := said != "" || began || len(n.watchers) > 0
	n.hearing = wanted
	n.mu.Unlock()
	if said != "" || began {
		n.tell(said) // all of them where it has just begun: of what has changed before
	}
	return wanted
}

// close ends the connection. Who watches asks by himself from then on.
func (n *notices) close() {
	n.cancel()
	n.done.Wait()
}
