package pool_test

import (
	"context"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"github.com/spillgate/spillgate/pool"
)

// niceness returns that of the calling thread, which the caller has locked.
func niceness(t *testing.T) int {
	n, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0)
	if err != nil {
		t.Error(err)
	}
	return 20 - n // what the kernel returns
}

// TestNiceStaysOnItsThreads holds that niceness, which an unprivileged process cannot take
// back, is on the threads of tasks only and ends with them.
func TestNiceStaysOnItsThreads(t *testing.T) {
	runtime.LockOSThread()
	before := niceness(t)
	runtime.UnlockOSThread()
	if before > 9 {
		t.Skip("this process is as nice as it gets already")
	}
	p := pool.New()
	x, err := pool.Overcommit(p, pool.WithNice(10), pool.WithThreads(4))
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	ctx := context.Background()
	for range 20 {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				n, err := pool.Submit(ctx, p, func(context.Context) (int, error) { return niceness(t), nil }).Wait(ctx)
				if n != 10 || err != nil {
					t.Errorf("a submitted task ran at niceness %d, %v", n, err)
				}
			})
			wg.Go(func() {
				err := p.Do(ctx, func(context.Context) error {
					if n := niceness(t); n != before {
						t.Errorf("a task on its caller's goroutine ran at niceness %d, want %d", n, before)
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	x.Close()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			if n := niceness(t); n != before {
				t.Errorf("a thread was left at niceness %d", n)
			}
		})
	}
	wg.Wait()
}

// Another goroutine may give a slot back before, as one that flushes an event stream does: the task's own is unlocked when it does so itself, once.
func TestLeaveOnAnotherGoroutine(t *testing.T) {
	p := pool.New()
	x, err := pool.Overcommit(p, pool.WithThreads(2))
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	for range 3 {
		_, slot, err := p.Enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			runtime.LockOSThread() // one of its own, which is not to be taken back
			slot.Leave()
			if !locked() {
				t.Error("another goroutine was unlocked")
			}
		})
		wg.Wait()
		if n := p.Stats().Used; n != 0 {
			t.Errorf("%d slots used, want none", n)
		}
		slot.Leave()
		if locked() {
			t.Fatal("locked to a thread after the task")
		}
		runtime.LockOSThread()
		slot.Leave()
		if !locked() {
			t.Error("unlocked twice")
		}
		runtime.UnlockOSThread()
	}
}
