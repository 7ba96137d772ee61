package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillgate/spillgate/middleware/health"
)

// mood is how a replica behaves.
type mood int32

const (
	well mood = iota
	failing
	slow
)

// A replica is one server of the backend, in this process so that it can be
// killed and brought back.
type replica struct {
	name string
	addr string
	mood atomic.Int32

	mu    sync.Mutex // guards what follows
	leave context.CancelFunc
	gone  chan struct{} // closed when it has left
	srv   *http.Server
}

func newReplica(name string) (*replica, error) {
	r := &replica{name: name, addr: "127.0.0.1:0"}
	return r, r.ok()
}

func (r *replica) set(m mood) { r.mood.Store(int32(m)) }

// ok makes the replica well, and starts it if it is not there.
func (r *replica) ok() error {
	r.set(well)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.srv != nil {
		select {
		case <-r.gone:
		default:
			return nil
		}
	}
	l, err := net.Listen("tcp", r.addr)
	if err != nil {
		return err
	}
	r.addr = l.Addr().String() // it comes back at the same place
	ctx, leave := context.WithCancel(context.Background())
	srv, gone := &http.Server{Handler: http.HandlerFunc(r.serve)}, make(chan struct{})
	r.leave, r.srv, r.gone = leave, srv, gone
	h := health.New(health.WithDrainWait(3 * time.Second))
	go func() {
		defer close(gone)
		h.Serve(ctx, l, srv)
	}()
	return nil
}

// kill cuts everything off.
func (r *replica) kill() {
	r.mu.Lock()
	srv, gone := r.srv, r.gone
	r.mu.Unlock()
	if srv != nil {
		srv.Close()
		<-gone
	}
}

// drain lets the replica leave as it should, and returns when it has.
func (r *replica) drain(ctx context.Context) {
	r.mu.Lock()
	leave, gone := r.leave, r.gone
	r.mu.Unlock()
	leave()
	select {
	case <-gone:
	case <-ctx.Done():
	}
}

func (r *replica) serve(w http.ResponseWriter, req *http.Request) {
	work := 5 * time.Millisecond
	switch mood(r.mood.Load()) {
	case failing: // at once, which makes it look idle
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case slow:
		work = time.Second
	}
	select {
	case <-time.After(work):
		fmt.Fprintf(w, "%s %s, from %s\n", req.Method, req.URL.Path, r.name)
	case <-req.Context().Done():
	}
}
