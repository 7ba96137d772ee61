package jobs_test

import (
	"context"
	"runtime"
	"syscall"
	"testing"

	"github.com/spillgate/spillgate/pool"
	"github.com/spillgate/spillgate/pool/jobs"
)

// With Overcommit and WithNice a job that runs in the slot of one that waits for it is as nice as others are.
func TestJobInTheSlotOfAnotherIsNice(t *testing.T) {
	const nice = 10
	niceness := func(context.Context, args) (int, error) {
		n, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0) // of this thread
		return 20 - n, err                                     // what the kernel returns
	}
	runtime.LockOSThread()
	before, err := niceness(t.Context(), args{})
	runtime.UnlockOSThread()
	if err != nil || before >= nice {
		t.Skip("this process is as nice as it gets already")
	}
	p := pool.New()
	x, err := pool.Overcommit(p, pool.WithNice(nice), pool.WithThreads(1))
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	m := jobs.NewMux()
	l := jobs.NewLocal(m, p)
	defer l.Close()
	jobs.Register(m, "k", niceness)
	jobs.Register(m, "parent", func(ctx context.Context, _ args) (string, error) {
		j, _, err := l.Submit(ctx, "k", []byte(`{}`), jobs.SubmitOptions{})
		if err == nil {
			j, err = end(ctx, l, j.ID)
		}
		return string(j.Result), err
	})
	for range 10 {
		j, _, err := l.Submit(t.Context(), "parent", []byte(`{}`), jobs.SubmitOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if j = final(t, l, j.ID); string(j.Result) != `"10"` {
			t.Fatalf("its niceness is %s, want %d: %s", j.Result, nice, j.Err)
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if n, err := niceness(t.Context(), args{}); err != nil || n != before {
		t.Errorf("a thread was left at niceness %d, %v", n, err)
	}
}
