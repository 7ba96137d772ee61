package breaker_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/breaker"
)

// A model is a breaker as its documentation has it, without any of the cleverness: it keeps every
// call and counts them anew each time. It is told what the calls were and must agree on every
// decision, state and count.
type model struct {
	s        breaker.Settings
	state    breaker.State
	now      time.Duration
	calls    []*modelCall // of this phase
	lookedAt time.Duration
	openEnd  time.Duration
	last     time.Duration
	closedAt time.Duration
	row      int

	openings, lost, dropped, rejected, ignored uint64
}

type modelCall struct {
	probe       bool
	start, end  time.Duration
	kind        string // "" in flight, "ok", "failed", "ignored"
	slow        bool
	settledOnce bool
	answered    bool
	passed      bool // a probe that was answered, when its lease ended
}

func (m *model) become(s breaker.State) {
	m.state, m.calls, m.row = s, nil, 0
	m.lookedAt = floor(m.now, m.width())
}

func (m *model) width() time.Duration { return m.s.Window / 10 }

func floor(d, unit time.Duration) time.Duration {
	q := d / unit
	if d%unit < 0 {
		q--
	}
	return q * unit
}

type tally struct{ ok, failed, slow, gone, overdue, inFlight uint64 }

func (m *model) tally() (n tally) {
	w := m.width()
	for _, c := range m.calls {
		if c.probe {
			continue
		}
		if c.kind == "" {
			if c.answered {
				continue
			}
			// The span in which it began leaves with its last call.
			late := floor(c.start, w) + w + m.s.SlowCall
			if m.s.SlowCall > 0 {
				if m.now-floor(c.start, w) < m.s.SlowCall+m.s.Window+2*w {
					n.inFlight++
				}
				if late <= m.now && late > m.now-m.s.Window {
					n.overdue++
				}
			}
			continue
		}
		if floor(m.now, w)-floor(c.end, w) >= m.s.Window {
			continue
		}
		switch {
		case c.kind == "ok":
			n.ok++
		case c.kind == "failed":
			n.failed++
		case c.slow:
			n.gone++
		}
		if c.slow {
			n.slow++
		}
	}
	n.slow += n.overdue
	return n
}

func (m *model) judge() {
	if m.state != breaker.Closed {
		return
	}
	n := m.tally()
	returned := n.ok + n.failed
	timed := returned + n.gone + n.overdue
	v := uint64(m.s.MinVolume)
	switch {
	case m.s.ConsecutiveFailures > 0 && m.row >= m.s.ConsecutiveFailures,
		returned >= v && n.failed > 0 && float64(n.failed) >= m.s.FailureRatio*float64(returned),
		m.s.SlowCall > 0 && timed >= v && n.slow > 0 && float64(n.slow) >= m.s.SlowRatio*float64(timed):
		m.open()
	}
}

func (m *model) open() {
	if m.last > 0 && (m.state == breaker.HalfOpen || m.now-m.closedAt < m.s.Ramp+m.s.Window) {
		m.last = min(2*m.last, m.s.MaxOpenTime)
	} else {
		m.last = m.s.OpenTime
	}
	m.openings++
	m.openEnd = m.now + m.last
	m.become(breaker.Open)
}

// pass lets time have its effects.
func (m *model) pass() {
	switch m.state {
	case breaker.Closed:
		if at := floor(m.now-m.s.SlowCall, m.width()); m.s.SlowCall > 0 && at > m.lookedAt {
			m.lookedAt = at
			m.judge()
		}
	case breaker.Open:
		if m.now >= m.openEnd {
			m.become(breaker.HalfOpen)
		}
	case breaker.HalfOpen:
		for _, c := range m.calls {
			if c.kind == "" && c.answered && m.leaseOver(c) {
				c.kind, c.passed = "ok", true
			}
		}
		for _, c := range m.calls {
			if c.kind == "" && m.leaseOver(c) {
				m.lost++
				m.open()
				return
			}
		}
		m.close()
	}
}

func (m *model) leaseOver(c *modelCall) bool {
	return m.now >= c.start+max(5*time.Second, 2*m.s.SlowCall)
}

// close closes it if all probes have passed.
func (m *model) close() {
	good := 0
	for _, c := range m.calls {
		if c.kind == "ok" {
			good++
		}
	}
	if good == m.s.Probes {
		m.closedAt = m.now
		m.become(breaker.Closed)
	}
}

func (m *model) allow() *modelCall {
	m.pass()
	c := &modelCall{start: m.now}
	switch m.state {
	case breaker.Closed, breaker.ForcedClosed:
	case breaker.HalfOpen:
		n := 0
		for _, c := range m.calls {
			if c.kind != "ignored" {
				n++
			}
		}
		if n == m.s.Probes {
			m.rejected++
			return nil
		}
		c.probe = true
	default:
		m.rejected++
		return nil
	}
	m.calls = append(m.calls, c)
	return c
}

