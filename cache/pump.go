package cache

import (
	"context"
	"net/http"
	"sync"
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

	mu      sync.Mutex
	opening int  // how much there was at the first flush of the handler, until that is done; -1: there is none to do
	flushed int  // the handler had this much flushed
	pending bool // and it is not done yet
	died    any  // a panic of the writer below, for the leader to carry on
}

func (fl *fill) startPump() {
	if fl.handed == nil {
		fl.handHeader()
	}
	fl.pump = &pump{f: fl.f, w: fl.w, done: make(chan struct{}), opening: -1}
	go fl.pump.run(context.WithoutCancel(fl.r.Context()), fl.sent)
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
	seen := reader{head: true, offset: sent}
	for {
		n, err := p.f.await(ctx, nil, &seen)
		if err != nil {
			return
		}
		body := n.body
		p.mu.Lock()
		// net/http sends the header at the first flush, and finds a type by what there is then: no more may be written before.
		opens := p.opening >= seen.offset && p.opening <= seen.offset+len(body)
		if opens {
			body = body[:p.opening-seen.offset]
			p.opening = -1
		}
		p.mu.Unlock()
		if len(body) > 0 {
			m, err := p.w.Write(body)
			if err != nil {
				return // the client is gone
			}
			seen.offset += m
		}
		p.mu.Lock()
		due := p.pending && seen.offset >= p.flushed
		p.pending = p.pending && !due
		p.mu.Unlock()
		if due || opens {
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
	if p.flushed == 0 && !p.pending {
		p.opening = len(p.f.body)
	}
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
	if p.died != nil {
		panic(p.died)
	}
}
