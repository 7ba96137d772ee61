package redisjobs

import (
	"cmp"
	"context"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/spillgate/spillgate/pool/internal/remote"
	"github.com/spillgate/spillgate/pool/jobs"
)

// serverTime is how long a question to the server may take that nobody waits for.
const serverTime = 10 * time.Second

// timed asks the server what nobody waits for. What fails is done the next time.
func (e *Engine) timed(f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), serverTime)
	defer cancel()
	return f(ctx)
}

// keep beats and sweeps until all is drained. It does not take jobs from others before it has reached the server for a whole lease: after an outage nobody
// has been heard for longer than that, and all are alive.
func (e *Engine) keep(v *voice) {
	ticker := time.NewTicker(e.conf.lease / 4)
	defer ticker.Stop()
	defer v.close()
	var seen sight
	for more := true; ; { // the first time at once
		beatOnly := false
		if more {
			select {
			case <-e.stopped:
				return
			default:
			}
		} else {
			select {
			case <-e.stopped:
				return
			case <-e.look:
				beatOnly = true
			case <-ticker.C:
			}
		}
		what, err := "told that a worker is alive", e.beat(v)
		if err == nil && !beatOnly {
			what = "asked for what is due"
			more, err = e.sweep(&seen)
		}
		if err != nil {
			e.conf.logger.Warn("redisjobs: the server was not "+what, "error", err)
			seen, more = sight{}, false
		}
	}
}

// beat extends the leases of what this engine runs. What the server knows better is told to the jobs.
func (e *Engine) beat(v *voice) error {
	e.mu.Lock()
	var all []*attempt
	args := []any{e.conf.lease.Microseconds()}
	for a := range e.running {
		all = append(all, a)
		args = append(args, a.id, a.token)
	}
	e.mu.Unlock()
	if len(all) == 0 {
		return nil
	}
	return e.timed(func(ctx context.Context) error {
		answer, err := v.run(ctx, beatScript, args...).StringSlice()
		if err == nil && len(answer) != len(all) {
			err = errAnswer
		}
		for i, said := range answer[:min(len(answer), len(all))] {
			switch said {
			case "cancel":
				all[i].stop(jobs.ErrCancelled)
			case "lost":
				all[i].stop(errLost)
			}
		}
		return err
	})
}

// voice is what a worker says by that it is alive: a connection of its own, since handlers may have all others of the client for longer than a lease.
type voice struct {
	client redis.UniversalClient
	key    string
	conn   *redis.Conn // nil where there is none
}

func (v *voice) run(ctx context.Context, s *redis.Script, args ...any) *redis.Cmd {
	if v.conn == nil {
		v.open(ctx)
	}
	if v.conn != nil {
		half, cancel := context.WithTimeout(ctx, serverTime/2)
		defer cancel()
		if cmd := s.Run(half, v.conn, []string{v.key}, args...); cmd.Err() == nil {
			return cmd
		}
		v.close() // it may have been cut, or the server be another by now
	}
	return s.Run(ctx, v.client, []string{v.key}, args...)
}

func (v *voice) open(ctx context.Context) {
	one, _ := v.client.(*redis.Client)
	if c, ok := v.client.(*redis.ClusterClient); ok {
		one, _ = c.MasterForKey(ctx, v.key) // nil where it is not known
	}
	if one != nil && one.Options().PoolSize > 2 { // of less there is none to spare
		v.conn = one.Conn()
	}
}

func (v *voice) close() {
	if v.conn != nil {
		v.conn.Close()
		v.conn = nil
	}
}

// sight is when the server was seen, by its own clock and in its own words: since when without an outage, and last. Nothing is never.
type sight struct{ since, last string }

// sweep does what time alone brings about, for an eighth of a lease: somebody has to say meanwhile that this worker is alive. It reports whether there may be more to do.
func (e *Engine) sweep(seen *sight) (more bool, err error) {
	for began := time.Now(); ; {
		err := e.timed(func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, e.conf.lease/2) // for there is a beat to come
			defer cancel()
			answer, err := e.run(ctx, sweepScript, e.conf.lease.Microseconds(), cmp.Or(seen.since, "0"), cmp.Or(seen.last, "0")).StringSlice()
			if err != nil {
				return err
			}
			if len(answer) != 4 {
				return errAnswer
			}
			more, seen.since, seen.last = answer[0] != "", answer[1], answer[2]
			if answer[3] != "0" {
				e.conf.logger.Warn("redisjobs: jobs were running with workers that are lost", "worker", e.name, "jobs", number(answer[3]))
			}
			return nil
		})
		if err != nil || !more || time.Since(began) > e.conf.lease/8 {
			return more, err
		}
	}
}

// listen hears of jobs that may begin, and of those that were cancelled.
func (e *Engine) listen(ctx context.Context) {
	for wait := remote.AskFirst; ctx.Err() == nil; wait = min(2*wait, remote.AskLast) {
		if hear(ctx, e.client, e.keys[0]+"work", func(said string, began bool) bool {
			id, cancel := strings.CutPrefix(said, "cancel ")
			switch {
			case began:
				remote.Signal(e.wake) // for what nobody was told of meanwhile
				e.cancelled.Add(1)
				remote.Signal(e.look)
			case cancel:
				e.tell(id)
			default:
				remote.Signal(e.wake)
			}
			return true
		}) {
			wait = remote.AskFirst
		}
		timer := time.NewTimer(remote.Jitter(wait))
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// tell has a job stop that was cancelled, if it runs here.
func (e *Engine) tell(id string) {
	e.cancelled.Add(1)
	e.mu.Lock()
	defer e.mu.Unlock()
	for a := range e.running {
		if a.id == id {
			a.stop(jobs.ErrCancelled)
		}
	}
}