func (m *model) done(c *modelCall, o breaker.Outcome, latency time.Duration) {
	if c.settledOnce {
		return
	}
	c.settledOnce = true
	mine := false
	for _, d := range m.calls {
		mine = mine || c == d
	}
	if !mine || c.passed {
		m.dropped++
		return
	}
	c.end = m.now
	c.kind = []string{"ok", "failed", "ignored"}[o]
	c.slow = m.s.SlowCall > 0 && latency >= m.s.SlowCall
	if c.probe {
		if o == breaker.Failure || c.slow {
			m.open()
			return
		}
		if o == breaker.Ignored {
			m.ignored++
		}
		m.close()
		return
	}
	switch {
	case o == breaker.Success:
		m.row = 0
	case o == breaker.Failure:
		m.row++
	case !c.slow:
		m.ignored++
		return
	}
	if o != breaker.Success || c.slow {
		m.judge()
	}
}

func (m *model) agree(b *breaker.Breaker) error {
	m.pass()
	s := b.Stats()
	if s.State != m.state || b.State() != m.state {
		return fmt.Errorf("at %v: state %v, model %v", m.now, s.State, m.state)
	}
	if got, want := [5]uint64{s.Openings, s.LostProbes, s.Dropped, s.Rejected, s.Ignored},
		[5]uint64{m.openings, m.lost, m.dropped, m.rejected, m.ignored}; got != want {
		return fmt.Errorf("at %v: openings, lost, dropped, rejected, ignored = %v, model %v", m.now, got, want)
	}
	if m.state == breaker.Closed || m.state == breaker.ForcedClosed {
		n := m.tally()
		got := tally{ok: s.Successes, failed: s.Failures, slow: s.Slow, overdue: s.Overdue}
		want := tally{ok: n.ok, failed: n.failed, slow: n.slow, overdue: n.overdue}
		if got != want {
			return fmt.Errorf("at %v: window %+v, model %+v", m.now, got, want)
		}
	}
	if m.state == breaker.Open && b.RetryAfter() != m.openEnd-m.now {
		return fmt.Errorf("at %v: retry after %v, model %v", m.now, b.RetryAfter(), m.openEnd-m.now)
	}
	return nil
}

// schedule plays a byte string as a schedule of calls, results, waits and commands to a breaker and
// the model.
func schedule(t *testing.T, data []byte) {
	synctest.Test(t, func(t *testing.T) {
		i := 0
		next := func() int {
			if i >= len(data) {
				return 0
			}
			i++
			return int(data[i-1])
		}
		opts := []breaker.Option{
			breaker.WithJitter(0), breaker.WithRamp(0),
			breaker.WithWindow(time.Duration(1+next()%10) * time.Second),
			breaker.WithFailureRatio(float64(1+next()%4)/4, 1+next()%8),
			breaker.WithConsecutiveFailures(next() % 6),
			breaker.WithProbes(1 + next()%4),
			breaker.WithOpenTime(time.Second, 7*time.Second),
		}
		if n := next() % 6; n > 0 {
			opts = append(opts, breaker.WithSlowCalls(time.Duration(n*300)*time.Millisecond, 0.75))
		}
		b := breaker.New(opts...)
		start := time.Now()
		m := &model{s: b.Stats().Settings, state: breaker.Closed}
		type pair struct {
			c breaker.Call
			m *modelCall
		}
		var out []pair
		for step := 0; i < len(data); step++ {
			m.now = time.Since(start)
			op := next()
			switch op % 16 {
			case 0, 1, 2, 3, 4, 5:
				c, err := b.Allow()
				mc := m.allow()
				if (err == nil) != (mc != nil) && m.state != breaker.Disabled {
					t.Fatalf("step %d at %v: Allow says %v, the model %v", step, m.now, err, mc != nil)
				}
				if mc != nil {
					out = append(out, pair{c, mc})
				}
			case 6, 7, 8, 9, 10, 11:
				if len(out) == 0 {
					continue
				}
				k := next() % len(out) // settled ones stay: a second Done does nothing
				o := []breaker.Outcome{breaker.Success, breaker.Success, breaker.Failure, breaker.Ignored}[next()%4]
				latency := time.Duration(next()%8) * 250 * time.Millisecond
				out[k].c.Done(o, latency)
				m.done(out[k].m, o, latency)
			case 12, 13, 14:
				time.Sleep(time.Duration(next()*next()) * time.Millisecond / 4) // in a synctest bubble
				m.now = time.Since(start)
			case 15:
				m.pass()
				b.State()
				switch n := next() % 8; {
				case n == 0:
					b.ForceOpen()
					m.become(breaker.ForcedOpen)
				case n == 1:
					b.ForceClosed()
					m.become(breaker.ForcedClosed)
				case n < 6 || m.state >= breaker.ForcedOpen:
					b.Reset()
					m.become(breaker.Closed)
				default:
					if len(out) > 0 {
						k := next() % len(out)
						out[k].c.Answered()
						out[k].m.answered = out[k].m.answered || !out[k].m.settledOnce
					}
					continue
				}
				m.last, m.closedAt = 0, 0
			}
			if err := m.agree(b); err != nil {
				t.Fatalf("step %d, op %d: %v", step, op%16, err)
			}
		}
	})
}

