package main

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"
)

// plan is what is done to both servers of a profile.
type plan struct {
	procs     int // of a server
	rounds    int
	loads     []float64 // rising, in multiples of the capacity
	after     float64   // the load after the surge
	d         time.Duration
	calibrate time.Duration
	mostRate  float64
	seed      uint64
	show      func(progress)
}

// progress is what is going on.
type progress struct {
	profile, server string
	step            step
	left            time.Duration // of everything
	t               *tally        // nil while the capacity is measured
	limit           int
}

// calibration is what an idle server of a profile can do.
type calibration struct {
	capacity float64 // answers a second
	answer   float64 // processor seconds for one; 0 if not known
	refusal  float64 // processor seconds for a bare 503, on a server that computes beside it
}

// result is what became of one step on one server.
type result struct {
	step     step
	sent     int
	good     float64 // a second, within inTime
	refused  float64 // a second
	late     int
	lost     int
	p50, p99 time.Duration // of all that were not refused
	no99     time.Duration // of the refused
	health99 time.Duration // of the health check, which no layer protects
	healthy  float64       // share of the health checks that were answered in time
	lag99    time.Duration // of the client
	limit    int
	possible float64 // answers a second that were possible
	cpu      float64 // cores that the server had; negative if not known
	others   float64 // cores that the client and everybody else on the machine had
}

// share is the part of the possible that was served in time.
func (r result) share() float64 { return r.good / r.possible }

// plain is the part served in time of what was offered and could have been served without refusals.
func (r result) plain(capacity float64) float64 { return r.good / min(r.offered(), capacity) }

// offered is how many requests were due, a second: by chance more or less than the rate of the step.
func (r result) offered() float64 { return max(1, float64(r.sent)) / r.step.d.Seconds() }

// outcome is a profile's results.
type outcome struct {
	profile profile
	cal     calibration
	bare    []result
	wrapped []result
}

// setup is how long the measurements take that come before the load.
func (p plan) setup() time.Duration {
	return p.calibrate*28/10 + 6*refusalPause + 500*time.Millisecond
}

func (p plan) perProfile() time.Duration {
	steps := time.Duration(len(p.loads)+1) * p.d
	return p.setup() + 2*(steps+patience+300*time.Millisecond)
}

func (p plan) steps(capacity float64) []step {
	var out []step
	for _, l := range p.loads {
		out = append(out, step{load: l, rate: min(l*capacity, p.mostRate), d: p.d})
	}
	return append(out, step{load: p.after, back: true, rate: min(p.after*capacity, p.mostRate), d: p.d})
}

func (p plan) run(pr profile, left time.Duration) (outcome, error) {
	o := outcome{profile: pr}
	p.show(progress{profile: pr.name, server: "capacity", left: left})
	var err error
	if o.cal, err = p.capacity(pr); err != nil {
		return o, err
	}
	left -= p.setup()
	half := (p.perProfile() - p.setup()) / 2
	if o.bare, err = p.staircase(pr, false, o.cal, left); err != nil {
		return o, err
	}
	o.wrapped, err = p.staircase(pr, true, o.cal, left-half)
	return o, err
}

// capacity measures what a server can do: as many requests under way as it takes and no more.
func (p plan) capacity(pr profile) (calibration, error) {
	var c calibration
	s, err := start(serverArgs{profile: pr.name, rounds: p.rounds}, p.procs)
	if err != nil {
		return c, err
	}
	defer s.stop()
	var cpu []float64
	mark := func() {
		v, ok := processCPU(s.cmd.Process.Pid)
		if !ok {
			v = math.NaN()
		}
		cpu = append(cpu, v)
	}
	n := pr.optimum
	if pr.computes {
		n *= p.procs
	}
	answered := closedLoop(s.addr, "/work", n, 200, p.calibrate, mark)
	answers, best := 0, 0
	for i := range answered {
		answers += answered[i]
		best = max(best, answered[i])
	}
	if answers == 0 {
		return c, fmt.Errorf("profile %s: the server answered nothing", pr.name)
	}
	c.capacity = float64(best) / (p.calibrate / 5).Seconds() // the part that was disturbed least
	if c.answer = (cpu[1] - cpu[0]) / float64(answers); math.IsNaN(c.answer) {
		c.answer = 0
	}
	if pr.computes && c.answer > 0 {
		// Not what it did beside all else that ran, but what it could have done.
		c.capacity = float64(p.procs) / c.answer
	}
	s.stop()
	c.refusal, err = p.refusal(pr, c.capacity)
	return c, err
}

