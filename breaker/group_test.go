package breaker_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/breaker"
)

func TestO1MillionHostsStayInBoundsAndOpenOnesSurvive(t *testing.T) {
	hosts := 1_000_000
	if raceEnabled {
		hosts = 100_000
	}
	synctest.Test(t, func(t *testing.T) {
		g := breaker.NewGroup()
		for i := range 100 {
			trip(t, g.Get("failing"+strconv.Itoa(i)))
		}
		g.Get("forced").ForceOpen()
		busy := g.Get("busy")
		for i := range hosts {
			if call, err := g.Get("host" + strconv.Itoa(i)).Allow(); err == nil {
				call.Done(breaker.Success, 0)
			}
			if i%50 == 0 && g.Get("busy") != busy {
				t.Fatalf("a breaker in use gave way to the %dth new key", i)
			}
		}
		if s := g.Stats(); s.Keys != 1024 || s.Open != 101 || s.Untracked != 0 || s.Forgotten != 0 {
			t.Errorf("after the flood: %+v", s)
		}
		for i := range 100 {
			if s := g.Get("failing" + strconv.Itoa(i)).State(); s != breaker.Open {
				t.Fatalf("the flood closed failing%d: %v", i, s)
			}
		}
		if s := g.Get("forced").State(); s != breaker.ForcedOpen {
			t.Errorf("forced is %v", s)
		}
	})
}

func TestO1MemoryOfAKey(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	keys := make([]string, 1024)
	for i := range keys {
		keys[i] = "some.host.example:" + strconv.Itoa(10000+i)
	}
	for _, c := range []struct {
		name string
		most uint64
		opts []breaker.GroupOption
	}{
		{"defaults", 1024, nil},
		{"slow calls", 1344, []breaker.GroupOption{breaker.WithSlowCalls(2*time.Second, 0.8)}},
	} {
		before := heap()
		g := breaker.NewGroup(c.opts...)
		for _, k := range keys {
			call, _ := g.Get(k).Allow()
			call.Done(breaker.Success, 0)
		}
		if n := (heap() - before) / 1024; n > c.most && !raceEnabled {
			t.Errorf("%s: %d bytes a key, want at most %d", c.name, n, c.most)
		} else {
			t.Logf("%s: %d bytes a key", c.name, n)
		}
		runtime.KeepAlive(g)
	}
	runtime.KeepAlive(keys)
}

func TestO1NobodyGivesWayWhenAllAreOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := breaker.NewGroup(breaker.WithKeys(8), breaker.WithIdle(time.Minute))
		for i := range 8 {
			trip(t, g.Get("failing"+strconv.Itoa(i)))
		}
		for i := range 1000 {
			call, err := g.Get("new" + strconv.Itoa(i)).Allow()
			if err != nil {
				t.Fatal("a key with no place is refused:", err)
			}
			call.Done(breaker.Failure, 0)
		}
		if s := g.Stats(); s.Untracked != 1000 || s.Keys != 8 || s.Open != 8 {
			t.Errorf("%+v", s)
		}
		// What all of these share is nobody's to change.
		shared := g.Get("new")
		shared.ForceOpen()
		shared.Reset()
		if err := shared.Set(breaker.WithProbes(2)); err == nil || shared.State() != breaker.Disabled {
			t.Errorf("a key with no place was given the state %v, %v", shared.State(), err)
		}
		// They leave when their open time has been over for long and nobody came to try.
		time.Sleep(30 * time.Second) // in a synctest bubble
		g.Get("failing0")            // but one did
		g.Get("x")
		time.Sleep(37 * time.Second) // in a synctest bubble
		g.Get("y")
		if s := g.Stats(); s.Forgotten == 0 || s.Untracked != 1002 {
			t.Errorf("%+v", s)
		}
		if s := g.Get("failing0").State(); s == breaker.Closed {
			t.Errorf("failing0 was asked for and forgotten")
		}
	})
}

