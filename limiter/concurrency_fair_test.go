package limiter_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/limiter"
)

// concCrowd is requests that ask for a permit of c one after the other, and what became of them.
type concCrowd struct {
	c    *limiter.Concurrency
	hold time.Duration // how long each keeps its permit

	wg      sync.WaitGroup
	mu      sync.Mutex
	served  []string // may be read when wg is done
	refused map[string]error
	waited  map[string]time.Duration // of those that were served
}

// concCrowdOf belongs in a bubble, which ends when all of the crowd have done.
func concCrowdOf(t *testing.T, c *limiter.Concurrency, hold time.Duration) *concCrowd {
	q := &concCrowd{c: c, hold: hold, refused: map[string]error{}, waited: map[string]time.Duration{}}
	t.Cleanup(q.wg.Wait)
	return q
}

// join lets one more ask, and returns when that waits or is at work.
func (q *concCrowd) join(ctx context.Context, name string, r limiter.Request) {
	q.wg.Go(func() {
		start := time.Now()
		p, err := q.c.Acquire(ctx, r)
		q.mu.Lock()
		if err != nil {
			q.refused[name] = err
		} else {
			q.served = append(q.served, name)
			q.waited[name] = time.Since(start)
		}
		q.mu.Unlock()
		if err == nil {
			time.Sleep(q.hold) // in a synctest bubble
			p.Release(limiter.Success)
		}
	})
	synctest.Wait()
}

// last is who was served last.
func (q *concCrowd) last() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.served[len(q.served)-1]
}

// Clients that have had as much are served in the order they came.
func TestConcurrencyClientsInOrderOfArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(1, limiter.WithQueue(100, time.Minute))
		p := concMust(t, c, limiter.Request{})
		q := concCrowdOf(t, c, 10*time.Millisecond)
		var want []string
		for i := range 8 {
			want = append(want, strconv.Itoa(i))
			q.join(t.Context(), want[i], limiter.Request{Client: want[i]})
		}
		p.Release(limiter.Success)
		q.wg.Wait()
		if !slices.Equal(q.served, want) {
			t.Errorf("served %q\nwant   %q", q.served, want)
		}
	})
}

// New clients that keep coming, more of them than can be served, keep nobody waiting who came before them.
func TestConcurrencyNewClientsStarveNobody(t *testing.T) {
	const service = 10 * time.Millisecond
	for _, k := range []struct {
		name   string
		client func(i int) string // of the i-th of the twenty that came first
		most   time.Duration      // any of them may wait
	}{
		{"twenty that have had nothing", func(i int) string { return "old" + strconv.Itoa(i) }, 20 * service},
		{"ten that have been served", func(i int) string { return "old" + strconv.Itoa(i%10) }, 40 * service},
	} {
		t.Run(k.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := limiter.NewConcurrency(1, limiter.WithQueue(100, 2*time.Second))
				p := concMust(t, c, limiter.Request{})
				q := concCrowdOf(t, c, service)
				var old []string
				for i := range 20 {
					old = append(old, "old request "+strconv.Itoa(i))
					q.join(t.Context(), old[i], limiter.Request{Client: k.client(i)})
				}
				p.Release(limiter.Success)
				for i := range 600 {
					time.Sleep(service * 9 / 10) // in a synctest bubble
					name := "new" + strconv.Itoa(i)
					q.join(t.Context(), name, limiter.Request{Client: name})
				}
				q.wg.Wait()
				for _, name := range old {
					if err := q.refused[name]; err != nil || q.waited[name] > k.most {
						t.Errorf("%s: waited %v, refused with %v; want at most %v", name, q.waited[name], err, k.most)
					}
				}
			})
		})
	}
}

// A client of which somebody always waits is next again after a round, although every other one in the line has
// never been seen before.
func TestConcurrencyNextAfterARound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const others, service = 9, 10 * time.Millisecond
		c := limiter.NewConcurrency(1, limiter.WithQueue(1000, time.Hour))
		p := concMust(t, c, limiter.Request{})
		q := concCrowdOf(t, c, service)
		n := 0
		fresh := func() {
			n++
			q.join(t.Context(), "fresh", limiter.Request{Client: strconv.Itoa(n)})
		}
		for range 100 {
			q.join(t.Context(), "regular", limiter.Request{Client: "regular"})
		}
		for range others {
			fresh()
		}
		p.Release(limiter.Success)
		for since := 0; n < 400; time.Sleep(service) { // in a synctest bubble
			synctest.Wait()
			if q.last() == "regular" {
				since = 0
				continue
			}
			fresh()
			most := others + 1
			if n < 4*others {
				most *= 2 // what work costs is known when the first has done
			}
			if since++; since > most {
				t.Fatalf("%d new clients were served in a row with %d in the line", since, others)
			}
		}
	})
}

