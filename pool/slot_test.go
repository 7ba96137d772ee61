package pool

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"
)

// What a task has left running may be at a Checkpoint when the task ends.
func TestLeaveDuringCheckpoint(t *testing.T) {
	p := New(WithSlots(2))
	var current atomic.Pointer[slot]
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			for range 1000 { // a Checkpoint that finds nobody to give way to
				if s := current.Load(); s != nil && s.move(slotHeld, slotYielded) {
					s.resume()
				}
			}
		}
	}()
	for range 50_000 {
		s := p.try(nil, context.Background(), &task{weight: 1})
		if s == nil { // the other goroutine has not found out yet that the slots were left
			runtime.Gosched()
			continue
		}
		current.Store(s)
		for range 100 { // until the other goroutine is at it
			s.isHeld()
		}
		s.leave()
		if s.isHeld() {
			t.Fatal("the task is over and its slot is still taken")
		}
	}
	close(stop)
	<-stopped
	if n := p.line.Stats().InFlight; n != 0 {
		t.Errorf("%d slots are taken, want none", n)
	}
}
