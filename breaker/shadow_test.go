package breaker_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/breaker"
)

// A breaker in shadow knows and does at any moment what one that refuses does, but that whoever would be refused passes, uncounted.
func TestShadowRefusesNobody(t *testing.T) {
	refused := 0
	for seed := range uint64(200) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 4))
			opts := []breaker.Option{
				breaker.WithJitter(0), breaker.WithWindow(time.Duration(1+r.IntN(5)) * time.Second),
				breaker.WithFailureRatio(0.5, 1+r.IntN(8)), breaker.WithConsecutiveFailures(r.IntN(6)),
				breaker.WithProbes(1 + r.IntN(4)), breaker.WithOpenTime(time.Second, 7*time.Second),
				breaker.WithLease(time.Duration(1+r.IntN(4)) * time.Second), breaker.WithRamp(time.Duration(r.IntN(3)) * time.Second),
				breaker.WithMinClients(r.IntN(3)), breaker.WithSlowCalls(time.Duration(r.IntN(3))*300*time.Millisecond, 0.75),
			}
			b, shadow := breaker.New(opts...), breaker.New(append(opts, breaker.WithShadow(true))...)
			type pair struct{ b, shadow breaker.Call }
			var out []pair
			for range 300 {
				k := r.IntN(len(out) + 1)
				switch op := r.IntN(14); {
				case op < 5:
					ask := breaker.Request{Client: r.Uint64(), Long: r.IntN(4) == 0, Waits: r.IntN(3) == 0}
					c, err := b.Admit(ask)
					d, none := shadow.Admit(ask)
					if none != nil {
						t.Fatalf("seed %d: in shadow: %v", seed, none)
					}
					if (err != nil) != (d == breaker.Call{}) {
						t.Fatalf("seed %d: %v, and in shadow counted: %v", seed, err, d != breaker.Call{})
					}
					if err != nil {
						refused++
					}
					out = append(out, pair{c, d})
				case op < 7:
					time.Sleep(time.Duration(r.IntN(1500)) * time.Millisecond) // in a synctest bubble
				case op == 7 && r.IntN(8) == 0:
					b.Reset()
					shadow.Reset()
				case k == len(out):
				case op == 8:
					out[k] = pair{out[k].b.Wait(), out[k].shadow.Wait()}
				case op == 9:
					out[k] = pair{out[k].b.Begin(time.Now()), out[k].shadow.Begin(time.Now())}
				case op == 10:
					out[k].b.Answered()
					out[k].shadow.Answered()
				default:
					o, took := breaker.Outcome(r.IntN(3)), time.Duration(r.IntN(8)-1)*250*time.Millisecond
					out[k].b.Done(o, took)
					out[k].shadow.Done(o, took)
					if r.IntN(5) == 0 {
						out[k].b.Fail()
						out[k].shadow.Fail()
					}
					out = append(out[:k], out[k+1:]...)
				}
				got, want := shadow.Stats(), b.Stats()
				if !got.Settings.Shadow {
					t.Fatal("its Stats do not say that it is in shadow")
				}
				if got.Settings.Shadow = false; got != want {
					t.Fatalf("seed %d: in shadow\n%+v, want\n%+v", seed, got, want)
				}
			}
		})
	}
	if refused < 1000 {
		t.Errorf("%d refused in all, which is too few to say anything", refused)
	}
}

func TestShadowIsSwitchedAndForced(t *testing.T) {
	failed := errors.New("failed")
	fail := func(context.Context) error { return failed }
	g := breaker.NewGroup(breaker.WithConsecutiveFailures(1), breaker.WithShadow(true))
	b := g.Get("x")
	for range 2 {
		if err := b.Do(t.Context(), fail); err != failed {
			t.Errorf("in shadow: %v", err)
		}
	}
	if s := b.Stats(); s.State != breaker.Open || s.Rejected != 1 {
		t.Errorf("%v, %d refused; want open, 1", s.State, s.Rejected)
	}
	if err := g.Set(breaker.WithShadow(false)); err != nil {
		t.Fatal(err)
	}
	if err := b.Do(t.Context(), fail); !errors.Is(err, breaker.ErrOpen) {
		t.Errorf("no shadow any more: %v", err)
	}
	if err := g.Set(breaker.WithShadow(true)); err != nil {
		t.Fatal(err)
	}
	b.ForceOpen()
	if err := b.Do(t.Context(), fail); !errors.Is(err, breaker.ErrOpen) {
		t.Errorf("forced open: %v", err)
	}
	b.Disable()
	if err := b.Do(t.Context(), fail); err != failed {
		t.Errorf("disabled: %v", err)
	}
}