// Debts end when nobody waits: what a client once had makes it no worse off later.
func TestConcurrencyDebtsEnd(t *testing.T) {
	for _, k := range []struct {
		name  string
		waits bool // somebody does when the long work ends
		leave bool // and leaves
	}{
		{"the long work ends while somebody waits", true, false},
		{"who waits meanwhile leaves", true, true},
		{"the long work ends when nobody does", false, false},
	} {
		t.Run(k.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const service = 10 * time.Millisecond
				c := limiter.NewConcurrency(2, limiter.WithQueue(100, time.Hour))
				a, b := concMust(t, c, limiter.Request{}), concMust(t, c, limiter.Request{})
				long := concCrowdOf(t, c, 10*time.Minute)
				long.join(t.Context(), "long", limiter.Request{Client: "honest"})
				a.Release(limiter.Success)
				if !k.waits {
					b.Release(limiter.Success)
				}
				time.Sleep(9 * time.Minute) // in a synctest bubble
				q := concCrowdOf(t, c, service)
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				if k.waits {
					q.join(ctx, "short", limiter.Request{Client: "other"})
				}
				if k.leave {
					c.SetLimit(1)
				}
				long.wg.Wait()
				if k.leave {
					leave()
				}
				q.wg.Wait()
				if err := q.refused["short"]; (err != nil) != k.leave {
					t.Fatal(err)
				}
				c.SetLimit(2)
				b.Release(limiter.Success)
				time.Sleep(time.Hour) // in a synctest bubble

				a, b = concMust(t, c, limiter.Request{}), concMust(t, c, limiter.Request{})
				q = concCrowdOf(t, c, service)
				var want []string
				for range 10 {
					for _, name := range []string{"flood", "honest"} {
						q.join(t.Context(), name, limiter.Request{Client: name})
						want = append(want, name)
					}
				}
				a.Release(limiter.Success)
				q.wg.Wait()
				if !slices.Equal(q.served, want) {
					t.Errorf("served %q\nwant   %q", q.served, want)
				}
				b.Release(limiter.Success)
			})
		})
	}
}

// Shares stay even for as long as work goes on, also where a weight is a number of bytes.
func TestConcurrencyHeavyStaysFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(1<<30, limiter.WithQueue(100, time.Second))
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var n [2]atomic.Int64
		for i, name := range []string{"a", "b"} {
			for range 10 {
				wg.Go(func() {
					for ctx.Err() == nil {
						p, err := c.Acquire(ctx, limiter.Request{Client: name, Weight: 256 << 20})
						if err != nil {
							return
						}
						time.Sleep(100 * time.Millisecond) // in a synctest bubble
						n[i].Add(1)
						p.Release(limiter.Success)
					}
				})
			}
		}
		var last [2]int64
		for range 18 {
			time.Sleep(10 * time.Second) // in a synctest bubble
			a, b := n[0].Load()-last[0], n[1].Load()-last[1]
			last = [2]int64{n[0].Load(), n[1].Load()}
			if a+b < 390 || max(a, b)-min(a, b) > 8 {
				t.Errorf("in ten seconds a was served %d times, b %d times, want 400 in all and half of them each", a, b)
			}
		}
		stop()
		wg.Wait()
	})
}

// As many clients as WithClients says have a share each; beyond it they have shares together.
func TestConcurrencyClientsBeyondTheBoundShare(t *testing.T) {
	const clients = 40
	for bound, want := range map[int]struct{ least, most int }{clients: {clients, clients}, 1: {1, 30}} {
		t.Run(strconv.Itoa(bound), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := limiter.NewConcurrency(1, limiter.WithQueue(2*clients, time.Minute), limiter.WithClients(bound))
				p := concMust(t, c, limiter.Request{})
				q := concCrowdOf(t, c, time.Millisecond)
				for i := range clients {
					for range 2 {
						q.join(t.Context(), strconv.Itoa(i), limiter.Request{Client: strconv.Itoa(i)})
					}
				}
				p.Release(limiter.Success)
				q.wg.Wait()
				round := slices.Clone(q.served[:clients])
				slices.Sort(round)
				// Of at most 17 records each has two turns or three in that time, and two are those of one client.
				if n := len(slices.Compact(round)); n < want.least || n > want.most {
					t.Errorf("%d clients had something in the first %d turns, want %d to %d", n, clients, want.least, want.most)
				}
			})
		})
	}
}

// Clients that were refused in advance leave the records to those who wait.
func TestConcurrencyRefusedKeepNoRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const clients = 20 // more than the records that those share who have none of their own
		c := limiter.NewConcurrency(1, limiter.WithQueue(100, time.Minute), limiter.WithClients(clients))
		q := concCrowdOf(t, c, 100*time.Millisecond)
		for range 20 {
			q.join(t.Context(), "", limiter.Request{})
		}
		time.Sleep(1050 * time.Millisecond) // in a synctest bubble: ten are done, nine wait
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		for i := range clients {
			name := "short" + strconv.Itoa(i)
			q.join(ctx, name, limiter.Request{Client: name})
			if !errors.Is(q.refused[name], limiter.ErrWouldMissDeadline) {
				t.Fatalf("%s: %v", name, q.refused[name])
			}
		}
		time.Sleep(time.Minute) // in a synctest bubble

		p := concMust(t, c, limiter.Request{})
		q = concCrowdOf(t, c, 0)
		var want []string
		for i := range clients {
			want = append(want, strconv.Itoa(i))
			for range 2 {
				q.join(t.Context(), want[i], limiter.Request{Client: want[i]})
			}
		}
		p.Release(limiter.Success)
		q.wg.Wait()
		if got := q.served[:clients]; !slices.Equal(got, want) {
			t.Errorf("in the first round %q were served\nwant %q", got, want)
		}
	})
}

// What is shared is the time of permits: a client whose requests weigh twice as much has half as many of them served.
func TestConcurrencySharesByWeight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := limiter.NewConcurrency(2, limiter.WithQueue(100, time.Minute))
		ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
		defer stop()
		var n [2]atomic.Int64
		for i, name := range []string{"light", "heavy"} {
			for range 10 {
				go func() {
					for ctx.Err() == nil {
						p, err := c.Acquire(ctx, limiter.Request{Client: name, Weight: 1 + i})
						if err != nil {
							return
						}
						time.Sleep(10 * time.Millisecond) // in a synctest bubble
						n[i].Add(1)
						p.Release(limiter.Success)
					}
				}()
			}
		}
		<-ctx.Done()
		time.Sleep(time.Second) // in a synctest bubble
		if r := float64(n[0].Load()) / float64(n[1].Load()); r < 1.9 || r > 2.1 {
			t.Errorf("at half of the weight %.2f times as often, want 2", r)
		}
	})
}
