package limiter_test

import (
	"context"
	"crypto/sha256"
	"math"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/limiter"
)

// A flood of made-up keys must not make the limiter forget the abuser among them. 65,536 slots,
// 100,000 new keys a second, half a minute; in steps of a millisecond.
func TestRateAbuserInAFlood(t *testing.T) {
	const flood = 100_000
	seconds := time.Duration(30)
	if rateRaceEnabled {
		seconds = 2 // time enough to touch every line
	}
	budget := limiter.WithNewKeyBudget(100, 100)
	for _, c := range []struct {
		name  string
		limit rate.Limit
		burst int
		every time.Duration // of the abuser's attempts
		opts  []limiter.RateOption
		most  float64 // of what he would be admitted alone
	}{
		{"guesses a second, 5 a minute", 5.0 / 60, 5, time.Second, nil, 1.5},
		{"guesses a second, 5 a minute, budget", 5.0 / 60, 5, time.Second, []limiter.RateOption{budget}, 1.05},
		{"scrapes 100 a second, 1 a second", 1, 10, 10 * time.Millisecond, nil, 1.5},
		{"scrapes 100 a second, 1 a second, budget", 1, 10, 10 * time.Millisecond, []limiter.RateOption{budget}, 1.05},
		{"guesses a second, two policies", 5.0 / 60, 5, time.Second, []limiter.RateOption{limiter.WithPolicy("daily", 20.0/86400, 20)}, 1.5},
		{"scrapes 100 a second, a policy that never fills", 1, 10, 10 * time.Millisecond, []limiter.RateOption{limiter.WithPolicy("ever", 0, 1000)}, 1.5},
		{"scrapes 100 a second, two that never fill", 0, 100, 10 * time.Millisecond, []limiter.RateOption{limiter.WithPolicy("ever", 0, 1000)}, 1.5},
		{"guesses a second, each key has a limit of its own", 5.0 / 60, 5, time.Second, []limiter.RateOption{
			limiter.WithKeyLimit(func(string) (rate.Limit, int) { return 5.0 / 60, 5 })}, 1.5},
	} {
		t.Run(c.name, func(t *testing.T) {
			// The seed of the table gives one abuser in a thousand three times the others' share,
			// so ten of them can be above the bound by chance; the sum of a hundred cannot.
			abusers := rateKeys(100)
			run := func(keys int) (admitted int, s limiter.RateStats) {
				r := limiter.NewRate(c.limit, c.burst, c.opts...)
				start, made := time.Now(), 0
				for at := time.Duration(0); at < seconds*time.Second; at += time.Millisecond {
					now := start.Add(at)
					for range keys / 1000 {
						r.AllowAt(now, strconv.Itoa(made), 1)
						made++
					}
					for i, abuser := range abusers {
						if (at+time.Duration(i)*time.Millisecond)%c.every == 0 && r.AllowAt(now, abuser, 1).OK {
							admitted++
						}
					}
				}
				return admitted, r.Stats()
			}
			alone, _ := run(0)
			hidden, s := run(flood)
			if s.EvictedLive == 0 && s.SharedNewKeys == 0 {
				t.Fatalf("no flood: %+v", s)
			}
			if got := float64(hidden) / float64(alone); got > c.most && !rateRaceEnabled {
				t.Errorf("%d admitted in the flood, %d alone: %.2fx, at most %vx", hidden, alone, got, c.most)
			}
			t.Logf("%d admitted in the flood, %d alone", hidden, alone)
		})
	}
}

