package jobs

import (
	"container/heap"
	"time"
)

// line holds the jobs that could begin now. Between clients it is fair by the run time
// they have had (start-time fair queueing, as in package limiter); the jobs of one client
// go by arrival - priority*step, so that none is overtaken for ever. It is a data structure
// without clock or lock.
type line struct {
	n       int
	clients map[string]*client
	order   clientHeap // of those with jobs in the line
	now     time.Duration
}

// client is the part of the line that belongs to one client. It exists while the client has
// unfinished jobs.
type client struct {
	name       string
	jobs       jobHeap
	vtime      time.Duration
	index      int // in line.order; -1 while nothing waits
	unfinished int
}

const priorityStep = time.Second

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

// begin counts an unfinished job of the client, end counts it out again.
func (l *line) begin(name string) { l.client(name).unfinished++ }

func (l *line) end(name string) {
	if c := l.clients[name]; c != nil {
		if c.unfinished--; c.unfinished == 0 {
			delete(l.clients, name)
		}
	}
}

func (l *line) push(e *entry, now time.Duration) {
	c := l.client(e.client)
	e.rank = now - time.Duration(min(max(e.priority, -8), 7))*priorityStep
	heap.Push(&c.jobs, e)
	l.n++
	if c.index < 0 {
		c.vtime = max(c.vtime, l.now)
		heap.Push(&l.order, c)
	}
}

// pop takes the next job out and charges its client for the time it is thought to take.
func (l *line) pop(cost time.Duration) *entry {
	if l.n == 0 {
		return nil
	}
	c := l.order[0]
	e := heap.Pop(&c.jobs).(*entry)
	l.n--
	l.now = max(l.now, c.vtime)
	c.vtime += cost
	if len(c.jobs) == 0 {
		heap.Pop(&l.order)
	} else {
		heap.Fix(&l.order, 0)
	}
	return e
}

func (l *line) remove(e *entry) {
	c := l.clients[e.client]
	heap.Remove(&c.jobs, e.place)
	l.n--
	if len(c.jobs) == 0 {
		heap.Remove(&l.order, c.index)
	}
}

// charge corrects what a client was charged.
func (l *line) charge(name string, d time.Duration) {
	if c := l.clients[name]; c != nil {
		c.vtime += d
		if c.index >= 0 {
			heap.Fix(&l.order, c.index)
		}
	}
}

type clientHeap []*client

func (h clientHeap) Len() int           { return len(h) }
func (h clientHeap) Less(i, j int) bool { return h[i].vtime < h[j].vtime }
func (h clientHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *clientHeap) Push(x any) {
	c := x.(*client)
	c.index = len(*h)
	*h = append(*h, c)
}
func (h *clientHeap) Pop() any {
	old := *h
	c := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	c.index = -1
	return c
}

// jobHeap orders entries by rank and then by the order they were submitted in. An entry is
// in at most one heap at a time: ready, delayed or finished.
type jobHeap []*entry

func (h jobHeap) Len() int { return len(h) }
func (h jobHeap) Less(i, j int) bool {
	return h[i].rank < h[j].rank || h[i].rank == h[j].rank && h[i].number < h[j].number
}
func (h jobHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}
func (h *jobHeap) Push(x any) {
	e := x.(*entry)
	e.place = len(*h)
	*h = append(*h, e)
}
func (h *jobHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.place = -1
	return e
}
