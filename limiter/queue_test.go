package limiter

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// queueModel is the line said in the plainest way: a list that is searched.
type queueModel struct {
	waiters []*queueWaiter
	names   map[*queueWaiter]string
	vtime   map[string]float64
	turn    map[string]int // when it was last put behind the others
	turns   int
	vnow    float64
	lifo    bool
	step    time.Duration
}

func (m *queueModel) count(name string) int {
	n := 0
	for _, w := range m.waiters {
		if m.names[w] == name {
			n++
		}
	}
	return n
}

func (m *queueModel) push(w *queueWaiter, name string) {
	if m.count(name) == 0 {
		m.vtime[name] = max(m.vtime[name], m.vnow)
		m.behind(name)
	}
	m.waiters = append(m.waiters, w)
	m.names[w] = name
}

func (m *queueModel) remove(w *queueWaiter) {
	m.waiters = slices.DeleteFunc(m.waiters, func(x *queueWaiter) bool { return x == w })
}

func (m *queueModel) behind(name string) {
	m.turns++
	m.turn[name] = m.turns
}

// serve is for w, which is next: the virtual time goes on by what each of those who waited got of its cost, but
// never past what w's client has had then.
func (m *queueModel) serve(w *queueWaiter, cost float64) {
	name := m.names[w]
	waited := map[string]bool{}
	for _, x := range m.waiters {
		waited[m.names[x]] = true
	}
	m.remove(w)
	m.vnow = max(m.vnow, min(max(m.vnow, m.vtime[name])+cost/float64(len(waited)), m.vtime[name]+cost))
	m.behind(name)
	m.charge(name, cost)
}

func (m *queueModel) charge(name string, d float64) {
	m.vtime[name] += d
	if len(m.waiters) == 0 {
		for _, v := range m.vtime {
			m.vnow = max(m.vnow, v)
		}
	}
}

func (m *queueModel) key(w *queueWaiter) time.Duration {
	if m.lifo {
		return -w.arrived - time.Duration(w.level)*m.step
	}
	return w.arrived - time.Duration(w.level)*m.step
}

// mayBeNext reports whether w is the one that the rules allow to be next: of the client that has
// had the least, for the longest time, the one with the least key.
func (m *queueModel) mayBeNext(w *queueWaiter) error {
	name := m.names[w]
	for _, x := range m.waiters {
		switch other := m.names[x]; {
		case m.vtime[other] < m.vtime[name]:
			return fmt.Errorf("client %q has had %v, another %v", name, m.vtime[name], m.vtime[other])
		case m.vtime[other] == m.vtime[name] && m.turn[other] < m.turn[name]:
			return fmt.Errorf("client %q has had as much as another that came before it", name)
		}
	}
	for _, x := range m.waiters {
		if m.names[x] == name && m.key(x) < m.key(w) {
			return fmt.Errorf("key %v is served before %v", m.key(w), m.key(x))
		}
	}
	return nil
}

// least reports whether w is the one that is served last of its client.
func (m *queueModel) least(w *queueWaiter) bool {
	for _, x := range m.waiters {
		if m.names[x] == m.names[w] && m.key(x) > m.key(w) {
			return false
		}
	}
	return true
}

// sound checks that each client that is known waits or is among those that do not, in the order in which they ceased to.
func (l *queueLine) sound() error {
	idle := 0
	var before *queueClient
	for c := l.longest; c != nil; c = c.newer {
		if c.older != before || !c.idle || !c.known || c.n != 0 || l.clients[c.hash] != c {
			return fmt.Errorf("client %d of those that do not wait is out of place: %+v", idle, *c)
		}
		if idle++; idle > len(l.clients) {
			return fmt.Errorf("more than %d clients do not wait", len(l.clients))
		}
		before = c
	}
	if l.latest != before {
		return fmt.Errorf("the latest of %d clients that do not wait is not the last", idle)
	}
	n := 0
	for i, c := range l.order {
		if c.index != i || c.n < 1 || c.idle {
			return fmt.Errorf("client %d of those that wait is out of place: %+v", i, *c)
		}
		if n += c.n; c.known {
			idle++
		}
	}
	if n != l.n || idle != len(l.clients) {
		return fmt.Errorf("%d wait of %d, and %d clients are known of %d", n, l.n, idle, len(l.clients))
	}
	return nil
}

