package limiter

import (
	"hash/maphash"
	"math/bits"
	"time"
)

// Priorities outside this range are taken for its nearest end, which bounds what the
// choice of the next waiter costs.
const (
	queueMinPriority = -8
	queueMaxPriority = 7
	queueLevels      = queueMaxPriority - queueMinPriority + 1
)

// queueReason is why a waiter, or one that wanted to become one, was sent away.
type queueReason uint8

const (
	queueNone     queueReason = iota // still waiting, or granted
	queueFull                        // no permit, no place in the line
	queueEvicted                     // had a place and lost it to another
	queueExpired                     // waited as long as the line allows
	queueDeadline                    // could not have begun before its deadline
	queueReasons
)

// queueWaiter is one place in the line. It belongs to the lock of the Concurrency until
// it is taken out; from then on to the goroutine that waits for ready.
type queueWaiter struct {
	prev, next *queueWaiter // all waiters that are not kept, in the order they came
	up, down   *queueWaiter // those of the same client and level, by arrival
	client     *queueClient
	level      int
	weight     int64
	arrived    time.Duration // what aging counts from
	entered    time.Duration // what the bound on the wait counts from
	latest     time.Duration // work that begins later is in vain; 0 is never

	queued bool
	reason queueReason
	slot   *concSlot     // the permit, once granted
	kept   *concSlot     // a permit that stands back: it has no place that could be lost
	ready  chan struct{} // capacity 1: says that reason or slot has been decided
	wake   *queueWaiter  // the list of those to be told after the lock is gone
}

// queueClient is the part of the line that belongs to one client: a list for each level
// of priority and the virtual time that stands for the service it has had.
type queueClient struct {
	hash   uint64
	index  int // in queueLine.order; -1 while nobody of this client waits
	n      int
	vtime  time.Duration
	levels uint32 // a bit for each list that is not empty
	lists  [queueLevels]struct{ first, last *queueWaiter }
	count  [queueLevels]int32

	older, newer *queueClient // among the clients of which nobody waits
	idle         bool
	known        bool // in queueLine.clients
}

// queueLine is the waiting line: who waits, who is next, who goes when it is full. It
// is a plain data structure without a clock or a lock.
//
// Between clients it is fair by start-time fair queueing (Goyal, Vin, Cheng 1996): next
// is the client that has had the least service, where a client that was away starts level
// with the one being served. That is deficit round robin with the cost allowed to be
// corrected after the fact, when the work was measured, without going round a ring to pay
// off a debt. Within a client the order is the static key arrival - priority*step, or
// with the sign of the arrival turned while the line is last-in-first-out. The lists for
// each level are in order of arrival, so that only their ends need comparing, and a
// waiter leaves in constant time from anywhere.
type queueLine struct {
	oldest, newest *queueWaiter
	n              int // all who wait
	kept           int // of these, permits that stand back
	lifo           bool
	step           time.Duration // what one level of priority is worth in waiting time

	order    []*queueClient // a heap by vtime of the clients that have waiters
	vnow     time.Duration
	single   *queueClient // for requests that name no client
	clients  map[uint64]*queueClient
	overflow []*queueClient // shared by clients beyond the bound
	longest  *queueClient   // of the clients of which nobody waits, gone longest
	latest   *queueClient
	most     int // clients known at once
	seed     maphash.Seed
	look     int // where the next search for a client with too many places begins
}

const queueShared = 16

func (l *queueLine) init(step time.Duration, clients int) {
	l.step = step
	l.most = clients
	l.single = &queueClient{index: -1}
}

// clientFor returns the record of a client; at most l.most clients have their own.
func (l *queueLine) clientFor(name string) *queueClient {
	if name == "" {
		return l.single
	}
	if l.clients == nil {
		l.seed = maphash.MakeSeed()
		l.clients = make(map[uint64]*queueClient)
		l.overflow = make([]*queueClient, queueShared)
	}
	h := maphash.String(l.seed, name)
	if c := l.clients[h]; c != nil {
		return c
	}
	if len(l.clients) >= l.most {
		gone := l.longest
		if gone == nil {
			i := h % queueShared
			if l.overflow[i] == nil {
				l.overflow[i] = &queueClient{hash: h, index: -1}
			}
			return l.overflow[i]
		}
		l.unidle(gone)
		delete(l.clients, gone.hash)
		gone.known = false
		// A permit in flight may still point to the record, so it is not used again.
	}
	c := &queueClient{hash: h, index: -1, known: true}
	l.clients[h] = c
	return c
}