// Of a large group a part is looked at for each new key: that nearly every key is failing must not have all new ones wait for each
// other while the whole of it is gone over again and again.
func TestO1OfManyKeysAPartIsLookedAt(t *testing.T) {
	const keys = 10_000
	synctest.Test(t, func(t *testing.T) {
		g := breaker.NewGroup(breaker.WithKeys(keys), breaker.WithConsecutiveFailures(1), breaker.WithOpenTime(time.Hour, time.Hour))
		for i := range keys {
			call, _ := g.Get(strconv.Itoa(i)).Allow()
			if i < keys-1 {
				call.Done(breaker.Failure, 0)
			}
		}
		g.Get("first")
		for range 10 {
			if b := g.Get("second"); b.State() != breaker.Disabled {
				t.Fatalf("the one place that can be given up was found at once, far from where the hand is: %+v", g.Stats())
			}
		}
		for range keys/4096 + 1 {
			time.Sleep(100 * time.Millisecond) // in a synctest bubble
			g.Get("second")
		}
		if s := g.Get("second").State(); s != breaker.Closed {
			t.Errorf("the one place that can be given up was not found: %+v", g.Stats())
		}
	})
	synctest.Test(t, func(t *testing.T) { // all are in use, and none is failing
		g := breaker.NewGroup(breaker.WithKeys(keys))
		for range 2 {
			for i := range keys {
				g.Get(strconv.Itoa(i))
			}
		}
		for i := range 100 {
			g.Get("new" + strconv.Itoa(i))
		}
		if s := g.Stats(); s.Untracked != 0 || s.Evicted != 100 {
			t.Errorf("new keys found no place though none is failing: %+v", s)
		}
	})
}

// Who reads Stats lets an open time that is over pass, and must not have a key forgotten any sooner for it.
func TestO1AHalfOpenBreakerIsForgottenAfterWithIdleOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := breaker.NewGroup(breaker.WithKeys(1), breaker.WithIdle(time.Minute), breaker.WithOpenTime(time.Hour, time.Hour), breaker.WithJitter(0))
		trip(t, g.Get("failing"))
		time.Sleep(time.Hour + time.Second) // in a synctest bubble
		for _, b := range g.All() {
			if s := b.Stats().State; s != breaker.HalfOpen {
				t.Fatal(s)
			}
		}
		g.Get("new")
		if s := g.Stats(); s.Forgotten != 0 {
			t.Error("forgotten a second after its open time")
		}
		time.Sleep(time.Minute) // in a synctest bubble
		g.Get("new")
		if s := g.Stats(); s.Forgotten != 1 {
			t.Error("not forgotten a minute later")
		}
	})
}

func TestO1KeysInUseStayWhileOthersComeAndGo(t *testing.T) {
	g := breaker.NewGroup(breaker.WithKeys(11))
	var used [5]*breaker.Breaker
	for i := range 1000 {
		for k := range used {
			b := g.Get("used " + strconv.Itoa(k))
			if i > 0 && b != used[k] {
				t.Fatalf("forgotten after %d other keys", i)
			}
			used[k] = b
		}
		g.Get(strconv.Itoa(i))
	}
}

// What somebody forced is forgotten by nobody but Reset.
func TestO1AForcedBreakerStays(t *testing.T) {
	for name, force := range map[string]func(*breaker.Breaker){
		"open": (*breaker.Breaker).ForceOpen, "closed": (*breaker.Breaker).ForceClosed, "disabled": (*breaker.Breaker).Disable,
	} {
		synctest.Test(t, func(t *testing.T) {
			g := breaker.NewGroup(breaker.WithKeys(2), breaker.WithIdle(time.Second))
			forced := g.Get("forced")
			force(forced)
			for i := range 100 {
				time.Sleep(time.Minute) // in a synctest bubble
				g.Get(strconv.Itoa(i))
			}
			if g.Get("forced") != forced {
				t.Errorf("forced %s, and forgotten", name)
			}
		})
	}
}

func TestIdleOnesExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := breaker.NewGroup(breaker.WithIdle(time.Minute))
		for i := range 100 {
			g.Get(strconv.Itoa(i))
		}
		for range 60 { // a key in use, and a new one now and then
			time.Sleep(10 * time.Second) // in a synctest bubble
			g.Get("used")
			g.Get("now " + time.Now().String())
		}
		s := g.Stats()
		if s.Expired < 100 || s.Keys > 20 || s.Evicted != 0 {
			t.Errorf("after ten minutes: %+v", s)
		}
	})
}

func TestO1LongKeysAreKeptShort(t *testing.T) {
	g := breaker.NewGroup()
	long := strings.Repeat("k", 1<<20)
	a, b, c := g.Get(long+"a"), g.Get(long+"b"), g.Get(strings.Repeat("k", 256))
	if a == b || a == c || a != g.Get(long+"a") || c != g.Get(strings.Repeat("k", 256)) {
		t.Error("long keys are mixed up")
	}
	for key := range g.All() {
		if len(key) > 256 {
			t.Errorf("a key of %d bytes is kept", len(key))
		}
	}
}

