package cache

import (
	"context"
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
	flushTo int // flush when this much is written
	died    any // a panic of the writer below, for the leader to carry on
}

func (fl *fill) startPump() {
	ctx, stop := context.WithCancel(context.WithoutCancel(fl.r.Context()))
	fl.pump = &pump{f: fl.f, w: fl.w, done: make(chan struct{}), stop: stop, flushTo: -1}
	go fl.pump.run(ctx, fl.sent)
}

func (p *pump) run(ctx context.Context, sent int) {
	defer close(p.done)
	defer func() {
		if v := recover(); v != nil {
			p.mu.Lock()
			p.died = v // join panics with it, on the goroutine that the server watches
			p.mu.Unlock()
		}
	}()
	rc := http.NewResponseController(p.w)
	seen := reader{head: true}
	for ctx.Err() == nil {
		seen.offset = sent
		n, err := p.f.await(ctx, nil, &seen)
		if err != nil {
			return
		}
		if len(n.body) > 0 {
			m, err := p.w.Write(n.body)
			if sent += m; err != nil {
				return // the client is gone
			}
		}
		p.mu.Lock()
		flush := p.flushTo >= 0 && sent >= p.flushTo
		if flush {
			p.flushTo = -1
		}
		p.mu.Unlock()
		if flush {
			rc.Flush()
		}
		if n.outcome != pending && len(n.body) == 0 {
			return
		}
	}
}

// flush has everything recorded so far sent and flushed.
func (p *pump) flush() {
	p.mu.Lock()
	p.flushTo = len(p.f.body)
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

// abort stops the pump where it is, but not before what the handler flushed has gone out, as it
// would have without us. Else the connection is about to be broken, so a write that hangs
// in it is broken first. The flight must have ended.
func (p *pump) abort(w http.ResponseWriter) {
	p.mu.Lock()
	flushing := p.flushTo >= 0
	p.mu.Unlock()
	if flushing {
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