// The line does what a naive list does, under random arrivals, departures, costs known
// late, and both orders.
func TestQueueAgreesWithModel(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 9))
		step := time.Duration(r.IntN(3)) * 10 * time.Millisecond
		var l queueLine
		l.init(step, 100)
		m := &queueModel{names: map[*queueWaiter]string{}, vtime: map[string]float64{}, turn: map[string]int{}, step: step}
		now := time.Duration(0)
		clients := []string{"", "a", "b", "c"}
		served := map[*queueClient]string{}
		for i := range 3000 {
			now += time.Duration(1 + r.IntN(int(5*time.Millisecond)))
			switch k := r.IntN(10); {
			case k < 5:
				name := clients[r.IntN(len(clients))]
				w := &queueWaiter{level: queueLevel(r.IntN(24) - 12), arrived: now, entered: now}
				c := l.clientFor(name)
				served[c] = name
				l.push(w, c)
				m.push(w, name)
			case k < 8 && l.n > 0:
				w := l.head()
				if err := m.mayBeNext(w); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				c, name := w.client, m.names[w]
				l.remove(w)
				cost := float64(r.IntN(1000))
				l.serve(c, cost)
				m.serve(w, cost)
				if r.IntN(2) == 0 {
					l.charge(c, cost)
					m.charge(name, cost)
				}
			case k == 8 && l.n > 0:
				w := m.waiters[r.IntN(len(m.waiters))]
				l.remove(w)
				m.remove(w)
			case k == 9 && r.IntN(20) == 0:
				l.lifo = !l.lifo
				m.lifo = l.lifo
			}
			if l.n != len(m.waiters) {
				t.Fatalf("seed %d: %d wait, want %d", seed, l.n, len(m.waiters))
			}
			if l.n > 0 && l.oldest != m.waiters[0] {
				t.Fatalf("seed %d: the oldest is not the oldest", seed)
			}
			if i%10 != 0 {
				continue // what follows takes its time
			}
			if err := l.sound(); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			for _, c := range l.order {
				if w := l.worst(c); w == nil || w.client != c || !m.least(w) {
					t.Fatalf("seed %d: of client %q %v is served last", seed, served[c], w)
				}
			}
			if l.n > 0 {
				level, arrived := r.IntN(queueLevels), now-time.Duration(r.IntN(int(20*time.Millisecond)))
				at := queueWaiter{level: level, arrived: arrived}
				w := l.head()
				if got, want := l.urgent(level, arrived), !m.lifo && (w.level > level || m.key(w) < m.key(&at)); got != want {
					t.Fatalf("seed %d: more urgent than level %d of %v: %v, want %v", seed, level, arrived, got, want)
				}
			}
		}
	}
}

// The one that has to go is the last to be served of a client with more than its share.
func TestQueueVictim(t *testing.T) {
	var l queueLine
	l.init(0, 100)
	add := func(name string, at int) *queueWaiter {
		w := &queueWaiter{level: queueLevel(0), arrived: time.Duration(at)}
		l.push(w, l.clientFor(name))
		return w
	}
	add("flood", 1)
	add("flood", 2)
	last := add("flood", 3)
	honest := add("honest", 4)
	if v := l.victim(honest.client); v != last {
		t.Errorf("first in, first out: %v has to go, want %v", v.arrived, last.arrived)
	}
	l.lifo = true
	if v := l.victim(honest.client); v.arrived != 1 {
		t.Errorf("last in, first out: %v has to go, want the oldest", v.arrived)
	}
	l.lifo = false
	more := add("flood", 5)
	if v := l.victim(more.client); v != more {
		t.Errorf("the newcomer itself is one too many of its client: %v has to go", v.arrived)
	}
}

// Permits that stand back have no place, and those who have nothing else in the line no share.
func TestQueueVictimBesidePermits(t *testing.T) {
	for _, standBack := range [][]string{{"batch", "batch", "batch", "batch", "batch", "batch"}, {"a", "b", "c", "d"}, {"flood"}, {"honest", "honest", "a"}} {
		var l queueLine
		l.init(0, 100)
		add := func(name string, at int, kept *concSlot) *queueWaiter {
			w := &queueWaiter{level: queueLevel(0), arrived: time.Duration(at), kept: kept}
			l.push(w, l.clientFor(name))
			return w
		}
		for _, name := range standBack {
			add(name, 0, new(concSlot))
		}
		add("flood", 1, nil)
		last := add("flood", 2, nil)
		honest := add("honest", 3, nil)
		if v := l.victim(honest.client); v != last {
			t.Errorf("%v stand back: %v has to go, want the last of the flood", standBack, v.arrived)
		}
	}
}