// Whatever happens, no breaker that is open within its time is forgotten, and there are never more
// than the limit.
func TestO1AnyScheduleOfKeys(t *testing.T) {
	for seed := range uint64(50) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 7))
			limit := 4 + r.IntN(12)
			g := breaker.NewGroup(breaker.WithKeys(limit), breaker.WithIdle(time.Duration(1+r.IntN(60))*time.Second),
				breaker.WithConsecutiveFailures(1), breaker.WithJitter(0))
			open := map[string]time.Time{} // until when it is open
			for range 2000 {
				key := strconv.Itoa(r.IntN(3 * limit))
				b := g.Get(key)
				until, tripped := open[key]
				if call, err := b.Allow(); err == nil {
					if tripped && time.Now().Before(until) {
						t.Fatalf("seed %d: %s is open and let a call pass", seed, key)
					}
					o := breaker.Outcome(r.IntN(3))
					call.Done(o, 0)
					delete(open, key)
					if d := b.RetryAfter(); d > 0 && b.State() == breaker.Open {
						open[key] = time.Now().Add(d)
					}
				} else if open, ok := errors.AsType[*breaker.OpenError](err); !ok || open.Name != key {
					t.Fatalf("seed %d: %s is refused with %v", seed, key, err)
				}
				if s := g.Stats(); s.Keys > limit {
					t.Fatalf("seed %d: %d keys of %d", seed, s.Keys, limit)
				}
				if r.IntN(3) == 0 {
					time.Sleep(time.Duration(r.IntN(2000)) * time.Millisecond) // in a synctest bubble
				}
			}
			s := g.Stats()
			if seed == 0 {
				t.Logf("%+v", s)
			}
		})
	}
}

func TestGroupSetReachesAll(t *testing.T) {
	g := breaker.NewGroup(breaker.WithKeys(10))
	for i := range 10 {
		g.Get(strconv.Itoa(i))
	}
	if err := g.Set(breaker.WithKeys(3), breaker.WithProbes(9)); err != nil {
		t.Fatal(err)
	}
	g.Get("new")
	if s := g.Stats(); s.Keys != 3 || s.Limit != 3 {
		t.Errorf("%+v", s)
	}
	n := 0
	for key, b := range g.All() {
		s := b.Stats()
		if s.Settings.Probes != 9 || s.Name != key {
			t.Errorf("%s: %+v", key, s)
		}
		n++
	}
	if n != 3 {
		t.Errorf("All has %d, want 3", n)
	}
	for range g.All() {
		break
	}
}

func TestGroupOfManyGoroutines(t *testing.T) {
	g := breaker.NewGroup(breaker.WithKeys(16), breaker.WithConsecutiveFailures(3))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 0))
			for range 2000 {
				b := g.Get(strconv.Itoa(r.IntN(40)))
				if call, err := b.Allow(); err == nil {
					call.Done(breaker.Outcome(r.IntN(3)), 0)
				}
				if r.IntN(100) == 0 {
					g.Set(breaker.WithKeys(8 + r.IntN(16)))
					g.Stats()
				}
			}
		})
	}
	wg.Wait()
	g.Set(breaker.WithKeys(32))
	if s := g.Stats(); s.Keys > 32 {
		t.Errorf("%+v", s)
	}
	n := 0
	for range g.All() {
		n++
	}
	if s := g.Stats(); s.Keys != n {
		t.Errorf("%d keys counted, %d there", s.Keys, n)
	}
}

