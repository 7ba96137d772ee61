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
	size       int64         // what it counts as while it waits: weight, or the limit if that was less
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
	kept   int     // of n, permits that stand back
	size   int64   // of all who wait
	vtime  float64 // weight times ns
	turn   uint64  // of clients with the same vtime, the one with the least is next
	levels uint32  // a bit for each list that is not empty
	lists  [queueLevels]struct{ first, last *queueWaiter }
	sizes  [queueLevels]int64

	older, newer *queueClient // among the clients of which nobody waits
	idle         bool
	known        bool // a record of its own: none that several clients share
}

// queueLine is the waiting line: who waits, who is next, who goes when it is full. It
// is a plain data structure without a clock or a lock.
//
// Between clients it is fair by the service they have had: next is the client that has had the least, or of those
// that have had as much the one whose turn was longest ago. A client that was away starts level with the
// virtual time of weighted fair queueing (Demers, Keshav, Shenker 1989), which goes on by its part of all
// service that is given: so one that has been served is next again after a round, however many new
// ones come meanwhile. That is deficit round robin with the cost allowed to be corrected after the fact, when the work was
// measured, without going round a ring to pay off a debt. Debts end with the line: once nobody waits all start anew.
//
// Within a client the order is the static key arrival - priority*step, or
// with the sign of the arrival turned while the line is last-in-first-out; but then permits that stand back
// come first, since nobody has to make room any more. The lists for
// each level are in order of arrival, so that only their ends need comparing, and a
// waiter leaves in constant time from anywhere.
type queueLine struct {
	oldest, newest *queueWaiter
	n              int // all who wait
	size           int64
	kept           int // of n, permits that stand back
	lifo           bool
	step           time.Duration // what one level of priority is worth in waiting time

	order    []*queueClient // a heap by vtime of the clients that have waiters
	vnow     float64        // the virtual time
	vmost    float64        // the most that any client has had
	turns    uint64
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
		// A permit in flight may still point to the record, so it is not used again.
	}
	c := &queueClient{hash: h, index: -1, known: true}
	l.clients[h] = c
	l.toIdle(c) // it may never wait
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
	if !c.known {
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

// push puts w where it belongs by its arrival: at the end of its client's list in most cases, near the beginning if it is kept.
func (l *queueLine) push(w *queueWaiter, c *queueClient) {
	w.client, w.queued, w.reason = c, true, queueNone
	l.n++
	l.size += w.size
	list := &c.lists[w.level]
	w.up, w.down = list.last, nil
	if w.kept != nil {
		l.kept++
		c.kept++
		// It came before nearly all, and of those that came when it did it was the first.
		w.up, w.down = nil, list.first
		for w.down != nil && w.down.arrived < w.arrived {
			w.up, w.down = w.down, w.down.down
		}
	} else {
		for w.up != nil && w.up.arrived > w.arrived {
			w.up, w.down = w.up.up, w.up
		}
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
	c.sizes[w.level] += w.size
	c.size += w.size
	c.n++
	if c.index < 0 {
		l.unidle(c)
		c.vtime = max(c.vtime, l.vnow)
		l.rejoin(c)
		c.index = len(l.order)
		l.order = append(l.order, c)
		l.siftUp(c.index)
	}
}

// remove takes w out, from wherever it stands.
func (l *queueLine) remove(w *queueWaiter) {
	l.n--
	l.size -= w.size
	if w.kept != nil {
		l.kept--
		w.client.kept--
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
	c.sizes[w.level] -= w.size
	c.size -= w.size
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
	if l.lifo && c.kept > 0 {
		return l.back(c)
	}
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

// back returns which of the permits of c that stand back is next where the newest goes first: that of the highest level.
func (l *queueLine) back(c *queueClient) *queueWaiter {
	for m := c.levels; m != 0; {
		level := bits.Len32(m) - 1
		m &^= 1 << level
		for w := c.lists[level].first; w != nil; w = w.down {
			if w.kept != nil {
				return w
			}
		}
	}
	return nil
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
	holders := len(l.order)
	if l.kept > 0 { // permits that stand back have no place
		for _, c := range l.order {
			if c.n == c.kept {
				holders--
			}
		}
	}
	share := (l.n - l.kept - 1) / holders
	if newcomer.n-newcomer.kept > share {
		return l.worst(newcomer)
	}
	for range l.order {
		l.look++
		if l.look >= len(l.order) {
			l.look = 0
		}
		if c := l.order[l.look]; c.n-c.kept > share {
			return l.worst(c)
		}
	}
	return l.worst(newcomer)
}

// charge says that a client has had service worth d more (or less) than was thought.
func (l *queueLine) charge(c *queueClient, d float64) {
	c.vtime += d
	l.vmost = max(l.vmost, c.vtime)
	if c.index >= 0 {
		l.fix(c.index)
	}
	if l.n == 0 {
		l.settle()
	}
}

// serve says that a client, whose turn it was, is being served and what that is thought to cost.
func (l *queueLine) serve(c *queueClient, cost float64) {
	others := len(l.order)
	if c.index >= 0 {
		others--
	}
	from := max(l.vnow, c.vtime)
	// Costs are guesses, so the virtual time has a bound: nobody who comes has to wait for more than a round.
	l.vnow = max(l.vnow, min(from+cost/float64(others+1), c.vtime+cost))
	l.rejoin(c)
	l.charge(c, cost)
}

// rejoin puts a client behind those that have had as much as it has.
func (l *queueLine) rejoin(c *queueClient) {
	l.turns++
	c.turn = l.turns
}

// settle ends all debts: nobody waits.
func (l *queueLine) settle() { l.vnow = max(l.vnow, l.vmost) }

// ahead returns about how much weight would be served before a newcomer of that weight: of its own client those who
// are before it, and as much of each other client that has had no more. Where the newest goes first nobody of its own is.
func (l *queueLine) ahead(c *queueClient, level int, weight int64) int64 {
	own := int64(0)
	if !l.lifo {
		for _, size := range c.sizes[level:] {
			own += size
		}
	}
	vtime := c.vtime
	if c.index < 0 {
		vtime = max(vtime, l.vnow)
	}
	all := own
	for _, x := range l.order {
		if x == c {
			continue
		}
		before := own
		if x.vtime <= vtime {
			before += weight
		}
		all += min(x.size, before)
	}
	return all
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
		if !l.order[i].before(l.order[p]) {
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
		if r := k + 1; r < len(l.order) && l.order[r].before(l.order[k]) {
			k = r
		}
		if !l.order[k].before(l.order[i]) {
			break
		}
		l.swap(i, k)
		i = k
	}
	return i > from
}

func (c *queueClient) before(d *queueClient) bool {
	return c.vtime < d.vtime || c.vtime == d.vtime && c.turn < d.turn
}