// Honest keys known before a flood keep their place, and new ones get what the budget leaves.
func TestRateNewKeyBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		saturated, evicted := 0, 0
		r := limiter.NewRate(0.001, 5, limiter.WithMaxKeys(8), limiter.WithNewKeyBudget(1, 2),
			limiter.WithRateTrace(limiter.RateTrace{Saturated: func(limiter.Decision) { saturated++ }, Evicted: func() { evicted++ }}))
		for i := range 8 {
			r.Allow(strconv.Itoa(i))
		}
		if s := r.Stats(); s.LiveKeys != 8 || s.Capacity != 8 || s.Saturation != 1 {
			t.Fatalf("%+v", s)
		}
		if d := r.Allow("0"); !d.OK || d.Remaining != 3 {
			t.Fatalf("a known key: %+v", d)
		}
		for range 2 {
			if d := r.Allow("new"); !d.OK {
				t.Fatalf("within the budget: %+v", d)
			}
		}
		if d := r.Allow("newer"); d.OK || d.RetryAfter != time.Second || d.Remaining != 0 {
			t.Fatalf("budget spent: %+v", d)
		}
		time.Sleep(time.Second) // in a synctest bubble
		if d := r.Allow("newest"); !d.OK {
			t.Fatalf("budget flowed in: %+v", d)
		}
		if s := r.Stats(); s.SharedNewKeys != 3 || s.EvictedLive != 0 || saturated != 4 || evicted != 0 {
			t.Fatalf("%+v, saturated %d, evicted %d", s, saturated, evicted)
		}
		time.Sleep(3000 * time.Second) // in a synctest bubble
		if d := r.Allow("new"); !d.OK || d.Remaining != 4 {
			t.Fatalf("a slot of its own, once one came free: %+v", d)
		}
	})
}

// A key that no policy holds to anything needs no slot: it is admitted however full the table is, and displaces nobody.
func TestRateExemptKeyNeedsNoSlot(t *testing.T) {
	for kind, opts := range map[string][]limiter.RateOption{
		"table":  nil,
		"exact":  {limiter.WithExactKeys()},
		"budget": {limiter.WithNewKeyBudget(0, 1)},
	} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				own := limiter.WithKeyLimit(func(key string) (rate.Limit, int) {
					if strings.HasPrefix(key, "exempt") {
						return rate.Inf, 0
					}
					return 1, 5
				})
				r := limiter.NewRate(1, 5, append([]limiter.RateOption{limiter.WithMaxKeys(8), own}, opts...)...)
				for i := range 8 {
					r.AllowN(strconv.Itoa(i), 5)
				}
				for i := range 20 {
					key := "exempt" + strconv.Itoa(i)
					if d := r.AllowN(key, 100); !d.OK || d.Limit != math.MaxInt {
						t.Fatalf("%s: %+v", key, d)
					}
					r.Charge(key, 100)
				}
				for i := range 8 {
					if d := r.Allow(strconv.Itoa(i)); d.OK {
						t.Errorf("%d was forgotten: %+v", i, d)
					}
				}
				if s := r.Stats(); s.EvictedLive != 0 || s.SharedNewKeys != 0 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

// What a new key is charged, or given back, when its work is done is that of the bucket it shares: a cost that is known late is no way
// around it.
func TestRateBudgetIsChargedLate(t *testing.T) {
	for kind, opts := range map[string][]limiter.RateOption{"table": nil, "exact": {limiter.WithExactKeys()}} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := limiter.NewRate(0.001, 20, append([]limiter.RateOption{limiter.WithMaxKeys(8), limiter.WithNewKeyBudget(1, 10)}, opts...)...)
				for i := range 8 {
					r.Allow(strconv.Itoa(i))
				}
				r.Allow("new")
				r.Refund("new", 1)
				if d := r.Peek("newer", 10); !d.OK {
					t.Fatalf("given back: %+v", d)
				}
				if d := r.Peek("newer", 11); d.OK {
					t.Fatalf("more than was taken: %+v", d)
				}
				r.Allow("new")
				r.Charge("new", 12)
				if d := r.Allow("newer"); d.OK || d.RetryAfter != 4*time.Second {
					t.Fatalf("3 in debt: %+v", d)
				}
				if d := r.AllowN("0", 19); !d.OK {
					t.Fatalf("a known key: %+v", d)
				}
				time.Sleep(4 * time.Second) // in a synctest bubble
				if d := r.Allow("newer"); !d.OK {
					t.Fatalf("it has flowed in: %+v", d)
				}
			})
		})
	}
}