const refusalPause = 50 * time.Millisecond // what has been sent is answered by then

// refusal measures what a bare 503 costs a server that is as busy as one under overload: how
// much less it computes for the processor time it gets while refusals are asked of it, at ten times the capacity.
// It returns 0 if that is not known. An idle server would do for less: it has nothing else in its caches, and
// reads a request as soon as it has come.
func (p plan) refusal(pr profile, capacity float64) (float64, error) {
	s, err := start(serverArgs{profile: pr.name, busy: true, rounds: p.rounds}, p.procs)
	if err != nil {
		return 0, err
	}
	defer s.stop()
	read := func() (n, cpu float64) {
		said, e := get(s.addr, "/computed")
		if e == nil {
			_, e = fmt.Sscan(said, &n, &cpu)
		}
		if e != nil {
			err = fmt.Errorf("profile %s: what the busy server computed: %w", pr.name, e)
		}
		return n, cpu
	}
	c := newClient(s.addr, "/refuse")
	defer c.close()
	load := step{rate: min(10*capacity, p.mostRate), d: p.calibrate / 5}
	c.run(load, &tally{}, time.Now(), p.seed) // opens the connections
	time.Sleep(refusalPause)

	// The machine's pace changes: each time with load lies between two without, and the median counts.
	const times = 5
	type part struct{ n, cpu, refused float64 }
	var parts [2*times + 1]part
	n0, cpu0 := read()
	for i := range parts {
		t := &tally{}
		if i%2 == 0 {
			time.Sleep(load.d / 2)
		} else {
			c.run(load, t, time.Now(), p.seed+uint64(i))
			time.Sleep(refusalPause)
		}
		n1, cpu1 := read()
		t.mu.Lock()
		parts[i] = part{n1 - n0, cpu1 - cpu0, float64(len(t.refused))}
		t.mu.Unlock()
		n0, cpu0 = n1, cpu1
	}
	if err != nil {
		return 0, err
	}
	var cost []float64
	for i := 1; i < len(parts); i += 2 {
		a, b, x := parts[i-1], parts[i+1], parts[i]
		if a.n+b.n > 0 && x.refused > 0 {
			cost = append(cost, (x.cpu-x.n*(a.cpu+b.cpu)/(a.n+b.n))/x.refused)
		}
	}
	if len(cost) == 0 {
		return 0, nil
	}
	slices.Sort(cost)
	return max(0, cost[len(cost)/2]), nil
}

// staircase drives one server through all steps.
func (p plan) staircase(pr profile, wrapped bool, cal calibration, left time.Duration) ([]result, error) {
	s, err := start(serverArgs{profile: pr.name, wrapped: wrapped, rounds: p.rounds}, p.procs)
	if err != nil {
		return nil, err
	}
	defer s.stop()
	name := "unprotected"
	if wrapped {
		name = "wrapped"
	}
	c, probe := newClient(s.addr, "/work"), newClient(s.addr, "/healthz")
	steps := p.steps(cal.capacity)
	tallies, healths := make([]*tally, len(steps)), make([]*tally, len(steps))
	out := make([]result, len(steps))
	next := time.Now()
	for i, st := range steps {
		t, health := &tally{}, &tally{}
		tallies[i], healths[i] = t, health
		done := make(chan struct{})
		go func() {
			var both sync.WaitGroup
			both.Go(func() { c.run(st, t, next, p.seed+uint64(i)) })
			both.Go(func() { probe.run(step{rate: healthRate, d: st.d}, health, next, p.seed+uint64(i)) })
			both.Wait()
			close(done)
		}()
		before := readCPU(s)
		began := time.Now()
		limits := map[int]int{}
		for waiting := true; waiting; {
			select {
			case <-done:
				waiting = false
			case <-time.After(100 * time.Millisecond):
				x := progress{profile: pr.name, server: name, step: st, t: t, left: left - time.Since(began)}
				if l := s.state.Load(); l != nil {
					x.limit = l.Limit
					limits[l.Limit]++
				}
				p.show(x)
			}
		}
		left -= st.d
		next = next.Add(st.d)
		out[i] = p.outcomeOf(st, cal, before, readCPU(s), time.Since(began).Seconds())
		for l, n := range limits {
			if n > limits[out[i].limit] {
				out[i].limit = l
			}
		}
	}
	c.close() // the last answers come, or do not
	probe.close()
	for i, t := range tallies {
		r := &out[i]
		secs := r.step.d.Seconds()
		r.sent, r.late, r.lost = t.sent, t.late, t.lost
		r.good, r.refused = float64(t.good)/secs, float64(len(t.refused))/secs
		r.p50, r.p99 = quantile(t.open, .5), quantile(t.open, .99)
		r.no99, r.lag99 = quantile(t.refused, .99), quantile(t.lag, .99)
		r.health99 = quantile(healths[i].open, .99)
		r.healthy = float64(healths[i].good) / float64(max(1, healths[i].sent))
		r.possible = min(r.offered(), cal.capacity)
		if r.cpu >= 0 && cal.answer > 0 {
			cores := min(float64(p.procs), float64(runtime.NumCPU())-r.others) - r.refused*cal.refusal
			r.possible = max(1, min(r.possible, cores/cal.answer))
		}
	}
	return out, nil
}