func (l *queueLine) unidle(c *queueClient) {
	if !c.idle {
		return
	}
	if c.older != nil {
		c.older.newer = c.newer
	} else {
		l.longest = c.newer
	}
	if c.newer != nil {
		c.newer.older = c.older
	} else {
		l.latest = c.older
	}
	c.older, c.newer, c.idle = nil, nil, false
}

func (l *queueLine) toIdle(c *queueClient) {
	if !c.known || c.idle {
		return
	}
	c.idle = true
	c.older = l.latest
	if l.latest != nil {
		l.latest.newer = c
	} else {
		l.longest = c
	}
	l.latest = c
}

func queueLevel(priority int) int {
	return min(max(priority, queueMinPriority), queueMaxPriority) - queueMinPriority
}

// push puts w at the end of its client's list, or where it belongs by its arrival if it is kept.
func (l *queueLine) push(w *queueWaiter, c *queueClient) {
	w.client, w.queued, w.reason = c, true, queueNone
	l.n++
	list := &c.lists[w.level]
	w.up, w.down = list.last, nil
	if w.kept != nil {
		l.kept++
		// It came before nearly all, and of those that came when it did it was the first.
		w.up, w.down = nil, list.first
		for w.down != nil && w.down.arrived < w.arrived {
			w.up, w.down = w.down, w.down.down
		}
	} else {
		w.prev = l.newest
		if l.newest != nil {
			l.newest.next = w
		} else {
			l.oldest = w
		}
		l.newest = w
	}
	if w.up != nil {
		w.up.down = w
	} else {
		list.first = w
	}
	if w.down != nil {
		w.down.up = w
	} else {
		list.last = w
	}
	c.levels |= 1 << w.level
	c.count[w.level]++
	c.n++
	if c.index < 0 {
		l.unidle(c)
		c.vtime = max(c.vtime, l.vnow)
		c.index = len(l.order)
		l.order = append(l.order, c)
		l.siftUp(c.index)
	}
}

// remove takes w out, from wherever it stands.
func (l *queueLine) remove(w *queueWaiter) {
	l.n--
	if w.kept != nil {
		l.kept--
	} else {
		if w.prev != nil {
			w.prev.next = w.next
		} else {
			l.oldest = w.next
		}
		if w.next != nil {
			w.next.prev = w.prev
		} else {
			l.newest = w.prev
		}
	}

	c := w.client
	list := &c.lists[w.level]
	if w.up != nil {
		w.up.down = w.down
	} else {
		list.first = w.down
	}
	if w.down != nil {
		w.down.up = w.up
	} else {
		list.last = w.up
	}
	if list.first == nil {
		c.levels &^= 1 << w.level
	}
	c.count[w.level]--
	c.n--
	if c.n == 0 {
		i := c.index
		last := len(l.order) - 1
		l.swap(i, last)
		l.order[last] = nil
		l.order = l.order[:last]
		c.index = -1
		if i < last {
			l.fix(i)
		}
		l.toIdle(c)
	}
	w.prev, w.next, w.up, w.down, w.queued = nil, nil, nil, nil, false
}

// head returns who is next, or nil.
func (l *queueLine) head() *queueWaiter {
	if l.n == 0 {
		return nil
	}
	return l.best(l.order[0])
}

