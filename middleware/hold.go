package middleware

import (
	"net/http"
	"time"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/pool"
)

// holds is what the layers hold for a request while it runs. Each kind of layer has a place here, so that
// the usual stack allocates none; a further layer of a kind pushes the first one on.
//
// A request that becomes long-lived is told to all of them, once for each [streamKind]: it was
// hijacked, switched protocols, began to stream, or waits for a pool or a job.
type holds struct {
	permit permitHold
	call   callHold
	slot   pool.Slot
	more   *holds
}

type permitHold struct {
	from   *permitSource
	permit limiter.Permit
}

// drop forgets the permit, and returns what it has become.
func (x *permitHold) drop() limiter.Permit {
	from, p := x.from, x.permit
	*x = permitHold{}
	if from != nil && from.wait != nil {
		return from.wait.close()
	}
	return p
}

// timed says that it is given back while the client does not read.
func (x *permitHold) timed() bool { return x.from != nil && (x.from.slow != nil || x.from.wait != nil) }

// permitSource is where a permit came from, and what becomes of it when the request becomes long-lived. The gate of a
// stack is one, too, with a permit that is none.
type permitSource struct {
	l          *limiter.Concurrency
	slow       *places     // it is given back while the client does not read, if one of these is free; nil: it is not
	bodies     *places     // likewise while a body is to come
	wait       *clientWait // of the request, in a copy of its own if it has a body, or has written something that may wait
	becameLong func(rec *recorder, x *permitHold, k streamKind)
}

type callHold struct {
	layer   *breakerHandler
	call    breaker.Call
	begun   time.Duration // since the recorder's start
	request *http.Request // what the breaker passed on, for when it has to judge before the end; where there is no call, what a limit did
}

func (h *holds) addPermit(x permitHold) {
	if h.permit.from != nil {
		h.more = &holds{permit: h.permit, more: h.more}
	}
	h.permit = x
}

// dropPermit forgets a permit that is given back, and returns what it has become.
func (h *holds) dropPermit(p limiter.Permit) limiter.Permit {
	for ; h != nil; h = h.more {
		if h.permit.permit == p {
			return h.permit.drop()
		}
	}
	return p
}

// hasPermit says that the request, or the one for which this is a fill of the cache, has a permit of l.
func (rec *recorder) hasPermit(l *limiter.Concurrency) bool {
	for ; rec != nil; rec = rec.outer {
		for h := &rec.holds; h != nil; h = h.more {
			if x := h.permit.from; x != nil && x.l == l {
				return true
			}
		}
	}
	return false
}

func (h *holds) addCall(x callHold) {
	if h.call.layer != nil {
		h.more = &holds{call: h.call, more: h.more}
	}
	h.call = x
}

// takeCall forgets the newest call of a layer, which is to be reported, and returns it.
func (h *holds) takeCall(layer *breakerHandler) (x callHold) {
	for ; h != nil; h = h.more {
		if h.call.layer == layer {
			x, h.call = h.call, x
			break
		}
	}
	return x
}

// waits tells the breakers that the request has come to a layer of ours where it may have to wait, and goesOn that it has waited
// since then: being full is no slowness of the handler. The time is that since the start, which the recorders have in common, and 0 if no breaker
// asks for it. It is read by the innermost: no other knows that foreign code has not run since it last read one.
func (rec *recorder) waits() (since time.Duration) {
	for at := rec; at != nil; at = at.beyond() {
		if !at.wantFirst || at.hasFirst { // it is known what the handler took, or nobody wants to know
			continue
		}
		if since == 0 {
			since = max(rec.now().Sub(rec.start), 1)
		}
		for h := &at.holds; h != nil; h = h.more {
			h.call.call = h.call.call.Wait()
		}
	}
	return since
}

func (rec *recorder) goesOn(since time.Duration) {
	if since == 0 {
		return
	}
	rec.fresh = false
	waited := rec.now().Sub(rec.start) - since
	for ; rec != nil; rec = rec.beyond() {
		for h := &rec.holds; rec.wantFirst && !rec.hasFirst && h != nil; h = h.more {
			h.call.begun += waited
			h.call.call = h.call.call.Begin(rec.start.Add(h.call.begun))
		}
	}
}

// client says whether the client is there: the contexts of its request have not ended.
func (h *holds) client() presence {
	p := clientUnknown
	for ; h != nil; h = h.more {
		if r := h.call.request; r != nil {
			if r.Context().Err() != nil {
				return clientGone
			}
			p = clientThere
		}
	}
	return p
}

// hasCall says that the request, or the one for which this is a fill of the cache, has been let through by the breaker
// of the key.
func (rec *recorder) hasCall(g *breaker.Group, key string) bool {
	for ; rec != nil; rec = rec.outer {
		for h := &rec.holds; h != nil; h = h.more {
			if x := &h.call; x.layer != nil && x.layer.group == g && x.layer.key(rec, x.request) == key {
				return true
			}
		}
	}
	return false
}

func (h *holds) addSlot(s pool.Slot) {
	if h.slot != (pool.Slot{}) {
		h.more = &holds{slot: h.slot, more: h.more}
	}
	h.slot = s
}

// dropSlot forgets a slot that is given back.
func (h *holds) dropSlot(s pool.Slot) {
	for ; s != (pool.Slot{}) && h != nil; h = h.more {
		if h.slot == s {
			h.slot = pool.Slot{}
			return
		}
		if x := h.permit.from; x != nil && x.wait != nil && x.wait.slot == s {
			h.permit.drop()
			return
		}
	}
}

// becameLong is called before what k tells happens.
func (h *holds) becameLong(rec *recorder, k streamKind) {
	for ; h != nil; h = h.more {
		if x := &h.permit; x.from != nil {
			x.from.becameLong(rec, x, k)
		}
		if x := &h.call; x.layer != nil {
			x.layer.becameLong(rec, x, k)
		}
		if k.lasts() {
			h.slot.Leave() // what only stays open needs no CPU slot meanwhile
			h.slot = pool.Slot{}
		}
	}
}

// answered tells the breakers that the first byte of the final response goes out.
func (h *holds) answered() {
	for ; h != nil; h = h.more {
		if h.call.layer != nil {
			h.call.call.Answered()
		}
	}
}