// healthRate is how often the health check is asked for, a second: so little that the answers to it take
// nothing from the rest, so much that a step has a 99th percentile.
const healthRate = 100

// cpuTimes are the processor seconds that a server, this client and the whole machine have had.
type cpuTimes struct {
	server, all float64
	ok          bool
}

func readCPU(s *process) cpuTimes {
	server, ok1 := processCPU(s.cmd.Process.Pid)
	all, ok2 := machineCPU()
	return cpuTimes{server, all, ok1 && ok2}
}

func (p plan) outcomeOf(st step, cal calibration, from, to cpuTimes, secs float64) result {
	r := result{step: st, cpu: -1}
	if from.ok && to.ok {
		r.cpu = (to.server - from.server) / secs
		r.others = max(0, (to.all-from.all)/secs-r.cpu)
	}
	return r
}

// heldShare is the floor: the wrapped server has held if in every step from 1.5 times the capacity on, and
// in the one after the surge, it served in time at least this part of what was possible and of the health
// checks, and if the median of what it did not refuse came in time.
//
// On a quiet machine the part is 0.9 to 1 and the median 10 to 30 ms. The unprotected server's are mostly 0 to
// 0.1 and 1 s, once its queues have filled; up to a half during the surge where it is lucky (see TestShortForm).
// What else runs on the machine takes cores away, which is counted, and holds single requests up for time slices,
// which is not: that is why nothing is asked of the 99th percentile.
const heldShare = .5

// held says what the wrapped server did not hold; nothing if it held.
func (o outcome) held() (broken []string) {
	for _, r := range o.wrapped {
		if r.step.load < 1.5 && !r.step.back {
			continue
		}
		at := fmt.Sprintf("%s at %s", o.profile.name, r.step.name())
		if r.share() < heldShare {
			broken = append(broken, fmt.Sprintf("%s: %.0f/s in time, of %.0f/s possible; at least %.0f %% were to be", at, r.good, r.possible, 100*heldShare))
		}
		if r.healthy < heldShare {
			broken = append(broken, fmt.Sprintf("%s: %.0f %% of the health checks were answered in time; at least %.0f %% were to be", at, 100*r.healthy, 100*heldShare))
		}
		if r.p50 > inTime {
			broken = append(broken, fmt.Sprintf("%s: p50 %v; at most %v was to be", at, r.p50.Round(time.Millisecond), inTime))
		}
	}
	return broken
}

func (s step) name() string {
	if s.back {
		return fmt.Sprintf("back to %.1fx", s.load)
	}
	return fmt.Sprintf("%.1fx", s.load)
}

// isTerminal says whether f is looked at by somebody.
func isTerminal(f *os.File) bool {
	i, err := f.Stat()
	return err == nil && i.Mode()&os.ModeCharDevice != 0
}
