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
// hijacked, switched protocols, began to stream, or waits for a pool.
type holds struct {
	permit permitHold
	call   callHold
	slot   slotHold
}

type permitHold struct {
	layer  *concurrencyHandler
	permit limiter.Permit
	long   bool // it becomes long-lived with its first Flush
	next   *permitHold
}

type callHold struct {
	layer   *breakerHandler
	call    breaker.Call
	begun   time.Duration // since the recorder's start
	request *http.Request // what the breaker passed on, for when it has to judge before the end
	next    *callHold
}

type slotHold struct {
	slot pool.Slot
	held bool
	next *slotHold
}

func (h *holds) addPermit(x permitHold) {
	if h.permit.layer != nil {
		first := h.permit
		x.next = &first
	}
	h.permit = x
}

func (h *holds) addCall(x callHold) {
	if h.call.layer != nil {
		first := h.call
		x.next = &first
	}
	h.call = x
}

func (h *holds) addSlot(s pool.Slot) {
	x := slotHold{slot: s, held: true}
	if h.slot.held {
		first := h.slot
		x.next = &first
	}
	h.slot = x
}

// becameLong is called before what k tells happens.
func (h *holds) becameLong(rec *recorder, k streamKind) {
	for x := &h.permit; x != nil && x.layer != nil; x = x.next {
		x.layer.becameLong(x, k)
	}
	for x := &h.call; x != nil && x.layer != nil; x = x.next {
		x.layer.becameLong(rec, x, k)
	}
	for x := &h.slot; x != nil && x.held; x = x.next {
		if k == streamEvents || k == streamSwitch {
			x.slot.Leave() // a connection that stays open needs no CPU slot meanwhile
		}
	}
}

// answered tells the breakers that the first byte of the final response goes out.
func (h *holds) answered(now time.Time) {
	for x := &h.call; x != nil && x.layer != nil; x = x.next {
		x.call.AnsweredAt(now)
	}
}
