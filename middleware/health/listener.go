package health

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// A listener can stop without losing a connection that the system has taken in
// its name, and without its server noticing before it is shut down.
type listener struct {
	net.Listener
	shared bool // by other processes, which serve what is in the queue
	once   sync.Once
	closed chan struct{}
	handed chan struct{} // closed when the server has accepted all that stop took over

	mu       sync.Mutex
	stopping bool // stop has begun, and may take over more
	stopped  bool
	all      bool       // handed is closed
	queued   []net.Conn // taken over by stop, not yet accepted
	news     sync.Cond  // one more is queued, or stopping ends
}

func newListener(l net.Listener) *listener {
	w := &listener{Listener: l, closed: make(chan struct{}), handed: make(chan struct{})}
	w.news.L = &w.mu
	return w
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		return c, nil
	}
	l.mu.Lock()
	for l.stopping && len(l.queued) == 0 {
		l.news.Wait()
	}
	if len(l.queued) > 0 {
		c := l.queued[0]
		l.queued = l.queued[1:]
		l.mu.Unlock()
		return c, nil
	}
	stopped, all := l.stopped, l.all
	l.all = l.all || stopped
	l.mu.Unlock()
	if stopped {
		if !all {
			close(l.handed)
		}
		<-l.closed
		return nil, net.ErrClosed
	}
	return nil, err
}

// stop refuses new connections and hands out those that are there.
func (l *listener) stop() {
	l.mu.Lock()
	l.stopping = true
	l.mu.Unlock()
	if !l.shared {
		takeQueue(l.Listener, l.hand)
	}
	l.mu.Lock()
	l.stopping, l.stopped = false, true
	l.news.Broadcast()
	l.mu.Unlock()
	l.Listener.Close()
}

// hand has c accepted once the system gives the server no more.
func (l *listener) hand(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.closed:
		c.Close()
	default:
		l.queued = append(l.queued, c)
		l.news.Signal()
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	l.mu.Lock()
	queued, stopped := l.queued, l.stopped
	l.queued = nil
	l.mu.Unlock()
	for _, c := range queued {
		c.Close()
	}
	if stopped {
		return nil
	}
	return l.Listener.Close() // which waits for takeQueue, and that for the lock
}

// connections follows those connections of a draining server on which a request
// may be on its way to the handler: new ones, and active ones.
//
// [http.Server.Shutdown] needs that, because it drops a request that was read but
// has not reached its handler: the server looks between the two whether it is
// shutting down, and closes the connection without an answer if so.
type connections struct {
	mu   sync.Mutex
	busy map[net.Conn]struct{}
	none chan struct{} // closed when busy becomes empty while someone waits
}

// follow puts the hook for this into srv, in front of one that is there.
func (c *connections) follow(srv *http.Server, h *Health) {
	next := srv.ConnState
	srv.ConnState = func(conn net.Conn, state http.ConnState) {
		if h.draining.Load() {
			c.note(conn, state)
		}
		if next != nil {
			next(conn, state)
		}
	}
}

func (c *connections) note(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew, http.StateActive:
		if c.busy == nil {
			c.busy = map[net.Conn]struct{}{}
		}
		c.busy[conn] = struct{}{}
	default:
		delete(c.busy, conn)
		if len(c.busy) == 0 && c.none != nil {
			close(c.none)
			c.none = nil
		}
	}
}

// settle returns when the server has accepted all that l took over and no such
// connection is left, or when the time is over. That is to be enough for every
// request to have reached its handler: from then on Shutdown waits for them.
func (c *connections) settle(l *listener, over <-chan time.Time) {
	select { // what the server has not accepted, nobody follows
	case <-l.handed:
	case <-over:
		return
	}
	c.mu.Lock()
	if len(c.busy) == 0 {
		c.mu.Unlock()
		return
	}
	none := make(chan struct{})
	c.none = none
	c.mu.Unlock()
	select {
	case <-none:
	case <-over:
	}
}