func TestAgreesWithTheModel(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		data := make([]byte, 600)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		schedule(t, data)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// Whatever is done to a breaker and its calls, in the right order or not, it counts nothing in flight
// once all calls are reported, and closes when good calls come.
func TestAnyScheduleEndsWell(t *testing.T) {
	for seed := range uint64(200) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 3))
			opts := []breaker.Option{
				breaker.WithWindow(time.Duration(1+r.IntN(5)) * time.Second),
				breaker.WithFailureRatio(0.5, 1+r.IntN(8)), breaker.WithConsecutiveFailures(r.IntN(6)),
				breaker.WithProbes(1 + r.IntN(4)), breaker.WithOpenTime(time.Second, 7*time.Second),
				breaker.WithLease(time.Duration(1+r.IntN(4)) * time.Second), breaker.WithRamp(time.Duration(r.IntN(3)) * time.Second),
				breaker.WithMinClients(r.IntN(3)),
			}
			if r.IntN(2) == 0 {
				opts = append(opts, breaker.WithSlowCalls(time.Duration(1+r.IntN(5))*300*time.Millisecond, 0.75))
			}
			b := breaker.New(opts...)
			var out []breaker.Call
			for range 400 {
				k := r.IntN(len(out) + 1)
				switch op := r.IntN(15); {
				case op < 5:
					if c, err := b.Admit(breaker.Request{Client: r.Uint64(), Long: r.IntN(4) == 0, Waits: r.IntN(3) == 0}); err == nil {
						out = append(out, c)
					}
				case op < 7:
					time.Sleep(time.Duration(r.IntN(1500)) * time.Millisecond) // in a synctest bubble
				case op == 7:
					[]func(){b.ForceOpen, b.ForceClosed, b.Disable, b.Reset, b.Reset}[r.IntN(5)]()
				case op == 8:
					b.Set([]breaker.Option{
						breaker.WithSlowCalls(time.Duration(r.IntN(5))*300*time.Millisecond, 0.75),
						breaker.WithMinClients(r.IntN(3)),
						breaker.WithWindow(time.Duration(1+r.IntN(5)) * time.Second),
						breaker.WithProbes(1 + r.IntN(4)),
					}[r.IntN(4)])
				case k == len(out):
				case op == 9:
					out[k] = out[k].Begin(time.Now())
				case op == 10:
					out[k].Answered()
				case op == 11:
					out[k] = out[k].Wait()
				default:
					out[k].Done(breaker.Outcome(r.IntN(3)), time.Duration(r.IntN(8)-1)*250*time.Millisecond)
					if r.IntN(5) == 0 {
						out[k].Fail()
					}
					out = append(out[:k], out[k+1:]...)
				}
				if s := b.Stats(); s.InFlight > uint64(len(out)) {
					t.Fatalf("seed %d: %d in flight, of %d that are not reported", seed, s.InFlight, len(out))
				}
			}
			if b.State() >= breaker.ForcedOpen {
				b.Reset()
			}
			if r.IntN(2) == 0 { // otherwise they are lost
				for _, c := range out {
					c.Done(breaker.Ignored, 0)
				}
				if s := b.Stats(); s.InFlight != 0 || s.ProbesOut != 0 {
					t.Fatalf("seed %d: %d in flight and %d probes out, but all are reported", seed, s.InFlight, s.ProbesOut)
				}
			}
			for range 60_000 / 20 {
				if c, err := b.Allow(); err == nil {
					c.Done(breaker.Success, 0)
				}
				time.Sleep(20 * time.Millisecond) // in a synctest bubble
			}
			if s := b.Stats(); s.State != breaker.Closed || s.Ramp != 1 || s.InFlight != 0 {
				t.Fatalf("seed %d: after a minute of good calls: %+v", seed, s)
			}
		})
	}
}

func FuzzSchedule(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("the quick brown fox jumps over the lazy dog, and does so again and again and again"))
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 2))
		data := make([]byte, 400)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<12 {
			t.Skip("long schedules find no more than short ones")
		}
		schedule(t, data)
	})
}
