package jobs_test

import (
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/pool/jobs"
)

// keepWaiting has a client named many have at least one job that waits, for so long.
func keepWaiting(l *jobs.Local, payload string, length time.Duration) {
	for began := time.Now(); time.Since(began) < length; {
		if l.Stats().Queued < 5 {
			l.Submit(ctx, "k", []byte(payload), jobs.SubmitOptions{Client: "many"})
		} else {
			time.Sleep(50 * time.Millisecond) // in a synctest bubble
		}
	}
}

func TestDebtOutlastsTheJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := engine()
		defer l.Close()
		const length = 5 * time.Minute
		began := time.Now()
		go keepWaiting(l, `{"n":100}`, length)
		time.Sleep(time.Second) // in a synctest bubble
		var one time.Duration
		for time.Since(began) < length {
			final(t, l, submit(t, l, `{"n":1000}`, jobs.SubmitOptions{Client: "one"}).ID)
			one += time.Second
		}
		if share := float64(one) / float64(length); share < 0.4 || share > 0.55 {
			t.Errorf("the client with one long job at a time had %.0f %% of the run time, want half", 100*share)
		}
	})
}

// The run time of all jobs adds up to more than a Duration holds: in a year and more with 256 slots. The clients share it evenly
// then, too.
func TestMoreRunTimeThanADurationHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := engine()
		defer l.Close()
		const length = 5 * time.Minute
		began := time.Now()
		go keepWaiting(l, `{"n":1000}`, length)
		time.Sleep(10 * time.Second) // in a synctest bubble
		l.HaveGiven(math.MaxInt64 - length/2)
		for time.Since(began) < length {
			before := time.Now()
			final(t, l, submit(t, l, `{"n":1000}`, jobs.SubmitOptions{Client: "one"}).ID)
			if took := time.Since(before); took > 4*time.Second {
				t.Errorf("after %v the only job of a client, which takes a second, has ended after %v", before.Sub(began), took)
			}
		}
	})
}

func TestDebtsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := engine()
		defer l.Close()
		const n = 4000
		for i := range n {
			submit(t, l, `{"n":1}`, jobs.SubmitOptions{Client: fmt.Sprint(i)})
		}
		most := 0
		for l.Stats().Queued > 0 {
			time.Sleep(time.Millisecond) // in a synctest bubble
			most = max(most, l.Owing())
		}
		if most < 1000 || most > 1024 {
			t.Errorf("up to %d clients remembered", most)
		}
		time.Sleep(time.Second) // in a synctest bubble
		if n := l.Owing(); n != 0 {
			t.Errorf("%d clients owe something when no job waits", n)
		}
	})
}

// A level is worth a second of waiting, the ends of the range are as far as it goes, and no attempts are those of the kind.
func TestPriorityOfSubmit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := engine()
		defer l.Close()
		submit(t, l, `{"n":10000}`, jobs.SubmitOptions{})
		synctest.Wait()
		var ids []string
		for i, p := range []int{6, 7, 7, 100, -8, -100} {
			if i == 1 {
				time.Sleep(time.Second) // in a synctest bubble
			}
			j := submit(t, l, `{"n":1000}`, jobs.SubmitOptions{Priority: p, MaxAttempts: -p})
			if want := max(1, -p); j.MaxAttempts != want {
				t.Errorf("MaxAttempts %d gives %d attempts, want %d", -p, j.MaxAttempts, want)
			}
			ids = append(ids, j.ID)
			time.Sleep(time.Millisecond) // in a synctest bubble
		}
		var last time.Time
		for i, id := range ids {
			if j := final(t, l, id); j.Started.Before(last) {
				t.Errorf("job %d began %v before the one ahead of it", i, last.Sub(j.Started))
			} else {
				last = j.Started
			}
		}
	})
}
