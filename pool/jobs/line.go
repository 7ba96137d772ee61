package jobs

import (
	"container/heap"
	"time"
)

// line holds the jobs that could begin now. Between clients it is fair by the run time
// they have had, as the queue of package limiter is: next is the client that has had the least, or of those that have had
// as much the one whose turn was longest ago; one that was away starts level with a virtual time that goes on by its
// part of all run time, and all debts end when no job waits. The jobs of one client
// go by arrival - priority*step, so that none is overtaken for ever. It is a data structure
// without clock or lock.
type line struct {
	n       int
	clients map[string]*client
	order   ordered[*client] // of those with jobs in the queue
	owing   ordered[*client] // of those without unfinished jobs that have had more than others
	now     time.Duration    // the virtual time
	most    time.Duration    // the most that any client has had
	turns   uint64
}

// client is the part of the queue that belongs to one client. It exists while the client has
// unfinished jobs or is owing.
type client struct {
	name       string
	jobs       ordered[*entry]
	vtime      time.Duration
	turn       uint64 // of clients with the same vtime, the one with the least is next
	index      int    // in line.order or line.owing; -1 while in neither
	unfinished int
	bytes      int64 // of the payloads of these
}

const priorityStep = time.Second

// lineEra is how much run time goes by until virtual time begins anew, some 36 years.
const lineEra = 1 << 60

// maxOwing bounds how many clients without unfinished jobs are remembered. Of more than that those
// that owe least are forgotten: to get rid of a debt by other names takes larger debts in these.
const maxOwing = 1024

func (l *line) client(name string) *client {
	c := l.clients[name]
	if c == nil {
		if l.clients == nil {
			l.clients = make(map[string]*client)
		}
		c = &client{name: name, index: -1}
		l.clients[name] = c
	}
	return c
}

// begin counts an unfinished job of the client and its payload, end counts them out again. With its last job a client is
// forgotten only if it owes nothing: one that submits a job when the one before it has ended would never pay for any.
func (l *line) begin(name string, bytes int) {
	c := l.client(name)
	if c.unfinished == 0 && c.index >= 0 {
		heap.Remove(&l.owing, c.index)
	}
	c.unfinished++
	c.bytes += int64(bytes)
}

func (l *line) end(name string, bytes int) {
	c := l.clients[name]
	if c == nil {
		return
	}
	c.bytes -= int64(bytes)
	if c.unfinished--; c.unfinished == 0 {
		c.jobs = nil
		heap.Push(&l.owing, c)
		l.forgive()
	}
}

// forgive forgets clients that owe nothing any more, or too little to be remembered.
func (l *line) forgive() {
	for len(l.owing) > 0 && (l.owing[0].vtime <= l.now || len(l.owing) > maxOwing) {
		c := heap.Pop(&l.owing).(*client)
		delete(l.clients, c.name)
	}
}

func (l *line) push(e *entry, now time.Duration) {
	c := l.client(e.client)
	e.rank = now - time.Duration(min(max(e.priority, -8), 7))*priorityStep
	heap.Push(&c.jobs, e)
	l.n++
	if c.index < 0 {
		c.vtime = max(c.vtime, l.now)
		l.rejoin(c)
		heap.Push(&l.order, c)
	}
}

// pop takes the next job out and charges its client for the time it is thought to take.
func (l *line) pop(cost time.Duration) *entry {
	if l.n == 0 {
		return nil
	}
	e := l.head()
	c := l.order[0]
	from := max(l.now, c.vtime)
	// The cost is a guess, so the virtual time has a bound: nobody who comes has to wait for more than a round.
	l.now = max(l.now, min(from+cost/time.Duration(len(l.order)), c.vtime+cost))
	l.rejoin(c)
	l.charge(c.name, cost)
	l.remove(e)
	l.forgive()
	return e
}

// head is the job that pop would take out. There must be one.
func (l *line) head() *entry { return l.order[0].jobs[0] }

func (l *line) remove(e *entry) {
	c := l.clients[e.client]
	heap.Remove(&c.jobs, e.place)
	l.n--
	if len(c.jobs) == 0 {
		heap.Remove(&l.order, c.index)
	}
	l.settle()
}

// rejoin puts a client behind those that have had as much as it has.
func (l *line) rejoin(c *client) {
	l.turns++
	c.turn = l.turns
}

// settle ends all debts if no job waits. It has virtual time begin anew long before there is more of it than a Duration holds.
func (l *line) settle() {
	if l.n == 0 {
		l.now = max(l.now, l.most)
		l.forgive()
	}
	if l.now > lineEra {
		for _, c := range l.clients {
			c.vtime -= l.now // the heaps stay in order
		}
		l.now, l.most = 0, l.most-l.now
	}
}

// charge corrects what a client was charged. It has an unfinished job, and so is not owing.
func (l *line) charge(name string, d time.Duration) {
	if c := l.clients[name]; c != nil {
		c.vtime += d
		l.most = max(l.most, c.vtime)
		if c.index >= 0 {
			heap.Fix(&l.order, c.index)
		}
		l.settle()
	}
}

func (c *client) before(o *client) bool {
	return c.vtime < o.vtime || c.vtime == o.vtime && c.turn < o.turn
}
func (c *client) moved(place int) { c.index = place }

// before orders entries by rank and then by the order they were submitted in. An entry is
// in at most one heap at a time: ready, delayed or finished.
func (e *entry) before(o *entry) bool {
	return e.rank < o.rank || e.rank == o.rank && e.number < o.number
}
func (e *entry) moved(place int) { e.place = place }

// placed is an element of a heap that knows its place in it, so that it can be taken out; -1 is none.
type placed[E any] interface {
	before(E) bool
	moved(place int)
}

var (
	_ placed[*client] = (*client)(nil)
	_ placed[*entry]  = (*entry)(nil)
	_ placed[*keeper] = (*keeper)(nil)
)

// ordered is a heap (container/heap).
type ordered[E placed[E]] []E

func (h ordered[E]) Len() int           { return len(h) }
func (h ordered[E]) Less(i, j int) bool { return h[i].before(h[j]) }
func (h ordered[E]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].moved(i)
	h[j].moved(j)
}
func (h *ordered[E]) Push(x any) {
	e := x.(E)
	e.moved(len(*h))
	*h = append(*h, e)
}
func (h *ordered[E]) Pop() any {
	old := *h
	last := len(old) - 1
	e := old[last]
	clear(old[last:])
	*h = old[:last]
	e.moved(-1)
	return e
}
