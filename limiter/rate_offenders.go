package limiter

import (
	"cmp"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"time"
)

// rateOffenderCells is how many keys are watched for each that is reported.
const rateOffenderCells = 8

// rateOffenderHalf is after what time a refusal counts half. Those of months ago would else keep whoever is refused now out of what is reported.
const rateOffenderHalf = time.Hour

// RateOffender is a key that was refused often of late.
type RateOffender struct {
	// Hash is what [Rate.KeyHash] returns for the key. It means nothing outside of this Rate.
	Hash uint64 `json:"hash,string"`
	// Rejected is how often the key was refused, or would have been without [WithRateShadow]: at most this often, and at
	// least Rejected - Slack. Both are halved each hour, so that recent refusals count most.
	Rejected uint64 `json:"rejected"`
	Slack    uint64 `json:"slack"`
}

// rateOffenders counts refusals with the Space-Saving algorithm (Metwally, Agrawal and El Abbadi, 2005): a
// key that is not watched takes the place of the one with the lowest count, and its count. Whoever has more than 1 in len(cells)
// of all refusals is in it.
type rateOffenders struct {
	mu     sync.Mutex
	report int
	seed   maphash.Seed
	hashes []uint64
	counts []rateOffenderCount
	halved int64 // when all counts last were, ns since the Rate was made
}

type rateOffenderCount struct{ count, slack uint64 }

// WithOffenders makes Stats report, by hash, the n keys that were refused most of late: a refusal counts half after
// an hour. It makes a refusal cost up to some 20 ns more for each of the n (go test -run '^$' -bench RateOffenders
// ./limiter), and a lock that all refusals share. It panics if n is not in 1 to 64.
func WithOffenders(n int) RateOption {
	if n < 1 || n > 64 {
		panic(fmt.Sprintf("limiter: WithOffenders: %d keys: give 1 to 64", n))
	}
	return rateOption(func(c *rateConfig) { c.offenders = n })
}

func newRateOffenders(n int) *rateOffenders {
	return &rateOffenders{
		report: n,
		seed:   maphash.MakeSeed(),
		hashes: make([]uint64, 0, n*rateOffenderCells),
		counts: make([]rateOffenderCount, 0, n*rateOffenderCells),
	}
}

// KeyHash returns the hash under which [WithOffenders] reports a key, and 0 without that option. It is seeded at random
// for each Rate.
func (r *Rate) KeyHash(key string) uint64 {
	if r.offenders == nil {
		return 0
	}
	return maphash.String(r.offenders.seed, key)
}

// refused counts a refusal at a time, ns since the Rate was made.
func (o *rateOffenders) refused(key string, now int64) {
	hash := maphash.String(o.seed, key)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.age(now)
	if i := slices.Index(o.hashes, hash); i >= 0 {
		o.counts[i].count++
		return
	}
	if len(o.hashes) < cap(o.hashes) {
		o.hashes = append(o.hashes, hash)
		o.counts = append(o.counts, rateOffenderCount{count: 1})
		return
	}
	least := 0
	for i := range o.counts {
		if o.counts[i].count < o.counts[least].count {
			least = i
		}
	}
	o.hashes[least] = hash
	o.counts[least].slack = o.counts[least].count
	o.counts[least].count++
}

// age halves all counts once for each hour that has gone by, and forgets what is none any more. The lock is held.
func (o *rateOffenders) age(now int64) {
	halves := (now - o.halved) / int64(rateOffenderHalf)
	if halves <= 0 {
		return
	}
	o.halved += halves * int64(rateOffenderHalf)
	left := 0
	for i, c := range o.counts {
		if c.count >>= halves; c.count == 0 {
			continue
		}
		o.hashes[left], o.counts[left] = o.hashes[i], rateOffenderCount{c.count, c.slack >> halves}
		left++
	}
	o.hashes, o.counts = o.hashes[:left], o.counts[:left]
}

// top returns the keys refused most, most first.
func (o *rateOffenders) top(now int64) []RateOffender {
	o.mu.Lock()
	o.age(now)
	all := make([]RateOffender, len(o.hashes))
	for i, h := range o.hashes {
		all[i] = RateOffender{Hash: h, Rejected: o.counts[i].count, Slack: o.counts[i].slack}
	}
	o.mu.Unlock()
	slices.SortFunc(all, func(a, b RateOffender) int {
		if c := cmp.Compare(b.Rejected, a.Rejected); c != 0 {
			return c
		}
		return cmp.Compare(a.Slack, b.Slack)
	})
	return all[:min(o.report, len(all))]
}