// best returns which waiter of c is next. Equal keys go to the higher priority.
func (l *queueLine) best(c *queueClient) *queueWaiter {
	var w *queueWaiter
	var key time.Duration
	for m := c.levels; m != 0; {
		level := bits.Len32(m) - 1
		m &^= 1 << level
		bonus := time.Duration(level) * l.step
		if l.lifo {
			if x := c.lists[level].last; w == nil || -x.arrived-bonus < key {
				w, key = x, -x.arrived-bonus
			}
		} else if x := c.lists[level].first; w == nil || x.arrived-bonus < key {
			w, key = x, x.arrived-bonus
		}
	}
	return w
}

// urgent reports whether the one who is next goes before work of that level that arrived
// then and has its permit: it has a higher level, or a lower key. Where the newest goes first nobody
// who is at work has to make room.
func (l *queueLine) urgent(level int, arrived time.Duration) bool {
	w := l.head()
	if w == nil || l.lifo {
		return false
	}
	return w.level > level || w.arrived-time.Duration(w.level)*l.step < arrived-time.Duration(level)*l.step
}

// worst returns which waiter of c would be served last, of those that are not kept; nil if all are.
func (l *queueLine) worst(c *queueClient) *queueWaiter {
	var w *queueWaiter
	var key time.Duration
	for m := c.levels; m != 0; {
		level := bits.TrailingZeros32(m)
		m &^= 1 << level
		bonus := time.Duration(level) * l.step
		if l.lifo {
			x := c.lists[level].first
			for x != nil && x.kept != nil {
				x = x.down
			}
			if x != nil && (w == nil || -x.arrived-bonus > key) {
				w, key = x, -x.arrived-bonus
			}
		} else {
			x := c.lists[level].last
			for x != nil && x.kept != nil {
				x = x.up
			}
			if x != nil && (w == nil || x.arrived-bonus > key) {
				w, key = x, x.arrived-bonus
			}
		}
	}
	return w
}

// victim returns who has to go so that the line, which already holds one too many, fits
// again: the one served last of a client that has more than its share of the places.
func (l *queueLine) victim(newcomer *queueClient) *queueWaiter {
	share := (l.n - 1) / len(l.order)
	if newcomer.n > share {
		return l.worst(newcomer)
	}
	for range l.order {
		l.look++
		if l.look >= len(l.order) {
			l.look = 0
		}
		if c := l.order[l.look]; c.n > share {
			if w := l.worst(c); w != nil {
				return w
			}
		}
	}
	return l.worst(newcomer) // the others have nobody there who could go
}

// charge says that a client has had service worth d more (or less) than was thought.
func (l *queueLine) charge(c *queueClient, d time.Duration) {
	c.vtime += d
	if c.index >= 0 {
		l.fix(c.index)
	}
}

// serve moves the line's own virtual time to the client that is being served.
func (l *queueLine) serve(c *queueClient, cost time.Duration) {
	l.vnow = max(l.vnow, c.vtime)
	l.charge(c, cost)
}

// ahead returns at least how many would be served before a newcomer.
func (l *queueLine) ahead(c *queueClient, level int) int {
	n := 0
	from := level
	if l.lifo {
		from++
	}
	for i := from; i < queueLevels; i++ {
		n += int(c.count[i])
	}
	others := len(l.order)
	if c.index < 0 {
		others++
	}
	return min(n*others, n+l.n-c.n)
}

func (l *queueLine) swap(i, j int) {
	l.order[i], l.order[j] = l.order[j], l.order[i]
	l.order[i].index, l.order[j].index = i, j
}

func (l *queueLine) fix(i int) {
	if !l.siftDown(i) {
		l.siftUp(i)
	}
}

func (l *queueLine) siftUp(i int) {
	for i > 0 {
		p := (i - 1) / 2
		if l.order[p].vtime <= l.order[i].vtime {
			return
		}
		l.swap(i, p)
		i = p
	}
}

func (l *queueLine) siftDown(i int) bool {
	from := i
	for {
		k := 2*i + 1
		if k >= len(l.order) {
			break
		}
		if r := k + 1; r < len(l.order) && l.order[r].vtime < l.order[k].vtime {
			k = r
		}
		if l.order[i].vtime <= l.order[k].vtime {
			break
		}
		l.swap(i, k)
		i = k
	}
	return i > from
}
