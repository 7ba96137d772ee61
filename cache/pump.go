package cache

import (
	"context"
	"maps"
	"net/http"
	"sync"
	"time"
)

// pumpAfter is how much of a response may be recorded before its own client gets the first of
// it. net/http holds back about as much.
const pumpAfter = 4 << 10

// pump writes a recorded response to the leader's client on a goroutine of its own, so that a
// client that reads slowly holds up nobody else. It is joined before ServeHTTP returns.
type pump struct {
	f    *flight
	w    http.ResponseWriter
	done chan struct{}
	stop context.CancelFunc

	mu      sync.Mutex
	sent    int  // written so far
	flushed int  // the handler had this much flushed
	pending bool // and it is not done yet
	aborted bool // nothing beyond it is to be written
	died    any  // a panic of the writer below, for the leader to carry on
}

func (fl *fill) startPump() {
	ctx, stop := context.WithCancel(context.WithoutCancel(fl.r.Context()))
	fl.late = maps.Clone(fl.w.Header())
	fl.pump = &pump{f: fl.f, w: fl.w, done: make(chan struct{}), stop: stop, sent: fl.sent}
	go fl.pump.run(ctx)
}

func (p *pump) run(ctx context.Context) {
	defer close(p.done)
	defer func() {
		if v := recover(); v != nil {
			p.mu.Lock()
			p.died = v // join panics with it, on the goroutine that the server watches
			p.mu.Unlock()
		}
	}()
	rc := http.NewResponseController(p.w)
	seen := reader{head: true, offset: p.sent}
	for ctx.Err() == nil {
		n, err := p.f.await(ctx, nil, &seen)
		if err != nil {
			return
		}
		p.mu.Lock()
		if p.aborted {
			n.body = n.body[:min(len(n.body), max(0, p.flushed-p.sent))]
		}
		p.mu.Unlock()
		if len(n.body) > 0 {
			m, err := p.w.Write(n.body)
			if err != nil {
				return // the client is gone
			}
			seen.offset += m
		}
		p.mu.Lock()
		p.sent = seen.offset
		flush, upTo := p.pending && p.sent >= p.flushed, p.flushed
		p.mu.Unlock()
		if flush {
			rc.Flush()
			p.mu.Lock()
			p.pending = p.flushed > upTo // not before it is done: abort would break it off
			p.mu.Unlock()
		}
		if n.outcome != pending && len(n.body) == 0 {
			return
		}
	}
}

// flush has everything recorded so far sent and flushed.
func (p *pump) flush() {
	p.mu.Lock()
	p.flushed, p.pending = len(p.f.body), true
	p.mu.Unlock()
	p.f.mu.Lock()
	p.f.nudged++
	p.f.changed()
	p.f.mu.Unlock()
}

// join waits until everything recorded is written. The flight must have ended.
func (p *pump) join() {
	<-p.done
	p.stop()
	if p.died != nil {
		panic(p.died)
	}
}

// abort stops the pump once the client has what the handler had flushed: the rest would not have
// left the server either. The connection is about to be broken, so a write that hangs in the rest is
// broken first.
func (p *pump) abort(w http.ResponseWriter) {
	p.mu.Lock()
	p.aborted = true
	owed := p.pending
	p.mu.Unlock()
	if owed {
		<-p.done
	}
	p.stop()
	select {
	case <-p.done:
	default:
		http.NewResponseController(w).SetWriteDeadline(time.Unix(1, 0))
		<-p.done
	}
}