// Peek says what AllowN would, of the budget too, and takes nothing of it.
func TestRatePeekKnowsTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := limiter.NewRate(0.001, 5, limiter.WithMaxKeys(8), limiter.WithNewKeyBudget(1, 2))
		for i := range 8 {
			r.Allow(strconv.Itoa(i))
		}
		for i := range 20 {
			n := 1 + i%3
			before := r.Stats().SharedNewKeys
			peek := r.Peek("new", n)
			if s := r.Stats(); s.SharedNewKeys != before {
				t.Fatalf("%d: Peek took of the budget: %+v", i, s)
			}
			if d := r.AllowN("new", n); d.OK != peek.OK || d.RetryAfter != peek.RetryAfter {
				t.Fatalf("%d: Peek says %+v, AllowN %+v", i, peek, d)
			}
			time.Sleep(time.Second / 3) // in a synctest bubble
		}
	})
}

// One key that is drained for long does not make others share the budget, while there are slots whose buckets are full again.
func TestRateBudgetOnlyWhereNoSlotIsFree(t *testing.T) {
	for kind, opts := range map[string][]limiter.RateOption{"table": nil, "exact": {limiter.WithExactKeys()}} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := limiter.NewRate(1, 3600, append(opts, limiter.WithMaxKeys(8), limiter.WithNewKeyBudget(0, 1))...)
				r.Charge("drained", 3600) // a slot of its own, and nothing of the budget
				for i := range 7 {
					r.Allow(strconv.Itoa(i))
				}
				time.Sleep(time.Minute) // in a synctest bubble
				for i := range 100 {
					if d := r.Allow("new " + strconv.Itoa(i)); !d.OK {
						t.Fatalf("key %d: %+v, %+v", i, d, r.Stats())
					}
					time.Sleep(time.Second) // in a synctest bubble
				}
				if d := r.Peek("drained", 0); d.Remaining > 200 {
					t.Errorf("the drained key was forgotten: %+v", d)
				}
			})
		})
	}
}

// That a key was displaced, or resembles one that was, refuses nobody who is within his quota.
func TestRateDisplacedKeyIsNotRefused(t *testing.T) {
	for _, burst := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			r := limiter.NewRate(rate.Limit(burst), burst, limiter.WithMaxKeys(8))
			refused := 0
			for i := range 600 {
				if !r.AllowN(strconv.Itoa(i%12), burst).OK { // each every 1.2 s
					refused++
				}
				time.Sleep(time.Second / 10) // in a synctest bubble
			}
			if refused > 0 || r.Stats().EvictedLive == 0 {
				t.Errorf("burst %d: %d of 600 events refused, %d displaced", burst, refused, r.Stats().EvictedLive)
			}
		})
	}
}

// Nor does it make anybody wait.
func TestRateDisplacedKeyDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := limiter.NewRate(3, 3, limiter.WithMaxKeys(8))
		for i := range 600 {
			start := time.Now()
			rateMust(t, r.WaitN(t.Context(), strconv.Itoa(i%12), 3)) // each every 1.2 s
			if waited := time.Since(start); waited > 0 {
				t.Fatalf("event %d waited for %v", i, waited)
			}
			time.Sleep(time.Second / 10) // in a synctest bubble
		}
		if s := r.Stats(); s.EvictedLive == 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestRateForgetsTheFullestBucket(t *testing.T) {
	r := limiter.NewRate(0.001, 10, limiter.WithMaxKeys(8))
	for i := range 8 {
		r.AllowN(strconv.Itoa(i), 1+i)
	}
	r.AllowN("new", 9)
	for i := range 8 {
		want := 9 - i
		if i == 0 {
			want = 10
		}
		if d := r.Peek(strconv.Itoa(i), 0); d.Remaining != want {
			t.Errorf("key %d: %+v, want %d remaining", i, d, want)
		}
	}
}

