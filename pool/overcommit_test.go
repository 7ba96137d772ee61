package pool_test

import (
	"bytes"
	"context"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/pool"
)

// locked reports whether the goroutine that calls it is locked to its thread.
func locked() bool {
	b := make([]byte, 100)
	line, _, _ := bytes.Cut(b[:runtime.Stack(b, false)], []byte("\n"))
	return bytes.Contains(line, []byte("locked to thread"))
}

// Whatever way work comes to a pool, it has a thread of its own under Overcommit, for as long as it runs.
func TestTasksAreLockedToThreads(t *testing.T) {
	for name, run := range ways {
		for _, waits := range []bool{false, true} {
			if waits {
				name += ", after a wait"
			}
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := pool.New()
					look := func(want bool) {
						if waits {
							time.AfterFunc(time.Second, full(p))
						}
						err := run(context.Background(), p, func(context.Context) error {
							if locked() != want {
								t.Errorf("locked to a thread: %v, want %v", !want, want)
							}
							return nil
						})
						if err != nil {
							t.Error(err)
						}
						if locked() {
							t.Error("locked to a thread after the task")
						}
					}
					x, err := pool.Overcommit(p, pool.WithThreads(1))
					if err != nil {
						t.Fatal(err)
					}
					defer x.Close()
					look(true)
					x.Close()
					look(false)
				})
			})
		}
	}
	t.Run("helpers of Map", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pool.New()
			x, err := pool.Overcommit(p, pool.WithThreads(3))
			if err != nil {
				t.Fatal(err)
			}
			defer x.Close()
			pool.Map(context.Background(), p, make([]int, 3), func(context.Context, int) (int, error) {
				time.Sleep(time.Second) // in a synctest bubble
				if !locked() {
					t.Error("not locked to a thread")
				}
				return 0, nil
			})
		})
	})
}

// GOMAXPROCS is found anew once a minute where the runtime had chosen it, left alone where somebody else had, and given back to
// whoever it was.
func TestOvercommitFollowsTheCores(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	runtime.SetDefaultGOMAXPROCS()
	cores := runtime.GOMAXPROCS(0)
	check := func(t *testing.T, when string, want int) {
		t.Helper()
		if n := runtime.GOMAXPROCS(0); n != want {
			t.Errorf("%s: GOMAXPROCS is %d, want %d", when, n, want)
		}
	}
	for name, c := range map[string]struct{ before, open, later, after int }{
		"the runtime's choice": {cores, 2 * cores, 2 * cores, cores},
		"by hand":              {cores + 3, 2 * (cores + 3), 1, cores + 3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				runtime.SetDefaultGOMAXPROCS()
				if c.before != cores {
					runtime.GOMAXPROCS(c.before)
				}
				p := pool.New()
				x, err := pool.Overcommit(p)
				if err != nil {
					t.Fatal(err)
				}
				defer x.Close()
				check(t, "open", c.open)
				for range 2 {
					runtime.GOMAXPROCS(1)
					time.Sleep(61 * time.Second) // in a synctest bubble
					check(t, "a minute later", c.later)
					if n := p.Slots(); n != c.before {
						t.Errorf("%d slots, want one for each of %d cores", n, c.before)
					}
				}
				x.Close()
				check(t, "closed", c.after)
				runtime.GOMAXPROCS(cores + 5)
				x.Close()
				time.Sleep(2 * time.Minute) // in a synctest bubble
				check(t, "long closed", cores+5)
				if n := p.Slots(); n != cores+4 {
					t.Errorf("%d slots, want what follows from GOMAXPROCS=%d again", n, cores+5)
				}
			})
		})
	}
}

// The number of slots that was set is the same before and after, and what is not set follows GOMAXPROCS.
func TestSlotsThatWereSetStay(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for name, c := range map[string]struct {
		pool func() *pool.Pool
		want int
	}{
		"WithSlots": {func() *pool.Pool { return pool.New(pool.WithSlots(7)) }, 7},
		"Resize": {func() *pool.Pool {
			p := pool.New()
			if err := p.Resize(7); err != nil {
				t.Error(err)
			}
			return p
		}, 7},
		"neither": {func() *pool.Pool { return pool.New() }, 5},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				runtime.GOMAXPROCS(4)
				p := c.pool()
				runtime.GOMAXPROCS(6)
				time.Sleep(2 * time.Second) // in a synctest bubble
				if n := p.Slots(); n != c.want {
					t.Errorf("%d slots, want %d", n, c.want)
				}
				x, err := pool.Overcommit(p, pool.WithThreads(3))
				if err != nil {
					t.Fatal(err)
				}
				defer x.Close()
				time.Sleep(2 * time.Second) // in a synctest bubble
				if n := p.Slots(); n != 3 {
					t.Errorf("%d slots while Overcommit decides, want 3", n)
				}
				x.Close()
				if n := p.Slots(); n != c.want {
					t.Errorf("%d slots after it, want %d", n, c.want)
				}
			})
		})
	}
}
