package limiter

import (
	"hash/maphash"
	"math"
	"math/bits"
	"runtime"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// tableWays is how many slots a key may be in: the hashes of one set fill one cache line.
const tableWays = 8

// table keeps the buckets of many keys in a fixed number of slots. A slot is the 64-bit hash of
// its key, seeded at random for each table, and a word for each policy; there is no
// pointer in it, so the garbage collector never looks inside. A full bucket equals that
// of a key never seen, so slots come free by themselves and nothing has to sweep.
//
// A new key takes a free slot of its set, or else the one whose bucket is full soonest. That forgets
// the least, and a flood of new keys displaces its own, not the drained bucket of an abuser. But for his first
// event he is one of the flood; see tableGhosts.
type table struct {
	policies int
	words    int // of a slot: one a policy, and with a store one more for asksStore
	sets     uint64
	seed     maphash.Seed
	hashes   []uint64 // 0 is a free slot
	cells    []int64  // words of each slot
	shards   []tableShard
	ghosts   tableGhosts
	exact    bool
	budget   *tableBudget
}

// tableShard guards the sets whose number has the same low bits, or one LRU of exact keys.
type tableShard struct {
	mu       sync.Mutex
	clock    tableClock
	rules    *tableRules
	exact    tableExact
	held     map[uint64]*tableHeld // by hash, of those who wait
	admitted uint64
	rejected uint64
	shadowed uint64
	evicted  uint64
	shared   uint64
	_        [64]byte // keeps neighbours off each other's cache lines
}

// tableRules is the present rule of each policy; immutable until others take their place.
type tableRules struct {
	policies []policyRule
	next     *tableRules // the others, for what was reserved under these
	changed  []int64     // when they did, by shard
}

// tableBudget is the one bucket that new keys share while there is no free slot for them.
type tableBudget struct {
	mu    sync.Mutex
	clock tableClock
	rule  policyRule
	cell  int64
}

// tableTake is one question to a table (or to the store beneath it).
type tableTake struct {
	key     string
	ns      int64
	wall    bool // ns is from a clock that may step
	late    bool // another was decided on at a later time
	n       int
	maxWait time.Duration // how far ahead tokens may be reserved; 0 for now or never
	peek    bool          // decide, charge nothing, count nothing
	shadow  bool          // count a refusal as shadowed
	half    bool          // a store has a say too, and its front counts what comes of it; a refusal may ask it
	again   bool          // a refusal is no decision: who waits asks again
	own     bool          // the first policy has this key's own limit:
	limit   rate.Limit
	burst   int
}

// tableAnswer is what became of it.
type tableAnswer struct {
	ok      bool
	shared  bool          // a new key without a slot
	evicted bool          // a live bucket was forgotten
	policy  int           // the one that refused, or else the one that is nearest to it
	wait    time.Duration // until the reserved tokens are there
	state   PolicyState   // of policy
	burst   int           // of policy
	rules   *tableRules
	mark    int64      // with shared, what was written to the bucket of new keys
	held    *tableHeld // with marks, and not shared, if there is a wait
	asks    bool       // refused, and the store is to be asked all the same

	storeErr    error // the store's, if it did not decide
	unavailable bool  // nor did the local buckets
}

func newTable(keys int, exact, stored bool, rules *tableRules, budget *tableBudget) *table {
	t := &table{policies: len(rules.policies), seed: maphash.MakeSeed(), exact: exact, budget: budget}
	t.words = t.policies
	if stored {
		t.words++
	}
	t.sets = uint64((keys-1)/tableWays + 1)
	shards := 64
	for shards < 4*runtime.GOMAXPROCS(0) {
		shards *= 2
	}
	for uint64(shards) > t.sets {
		shards /= 2
	}
	t.shards = make([]tableShard, shards)
	for i := range t.shards {
		t.shards[i].clock.newest, t.shards[i].rules = math.MinInt64, rules
		if exact {
			t.shards[i].exact = newTableExact((keys-1)/shards+1, t.words)
		}
	}
	if !exact {
		t.hashes = make([]uint64, t.sets*tableWays)
		t.cells = make([]int64, len(t.hashes)*t.words)
		t.ghosts = make(tableGhosts, t.sets)
	}
	return t
}

// present returns the rules.
func (t *table) present() *tableRules {
	sh := &t.shards[0]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.rules
}

func (t *table) hash(key string) uint64 {
	h := maphash.String(t.seed, key)
	if h == 0 {
		h = 1
	}
	return h
}

func (t *table) capacity() int {
	if t.exact {
		return len(t.shards) * t.shards[0].exact.size
	}
	return len(t.hashes)
}

// locate returns the set of a hash and its shard.
func (t *table) locate(hash uint64) (set uint64, sh *tableShard) {
	set, _ = bits.Mul64(hash, t.sets)
	return set, &t.shards[t.shard(set)]
}

// shard returns the number of the shard of a set.
func (t *table) shard(set uint64) uint64 { return set & uint64(len(t.shards)-1) }

// find returns the words of a known key's buckets, else nil. The shard is locked.
func (t *table) find(sh *tableShard, set, hash uint64, key string) []int64 {
	if t.exact {
		return sh.exact.find(key)
	}
	first := set * tableWays
	ways := t.hashes[first : first+tableWays]
	for i, h := range ways {
		if h == hash {
			return t.slot(int(first) + i)
		}
	}
	return nil
}

// slot returns the words of the buckets in a slot.
func (t *table) slot(i int) []int64 { return t.cells[i*t.words:][:t.policies:t.words] }

// victim returns the slot for a new key, and whether its bucket is live. The shard is locked.
func (t *table) victim(sh *tableShard, set uint64, ns int64) (slot int, live bool) {
	if t.exact {
		spare := 0
		if t.budget != nil {
			spare = tableWays
		}
		return 0, sh.exact.fullOfLive(sh.rules, ns, spare)
	}
	first := int(set) * tableWays
	if t.policies == 1 && !sh.rules.policies[0].infinite {
		p := &sh.rules.policies[0]
		reading := p.clock(ns)
		least := int64(math.MaxInt64)
		for i := range tableWays {
			if t.hashes[first+i] == 0 {
				return first + i, false
			}
			s := p.spent(t.slot(first + i)[0], reading)
			if s < least {
				slot, least = first+i, s
			}
		}
		return slot, least > 0
	}
	least := time.Duration(math.MaxInt64) // longer than any
	for i := range tableWays {
		if t.hashes[first+i] == 0 {
			return first + i, false
		}
		full := sh.rules.full(t.slot(first+i), ns)
		if full < least {
			slot, least = first+i, full
		}
	}
	return slot, least > 0
}

// full returns when the last of the buckets is full again; 0 means that they may be forgotten. One that never will be has its place
// behind all others, the fuller the sooner.
func (r *tableRules) full(cells []int64, ns int64) time.Duration {
	const never = 1 << 62
	var full time.Duration
	for i := range r.policies {
		p := &r.policies[i]
		if p.infinite {
			continue
		}
		if s := p.spent(cells[i], p.clock(ns)); s > 0 {
			if p.nsPerTick == 0 {
				full = max(full, never+time.Duration(s))
				continue
			}
			full = max(full, min(p.wait(s), never))
		}
	}
	return full
}

// rule returns the rule of policy i for this question: the key's own, if it has one.
func (q *tableTake) rule(rules *tableRules, i int, own *policyRule) *policyRule {
	p := &rules.policies[i]
	if i == 0 && q.own {
		*own = p.forKey(q.limit, q.burst)
		return own
	}
	return p
}

// unlimited reports whether no policy holds the key to anything, so that it needs no slot.
func (q *tableTake) unlimited(rules *tableRules) bool {
	for i := range rules.policies {
		infinite := rules.policies[i].infinite
		if i == 0 && q.own {
			infinite = policyInfinite(q.limit)
		}
		if !infinite {
			return false
		}
	}
	return true
}

// take decides for all policies, and charges all or none, into a zero answer. each, where it is not empty, gets the state of
// every policy; marks, where it is not nil, the words that were written, for giveBack.
func (t *table) take(q *tableTake, each []PolicyState, marks *[ratePolicyMax]int64, a *tableAnswer) {
	hash := t.hash(q.key)
	set, sh := t.locate(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	q.order(&sh.clock)
	cells := t.find(sh, set, hash, q.key)
	switch {
	case cells == nil:
		t.takeNew(q, sh, set, hash, each, marks, a)
	case len(cells) == 1 && !q.own && marks == nil:
		sh.decideOne(q, &cells[0], a)
		if len(each) > 0 {
			each[0] = a.state
		}
	default:
		sh.decide(q, cells, false, each, marks, a)
	}
	if q.half && !a.ok && cells != nil {
		a.asks = q.asksStore(a, &cells[:t.words][t.policies])
	}
	if marks != nil && a.ok && a.wait > 0 && !a.shared && !q.shadow {
		a.held = sh.hold(t.heldHash(hash, q.key))
	}
	sh.count(q, a)
}

// takeNew is take for a key that has no slot. The shard is locked.
func (t *table) takeNew(q *tableTake, sh *tableShard, set, hash uint64, each []PolicyState, marks *[ratePolicyMax]int64, a *tableAnswer) {
	var words [ratePolicyMax]int64
	cells := words[:t.policies]
	if q.n == 0 || q.unlimited(sh.rules) || q.peek && t.budget == nil {
		sh.decide(q, cells, true, each, marks, a)
		return
	}
	slot, live := t.victim(sh, set, q.ns)
	displaced := live && t.budget == nil && t.ghosts.has(set, hash)
	if displaced {
		sh.rules.spendOne(cells, q)
	}
	sh.decide(q, cells, !displaced, each, marks, a)
	if displaced && (!a.ok || a.wait > 0) {
		*a = tableAnswer{}
		sh.decide(q, cells, true, each, marks, a)
	}
	if !a.ok {
		return
	}
	if live && t.budget != nil {
		t.budget.take(q, each, a)
		if a.ok && !q.peek {
			sh.shared++
		}
		return
	}
	if q.peek {
		return
	}
	t.insert(sh, set, slot, hash, q.key, cells, live)
	a.evicted = live
}

// insert puts a new key into the slot that victim chose. The shard is locked.
func (t *table) insert(sh *tableShard, set uint64, slot int, hash uint64, key string, cells []int64, live bool) {
	if live {
		sh.evicted++
	}
	if t.exact {
		if name, full := sh.exact.next(); full && len(sh.held) > 0 {
			sh.forget(t.hash(name))
		}
		sh.exact.insert(key, cells)
		return
	}
	if live {
		t.ghosts.add(set, t.hashes[slot])
	}
	sh.forget(t.hashes[slot])
	t.hashes[slot] = hash
	clear(t.slot(slot)[:t.words])
	copy(t.slot(slot), cells)
}

// spendOne makes cells the words of buckets of which one token is spent.
func (r *tableRules) spendOne(cells []int64, q *tableTake) {
	var own policyRule
	for i := range cells {
		p := q.rule(r, i, &own)
		cells[i] = p.clock(q.ns) + min(p.cost(1), p.capacity)
	}
}

// decideOne is decide for what is asked most: a known key, one policy, no reservation. The shard is locked.
func (sh *tableShard) decideOne(q *tableTake, cell *int64, a *tableAnswer) {
	p := &sh.rules.policies[0]
	a.rules, a.burst = sh.rules, p.burst
	if p.infinite {
		a.ok, a.burst, a.state = true, policyUnbounded, p.state(0)
		return
	}
	reading := p.clock(q.ns)
	spent := p.spent(*cell, reading)
	if q.n > p.burst {
		a.state = p.state(spent)
		a.state.Refused = true
		return
	}
	after := spent + p.cost(q.n)
	if short := after - p.capacity; short > p.grace {
		q.mend(p, cell, reading)
		a.state = p.state(spent)
		a.state.Refused = true
		a.state.RetryAfter = p.wait(short)
		return
	}
	a.ok = true
	if q.peek {
		a.state = p.state(spent)
		return
	}
	*cell = reading + after
	a.state = p.state(after)
}

// tableClock is the newest reading; of a clock that may step, the last one.
type tableClock struct {
	newest int64
	wall   bool // it is from such a clock
}

// order notes the time. Goroutines may come in another order than they read the clock, some much later; that a clock which may
// step was set back is believed when the next one comes, and so is what a clock that never steps says after it.
func (q *tableTake) order(c *tableClock) {
	q.late = q.ns < c.newest && (q.wall || !c.wall)
	if q.wall || !q.late {
		c.newest, c.wall = q.ns, q.wall
	}
}

// mend writes down that a bucket is empty which [policyRule.spent] takes for that, so that tokens flow in from now on. By an
// old reading it would be full again at the next.
func (q *tableTake) mend(p *policyRule, cell *int64, reading int64) {
	if *cell-reading > p.far+policySkew && !q.late && !q.peek {
		*cell = reading + p.capacity
	}
}

func (sh *tableShard) count(q *tableTake, a *tableAnswer) {
	switch {
	case q.peek, q.half:
	case a.ok:
		sh.admitted++
	case q.shadow:
		sh.shadowed++
	default:
		sh.rejected++
	}
}

// decide asks every policy, and writes the words if all admit. fresh says that the
// buckets are full whatever the words say. The shard is locked.
func (sh *tableShard) decide(q *tableTake, cells []int64, fresh bool, each []PolicyState, marks *[ratePolicyMax]int64, a *tableAnswer) {
	rules := sh.rules
	a.ok, a.rules = true, rules
	var words [ratePolicyMax]int64
	var own policyRule
	nearest := -1 // tokens left at a.policy, once admitted
	var never, later bool
	for i := range cells {
		p := q.rule(rules, i, &own)
		if p.infinite {
			words[i] = cells[i]
			continue
		}
		reading := p.clock(q.ns)
		var spent int64
		if !fresh {
			q.mend(p, &cells[i], reading)
			spent = p.spent(cells[i], reading)
		}
		if q.n > p.burst {
			// No wait helps, so no other policy has more to say.
			if !never {
				never, a.policy = true, i
			}
			a.ok = false
			continue
		}
		after := spent + p.cost(q.n)
		words[i] = reading + after
		if short := after - p.capacity; short > p.grace {
			wait, possible := p.wait(short), p.nsPerTick > 0
			if !possible || wait > q.maxWait {
				a.ok = false
				switch {
				case never:
				case !possible:
					never, a.policy = true, i
				case !later || wait > a.state.RetryAfter:
					later, a.policy, a.state.RetryAfter = true, i, wait
				}
				continue
			}
			a.wait = max(a.wait, wait)
		}
		if left := p.tokens(after); nearest < 0 || left < nearest {
			nearest = left
			if a.ok {
				a.policy = i
			}
		}
	}
	if never {
		a.state.RetryAfter = 0
	}
	if a.ok && !q.peek {
		copy(cells, words[:len(cells)])
		if marks != nil {
			*marks = words
		}
	}
	sh.describe(q, cells, fresh && (q.peek || !a.ok), a, each)
}

// describe fills in the state of the policy that decided, and of each if they are asked for.
func (sh *tableShard) describe(q *tableTake, cells []int64, fresh bool, a *tableAnswer, each []PolicyState) {
	var own policyRule
	retry := a.state.RetryAfter
	p := q.rule(a.rules, a.policy, &own)
	a.burst = p.burst
	if p.infinite {
		a.burst = policyUnbounded
	}
	a.state = p.now(cells[a.policy], q.ns, fresh)
	a.state.RetryAfter, a.state.Refused = retry, !a.ok
	for i := range min(len(each), len(cells)) {
		p := q.rule(a.rules, i, &own)
		each[i] = p.now(cells[i], q.ns, fresh)
		if a.ok || p.infinite {
			continue
		}
		switch short := p.shortOf(cells[i], q.ns, fresh, q.n); {
		case q.n > p.burst:
			each[i].Refused = true
		case short > p.grace:
			each[i].RetryAfter, each[i].Refused = p.wait(short), true
		}
	}
}

// now returns the state of a bucket.
func (p *policyRule) now(cell, ns int64, fresh bool) PolicyState {
	if p.infinite || fresh {
		return p.state(0)
	}
	return p.state(p.spent(cell, p.clock(ns)))
}

// shortOf returns how many ticks are missing for n tokens.
func (p *policyRule) shortOf(cell, ns int64, fresh bool, n int) int64 {
	var spent int64
	if !fresh {
		spent = p.spent(cell, p.clock(ns))
	}
	return spent + p.cost(n) - p.capacity
}

// take lets a new key that every policy admits have its tokens from the shared bucket.
func (b *tableBudget) take(q *tableTake, each []PolicyState, a *tableAnswer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a.shared = true
	p := &b.rule
	if p.infinite {
		return
	}
	q.order(&b.clock)
	reading := p.clock(q.ns)
	q.mend(p, &b.cell, reading)
	spent := p.spent(b.cell, reading)
	after := spent + p.cost(q.n)
	short := after - p.capacity
	wait := p.wait(max(short, 0))
	switch {
	case q.n > p.burst, short > p.grace && (p.nsPerTick == 0 || wait > q.maxWait):
		a.ok = false
		limit, burst := a.state.Limit, a.state.Burst // of the key, whose numbers are those of all new keys now
		a.state = p.state(spent)
		a.state.Limit, a.state.Burst, a.state.Refused = limit, burst, true
		if q.n <= p.burst {
			a.state.RetryAfter = wait
		}
		a.state.Remaining = 0
		if len(each) > a.policy {
			each[a.policy] = a.state
		}
	case q.peek:
	default:
		b.cell = reading + after
		a.mark = b.cell
		if short > p.grace {
			a.wait = max(a.wait, wait)
		}
	}
}

// giveBack is that of table for the bucket of new keys.
func (b *tableBudget) giveBack(q *tableTake, mark int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.rule.infinite {
		b.rule.giveBack(q, &b.cell, mark)
	}
}

// adjust adds n tokens to what is spent, or with n below 0 gives them back, at every policy, unasked. For a key that has to share
// a bucket it is that one. It reports whether a live bucket was forgotten for it.
func (t *table) adjust(q *tableTake) (evicted bool) {
	hash := t.hash(q.key)
	set, sh := t.locate(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	cells := t.find(sh, set, hash, q.key)
	var fresh [ratePolicyMax]int64
	var slot int
	var live bool
	known := cells != nil
	if !known {
		if q.n <= 0 && t.budget == nil || q.unlimited(sh.rules) {
			return false
		}
		slot, live = t.victim(sh, set, q.ns)
		if live && t.budget != nil {
			t.budget.adjust(q)
			return false
		}
		if q.n <= 0 {
			return false
		}
		cells = fresh[:t.policies]
	}
	var own policyRule
	for i := range cells {
		p := q.rule(sh.rules, i, &own)
		if p.infinite {
			continue
		}
		p.adjust(q, &cells[i], !known)
	}
	if !known {
		t.insert(sh, set, slot, hash, q.key, cells, live)
	}
	return live
}

// adjust is that of table for the bucket of new keys.
func (b *tableBudget) adjust(q *tableTake) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.rule.infinite {
		b.rule.adjust(q, &b.cell, false)
	}
}

// adjust is that of table for one bucket.
func (p *policyRule) adjust(q *tableTake, cell *int64, fresh bool) {
	reading := p.clock(q.ns)
	var spent int64
	if !fresh {
		spent = p.spent(*cell, reading)
	}
	if q.n < 0 {
		spent = max(0, spent-p.cost(-max(q.n, -math.MaxInt)))
	} else {
		spent = max(spent, min(p.debt, spent+p.cost(q.n)))
	}
	*cell = reading + spent
}

// follow makes the buckets of a known key as empty as the states say, and with down as full too.
func (t *table) follow(q *tableTake, states []PolicyState, down bool) {
	hash := t.hash(q.key)
	set, sh := t.locate(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	cells := t.find(sh, set, hash, q.key)
	var own policyRule
	for i := range cells {
		p := q.rule(sh.rules, i, &own)
		if p.infinite {
			continue
		}
		reading := p.clock(q.ns)
		if spent := p.spentOf(states[i]); down || spent > p.spent(cells[i], reading) {
			cells[i] = reading + spent
		}
	}
}

// giveBack returns a reservation that will not be used, as far as nobody has reserved after it: those who did
// know their time already, and tokens returned behind them would let others act at the same time.
func (t *table) giveBack(q *tableTake, a *tableAnswer, marks *[ratePolicyMax]int64) {
	hash := t.hash(q.key)
	set, sh := t.locate(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if a.held.forgotten {
		return
	}
	rules, cells := a.rules, t.find(sh, set, hash, q.key)
	var filled [ratePolicyMax]bool // meanwhile, as there was no limit
	for ; rules != sh.rules; rules = rules.next {
		ns := rules.changed[t.shard(set)]
		for i := range cells {
			from, to := &rules.policies[i], &rules.next.policies[i]
			filled[i] = filled[i] || from.infinite || to.infinite
			marks[i] = policyConvert(from, to, marks[i], ns)
		}
	}
	var own policyRule
	for i := range cells {
		p := q.rule(sh.rules, i, &own)
		if p.infinite || filled[i] {
			continue
		}
		p.giveBack(q, &cells[i], marks[i])
	}
}

// giveBack returns to one bucket what was reserved when its word became mark: where the bucket is in debt, as much of it as
// nobody has reserved after; where it is not, nobody waits.
func (p *policyRule) giveBack(q *tableTake, cell *int64, mark int64) {
	reading := p.clock(q.ns)
	spent, back := p.spent(*cell, reading), p.cost(q.n)
	if spent-p.capacity > p.grace {
		back -= max(0, *cell-mark)
	}
	if back > 0 {
		*cell = reading + max(0, spent-back)
	}
}

// reset forgets a key: its buckets are full.
func (t *table) reset(key string) {
	hash := t.hash(key)
	set, sh := t.locate(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.forget(t.heldHash(hash, key))
	if t.exact {
		sh.exact.remove(key)
		return
	}
	first := set * tableWays
	for i := range t.hashes[first : first+tableWays] {
		if t.hashes[first+uint64(i)] == hash {
			t.hashes[first+uint64(i)] = 0
		}
	}
}

// setRules gives every bucket the new rules; what is spent stays spent. One change at a time.
func (t *table) setRules(rules *tableRules, origin time.Time) {
	before := t.present()
	before.next, before.changed = rules, make([]int64, len(t.shards))
	for i := range t.shards {
		t.shards[i].setRules(t, i, rules, origin)
	}
}

func (sh *tableShard) setRules(t *table, index int, rules *tableRules, origin time.Time) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	ns := int64(time.Since(origin)) // read here: by an earlier time what others took meanwhile would look like more
	convert := func(cells []int64) {
		for j := range cells {
			cells[j] = policyConvert(&sh.rules.policies[j], &rules.policies[j], cells[j], ns)
		}
	}
	sh.each(t, index, convert)
	sh.rules.changed[index] = ns
	sh.rules = rules
}

// each calls fn with the words of every key of a shard. The shard is locked.
func (sh *tableShard) each(t *table, index int, fn func([]int64)) {
	if t.exact {
		sh.exact.each(fn)
		return
	}
	for set := uint64(index); set < t.sets; set += uint64(len(t.shards)) {
		for slot := set * tableWays; slot < (set+1)*tableWays; slot++ {
			if t.hashes[slot] != 0 {
				fn(t.slot(int(slot)))
			}
		}
	}
}

// stats adds up the shards.
func (t *table) stats(s *RateStats, ns int64) {
	s.Capacity = t.capacity()
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.Lock()
		s.Admitted += sh.admitted
		s.Rejected += sh.rejected
		s.Shadowed += sh.shadowed
		s.EvictedLive += sh.evicted
		s.SharedNewKeys += sh.shared
		sh.each(t, i, func(cells []int64) {
			if sh.rules.full(cells, ns) > 0 {
				s.LiveKeys++
			}
		})
		sh.mu.Unlock()
	}
	s.Saturation = float64(s.LiveKeys) / float64(s.Capacity)
}