func rateHeap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// At most 34 bytes a key at a million live keys, in a table of twice their number.
func TestRateBytesAKey(t *testing.T) {
	if rateRaceEnabled {
		t.Skip("the race detector has nothing to find here")
	}
	const keys = 1_000_000
	before := rateHeap()
	r := limiter.NewRate(0.001, 10, limiter.WithMaxKeys(2*keys))
	for i := range keys {
		r.Allow(strconv.Itoa(i))
	}
	bytes := float64(rateHeap() - before)
	s := r.Stats()
	if a := bytes / keys; a > 34 {
		t.Errorf("%.1f bytes a key", a)
	}
	if s.LiveKeys < keys*99/100 {
		t.Errorf("%d of %d keys are live, %d were displaced", s.LiveKeys, keys, s.EvictedLive)
	}
	t.Logf("%.1f bytes a key, %d live", bytes/keys, s.LiveKeys)
}

func TestRateMemoryIsConstant(t *testing.T) {
	keys := 10_000_000
	if rateRaceEnabled || testing.Short() {
		keys = 100_000
	}
	for kind, opts := range map[string][]limiter.RateOption{"table": nil, "exact": {limiter.WithExactKeys()}} {
		t.Run(kind, func(t *testing.T) {
			r := limiter.NewRate(0.001, 10, append(opts, limiter.WithMaxKeys(1024))...)
			buf := make([]byte, 0, 600)
			for len(buf) < 580 {
				buf = append(buf, 'x')
			}
			fill := func(from, to int) {
				for i := from; i < to; i++ {
					key := strconv.AppendInt(buf[:0], int64(i), 10)
					if i%1000 == 0 {
						key = strconv.AppendInt(buf, int64(i), 10) // a long one
					}
					r.Allow(string(key))
				}
			}
			n := keys
			if kind == "exact" {
				n /= 10
			}
			fill(0, 10_000)
			before := rateHeap()
			fill(10_000, n)
			if grown := rateHeap() - before; grown > 256<<10 {
				t.Errorf("grew by %d bytes", grown)
			}
			if s := r.Stats(); s.LiveKeys > s.Capacity || s.Capacity > 1024+64 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// A key of a megabyte, as a client may send one, costs its hash and is not kept.
func TestRateHugeKey(t *testing.T) {
	huge := make([]byte, 1<<20)
	for kind, opts := range rateKinds {
		r := limiter.NewRate(0.001, 2, opts...)
		before := rateHeap()
		for i := range 64 {
			huge[0] = byte(i)
			key := string(huge)
			r.Allow(key)
			r.Allow(key)
			if d := r.Allow(key); d.OK {
				t.Fatalf("%s: %+v", kind, d)
			}
			if kind == "unkeyed" {
				break
			}
		}
		if grown := rateHeap() - before; grown > 1<<20 {
			t.Errorf("%s: %d bytes kept", kind, grown)
		}
		runtime.KeepAlive(r)
	}
}

// No key can be made that shares the bucket of a long one.
func TestRateExactKeysAreExact(t *testing.T) {
	r := limiter.NewRate(0, 1, limiter.WithExactKeys(), limiter.WithMaxKeys(8))
	long := strings.Repeat("x", 300)
	sum := sha256.Sum256([]byte(long))
	for _, key := range []string{long, "sha256:" + string(sum[:]), "sha256:", long + "x"} {
		if d := r.Allow(key); !d.OK {
			t.Errorf("%.20q: %+v", key, d)
		}
		if d := r.Allow(key); d.OK {
			t.Errorf("%.20q, once more: %+v", key, d)
		}
	}
}

func TestRateDoesNotAllocate(t *testing.T) {
	if rateRaceEnabled {
		t.Skip("the race detector allocates")
	}
	now := time.Now()
	daily := limiter.WithPolicy("daily", 1e9, 1e9)
	flood := rateKeys(200_000)
	for name, r := range map[string]*limiter.Rate{
		"table":     limiter.NewRate(1e9, 1e9),
		"policies":  limiter.NewRate(1e9, 1e9, daily),
		"exact":     limiter.NewRate(1e9, 1e9, limiter.WithExactKeys()),
		"unkeyed":   limiter.NewRate(1e9, 1e9, limiter.WithoutKeys()),
		"key limit": limiter.NewRate(1e9, 1e9, limiter.WithKeyLimit(func(string) (rate.Limit, int) { return 100, 100 })),
		"reject":    limiter.NewRate(0, 1),
		"reject2":   limiter.NewRate(0, 1, daily),
		"rejectone": limiter.NewRate(0, 1, limiter.WithoutKeys()),
		"shadow":    limiter.NewRate(0, 1, limiter.WithRateShadow()),
		"budget":    limiter.NewRate(0.001, 1, limiter.WithMaxKeys(8), limiter.WithNewKeyBudget(1, 1)),
	} {
		r.Allow("key")
		i := 0
		var each [2]limiter.PolicyState
		for what, f := range map[string]func(){
			"Allow":   func() { r.Allow("key") },
			"AllowN":  func() { r.AllowN("key", 2) },
			"AllowAt": func() { r.AllowAt(now, "key", 1) },
			"AllowEach": func() {
				r.AllowEach(now, "key", 1, each[:])
			},
			"Peek":   func() { r.Peek("key", 1) },
			"Refund": func() { r.Refund("key", 1) },
			"Charge": func() { r.Charge("key", 1) },
			"Wait": func() {
				if name == "table" || name == "policies" || name == "exact" {
					r.Wait(context.Background(), "key")
				}
			},
			"new keys": func() {
				if name != "exact" {
					r.Allow(flood[i])
					i++
				}
			},
		} {
			if n := testing.AllocsPerRun(200, f); n != 0 {
				t.Errorf("%s: %s allocates %v times", name, what, n)
			}
		}
	}
}

// Many goroutines, all methods; at the end nobody got more than was due.
func TestRateRace(t *testing.T) {
	for kind, opts := range rateKinds {
		t.Run(kind, func(t *testing.T) {
			r := limiter.NewRate(0, 1000, append([]limiter.RateOption{limiter.WithPolicy("second", 0, 5000), limiter.WithMaxKeys(64)}, opts...)...)
			var admitted [2]atomic.Int64
			var wg sync.WaitGroup
			for g := range 8 {
				wg.Go(func() {
					key := g % 2
					for i := range 2000 {
						if d := r.AllowN(strconv.Itoa(key), 1+i%3); d.OK {
							admitted[key].Add(int64(1 + i%3))
						}
						switch i % 200 {
						case 0:
							r.Stats()
						case 1:
							r.SetLimit(0, 1000)
						case 2:
							r.SetPolicy("second", 0, 5000)
						case 3:
							r.Peek("0", 1)
							r.Reset("other")
							if kind != "unkeyed" {
								r.Charge("other", 1)
								r.Refund("other", 1)
							}
						}
					}
				})
			}
			wg.Wait()
			want := int64(2000)
			if kind == "unkeyed" {
				return // Reset above was everybody's
			}
			if got := admitted[0].Load() + admitted[1].Load(); got != want {
				t.Errorf("%d tokens, want %d", got, want)
			}
		})
	}
}

// What is spent stays spent, and is no more for that somebody asked while SetLimit was at it.
func TestRateSetLimitWhileAsked(t *testing.T) {
	const burst = 1 << 30
	for kind, opts := range rateKinds {
		t.Run(kind, func(t *testing.T) {
			r := limiter.NewRate(1e12, burst, append([]limiter.RateOption{limiter.WithMaxKeys(1024)}, opts...)...)
			for range 100 {
				rateMust(t, r.SetLimit(1e12, burst))
				r.Reset("key")
				var asked atomic.Int64
				var stop atomic.Bool
				var wg sync.WaitGroup
				wg.Go(func() {
					for !stop.Load() {
						r.Allow("key")
						asked.Add(1)
					}
				})
				for asked.Load() == 0 {
					runtime.Gosched()
				}
				rateMust(t, r.SetLimit(1e-3, burst))
				stop.Store(true)
				wg.Wait()
				if d := r.Peek("key", 0); int64(burst-d.Remaining) > asked.Load() {
					t.Fatalf("%d tokens are spent after %d events: %+v", burst-d.Remaining, asked.Load(), d)
				}
			}
		})
	}
}

// A new key takes a place that is free, and else that of the key whose buckets are all full again the soonest.
func TestRateNewKeyDisplacesTheFullest(t *testing.T) {
	for kind, opts := range map[string][]limiter.RateOption{
		"one policy":             nil,
		"the second is slow":     {limiter.WithPolicy("second", 0.01, 100)},
		"the second is fast":     {limiter.WithPolicy("second", 100, 100)},
		"the second is never":    {limiter.WithPolicy("second", 0, 100)},
		"the second is no limit": {limiter.WithPolicy("second", rate.Inf, 0)},
	} {
		for fullest := range 8 {
			t.Run(kind+"/"+strconv.Itoa(fullest), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := limiter.NewRate(1, 10, append(opts, limiter.WithMaxKeys(8))...)
					spent := func(i int) int {
						if i == fullest {
							return 2
						}
						return 5
					}
					for i := range 8 {
						r.AllowN(strconv.Itoa(i), spent(i))
					}
					other := strconv.Itoa((fullest + 1) % 8)
					r.Reset(other)
					r.AllowN("in the place that was reset", 5)
					if s := r.Stats(); s.EvictedLive != 0 || s.LiveKeys != 8 {
						t.Fatalf("one place was free: %+v", s)
					}
					r.AllowN("in another's place", 5)
					if s := r.Stats(); s.EvictedLive != 1 || s.LiveKeys != 8 {
						t.Fatalf("no place was free: %+v", s)
					}
					for i := range 8 {
						key, left := strconv.Itoa(i), 10-spent(i)
						if i == fullest || key == other {
							left = 10
						}
						if d := r.Peek(key, 1); d.Remaining != left {
							t.Errorf("%s has %d left, want %d", key, d.Remaining, left)
						}
					}
				})
			})
		}
	}
}

// The trace is told of each bucket that is displaced, also by a charge after the fact, as often as Stats counts.
func TestRateTellsOfWhatIsDisplaced(t *testing.T) {
	for kind, opts := range map[string][]limiter.RateOption{
		"table": nil, "exact": {limiter.WithExactKeys()}, "store": {limiter.WithStore(limiter.NewMemoryStore(100))},
	} {
		for name, take := range map[string]func(*limiter.Rate, string){
			"Allow":  func(r *limiter.Rate, key string) { r.Allow(key) },
			"Wait":   func(r *limiter.Rate, key string) { r.Wait(context.Background(), key) },
			"Charge": func(r *limiter.Rate, key string) { r.Charge(key, 1) },
		} {
			t.Run(kind+"/"+name, func(t *testing.T) {
				told := uint64(0)
				r := limiter.NewRate(0, 10, append([]limiter.RateOption{limiter.WithMaxKeys(8),
					limiter.WithRateTrace(limiter.RateTrace{Evicted: func() { told++ }})}, opts...)...)
				for i := range 20 {
					take(r, strconv.Itoa(i))
				}
				if s := r.Stats(); told != 12 || s.EvictedLive != 12 {
					t.Errorf("told of %d, counted %d, want 12", told, s.EvictedLive)
				}
			})
		}
	}
}

// The keys that are live are told as a part of those that there is room for.
func TestRateStatsTellTheRoom(t *testing.T) {
	for kind, opts := range map[string][]limiter.RateOption{"table": nil, "exact": {limiter.WithExactKeys()}} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := limiter.NewRate(1, 10, append(opts, limiter.WithMaxKeys(1024))...)
				for i := range 256 {
					r.AllowN(strconv.Itoa(i), 5)
				}
				s := r.Stats()
				if live := float64(s.LiveKeys) / 1024; s.Capacity != 1024 || s.LiveKeys < 200 || s.Saturation != live {
					t.Errorf("%d live keys of %d, saturation %v, want %v", s.LiveKeys, s.Capacity, s.Saturation, live)
				}
				time.Sleep(time.Minute) // in a synctest bubble
				if s := r.Stats(); s.LiveKeys != 0 || s.Saturation != 0 {
					t.Errorf("%d live keys, saturation %v when all buckets are full again", s.LiveKeys, s.Saturation)
				}
			})
		})
	}
}