// However many clients there are, the records are bounded.
func TestQueueClientsBounded(t *testing.T) {
	var l queueLine
	l.init(0, 10)
	for i := range 1000 {
		w := &queueWaiter{level: queueLevel(0), arrived: time.Duration(i)}
		l.push(w, l.clientFor(fmt.Sprint(i)))
		if i%3 == 0 {
			l.remove(w)
		}
		if len(l.clients) > 10 {
			t.Fatalf("%d clients are known, want at most 10", len(l.clients))
		}
		if err := l.sound(); err != nil {
			t.Fatalf("after %d clients: %v", i, err)
		}
	}
	for l.n > 0 {
		w := l.head()
		l.remove(w)
		l.serve(w.client, 1)
		if err := l.sound(); err != nil {
			t.Fatalf("with %d that wait: %v", l.n, err)
		}
	}
	if len(l.order) != 0 || l.oldest != nil || l.newest != nil {
		t.Error("an empty line that is not empty")
	}
}

// A record is given to another client only if nobody of its own waits, that of the client gone longest first.
func TestQueueRecordsOfThoseWhoWaitStay(t *testing.T) {
	var l queueLine
	l.init(0, 3)
	known := map[string]*queueClient{}
	come := func(name string) { known[name] = l.clientFor(name) }
	wait := func(name string) *queueWaiter {
		come(name)
		w := &queueWaiter{level: queueLevel(0)}
		l.push(w, known[name])
		return w
	}
	check := func(want ...string) {
		t.Helper()
		var have []string
		for name, c := range known {
			if l.clients[c.hash] == c {
				have = append(have, name)
			}
		}
		slices.Sort(have)
		if !slices.Equal(have, want) {
			t.Errorf("records of %q, want %q", have, want)
		}
	}
	for _, name := range []string{"a", "b", "c"} {
		l.remove(wait(name))
	}
	b := wait("b")
	l.remove(wait("")) // which has none
	check("a", "b", "c")
	come("d")
	check("b", "c", "d")
	come("e")
	check("b", "d", "e")
	d, e := wait("d"), wait("e")
	come("f") // all wait: it shares a record
	check("b", "d", "e")
	l.remove(d)
	l.remove(b)
	come("g")
	check("b", "e", "g")
	come("h")
	check("e", "g", "h")
	l.remove(e)
	wait("g")
	wait("h")
	come("i")
	check("g", "h", "i")
	if err := l.sound(); err != nil {
		t.Error(err)
	}
}

func FuzzCtrlStep(f *testing.F) {
	f.Add(1., 100., .5, .01, 100., 50., 10., 1., uint8(3))
	f.Add(.001, 1., 10., 100., 0., 0., 0., 0., uint8(9))
	f.Fuzz(func(t *testing.T, secs, n, sum, squares, arrivals, blocked, shed, open float64, times uint8) {
		s := ctrlNew(8, 1, 100_000)
		w := ctrlWindow{secs: secs, n: n, sum: sum, squares: squares, arrivals: arrivals, blocked: blocked, shed: shed, open: open}
		for _, v := range []float64{secs, n, sum, squares, arrivals, blocked, shed, open} {
			if !(v >= 0 && v < 1e9) {
				t.Skip() // the counters cannot say that
			}
		}
		if blocked > arrivals || open > 1 || sum < 1e-9 || secs < 1e-6 || n < 1 {
			t.Skip()
		}
		for i := range int(times) {
			limit := s.limit
			s = s.step(w)
			if s.limit < 1 || s.limit > 100_000 {
				t.Fatalf("step %d: limit %d", i, s.limit)
			}
			if s.needN != s.needN || s.needSecs != s.needSecs || s.mostSecs != s.mostSecs || s.base != s.base {
				t.Fatalf("step %d: not a number: %+v", i, s)
			}
			if shed == 0 && blocked <= ctrlEager*arrivals && s.limit > limit {
				t.Fatalf("step %d: grew from %d to %d while nothing was shed, and most found a permit", i, limit, s.limit)
			}
		}
	})
}