func TestBreakerOfManyGoroutines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(breaker.WithWindow(time.Second), breaker.WithSlowCalls(100*time.Millisecond, 0.5), breaker.WithMinClients(2),
			breaker.WithOpenTime(50*time.Millisecond, 200*time.Millisecond), breaker.WithRamp(time.Second), breaker.WithLease(100*time.Millisecond))
		var probes, most int
		start := time.Now()
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(uint64(i), 3))
				for range 3000 {
					time.Sleep(time.Duration(r.IntN(5)) * time.Millisecond) // in a synctest bubble
					call, err := b.Admit(breaker.Request{Client: r.Uint64(), Long: r.IntN(10) == 0})
					if err != nil {
						if !errors.Is(err, breaker.ErrOpen) {
							t.Error(err)
						}
						continue
					}
					mu.Lock()
					probes = b.Stats().ProbesOut
					most = max(most, probes)
					mu.Unlock()
					switch d := time.Duration(r.IntN(300)) * time.Millisecond; r.IntN(8) {
					case 0: // lost
					case 1:
						go func() { time.Sleep(d); call.Done(breaker.Failure, -1) }() // in a synctest bubble
					case 2:
						go func() { time.Sleep(d); call.Done(breaker.Ignored, -1) }() // in a synctest bubble
					default:
						if time.Since(start)/time.Second%4 == 1 {
							call.Done(breaker.Failure, 0)
						}
						call.Done(breaker.Success, 0)
						call.Done(breaker.Failure, 0)
					}
				}
			})
		}
		wg.Wait()
		if most > 3 {
			t.Errorf("%d probes at once, want at most 3", most)
		}
		// It gets well whatever happened.
		time.Sleep(time.Minute) // in a synctest bubble
		for range 100 {
			time.Sleep(100 * time.Millisecond) // in a synctest bubble
			if call, err := b.Allow(); err == nil {
				call.Done(breaker.Success, 0)
			}
		}
		want(t, b, breaker.Closed)
		s := b.Stats()
		if s.InFlight != 0 || s.Overdue != 0 {
			t.Errorf("%d in flight, %d overdue, want none", s.InFlight, s.Overdue)
		}
		t.Logf("%d openings, %d lost probes, %d dropped", s.Openings, s.LostProbes, s.Dropped)
	})
}

// The window takes no lock, and yet loses nothing.
func TestCountsOfManyGoroutinesAreExact(t *testing.T) {
	b := breaker.New(breaker.WithWindow(time.Hour), breaker.WithFailureRatio(0, 1), breaker.WithSlowCalls(time.Minute, 1),
		breaker.WithMinClients(32))
	const routines, calls = 8, 3000
	var wg sync.WaitGroup
	for i := range routines {
		wg.Go(func() {
			for j := range calls {
				call, err := b.Admit(breaker.Request{Client: uint64(j)})
				if err != nil {
					t.Error(err)
					return
				}
				switch j % 4 {
				case 0:
					call.Done(breaker.Failure, 0)
				case 1:
					call.Answered()
					call.Done(breaker.Success, 0)
				case 2:
					call.Done(breaker.Success, time.Minute)
				default:
					if i%2 == 0 {
						call.Done(breaker.Ignored, 0)
					} else {
						call.Done(breaker.Ignored, time.Minute)
					}
				}
			}
		})
	}
	wg.Wait()
	s := b.Stats()
	const quarter = routines * calls / 4
	if s.Failures != quarter || s.Successes != 2*quarter || s.Slow != quarter+quarter/2 || s.Ignored != quarter/2 || s.InFlight != 0 {
		t.Errorf("%+v", s)
	}
}

func TestNothingIsAllocated(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool drop what it is given")
	}
	g := breaker.NewGroup()
	all := breaker.New(breaker.WithSlowCalls(time.Second, 0.8), breaker.WithMinClients(3), breaker.WithConsecutiveFailures(1000))
	open := breaker.New(breaker.WithOpenTime(time.Hour, time.Hour))
	trip(t, open)
	host := fmt.Sprint("host.example:", 443)
	for name, f := range map[string]func(){
		"pass": func() {
			call, _ := g.Get(host).Allow()
			call.Done(breaker.Success, 0)
		},
		"pass with all rules": func() {
			call, _ := all.Admit(breaker.Request{Client: 99})
			call.Done(breaker.Success, 0)
		},
		"refuse": func() { open.Allow() },
		"do":     func() { all.Do(t.Context(), doNothing) },
	} {
		if n := testing.AllocsPerRun(1000, f); n != 0 {
			t.Errorf("%s: %v allocations, want 0", name, n)
		}
	}
}

// What an operator forced closed or disabled keeps nobody away.
func TestGroupOpen(t *testing.T) {
	g := breaker.NewGroup()
	for _, tt := range []struct {
		force func(*breaker.Breaker)
		open  int
	}{
		{(*breaker.Breaker).Reset, 0},
		{(*breaker.Breaker).Disable, 0},
		{(*breaker.Breaker).ForceClosed, 0},
		{(*breaker.Breaker).ForceOpen, 1},
	} {
		b := g.Get("key")
		tt.force(b)
		if n := g.Stats().Open; n != tt.open {
			t.Errorf("%v: %d open, want %d", b.State(), n, tt.open)
		}
	}
}
