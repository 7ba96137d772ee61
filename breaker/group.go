package breaker

import (
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A Group keeps a [Breaker] for each key, such as a host or a route, in bounded memory. It is safe for concurrent
// use, and needs no goroutine and no Close. Make one with [NewGroup]; the zero value does not work.
//
// When every place is taken, a new key takes the place of a breaker that is closed and was not asked for lately. A
// breaker that is open, half-open or forced never gives way to a new key, so a flood of keys cannot wipe out what the
// group knows about failing ones. It is forgotten, and counted as such in [GroupStats], only when its open time has
// been over for [WithIdle] and nobody came back to try. When no place can be given up, since every key is failing, a
// new key gets a breaker that is disabled and stays so, whatever is done to it: its calls pass, unprotected, and are
// counted as such. To find a place, a group of more than 4,096 keys looks at that many of them, and at the next ones
// 100 ms later.
type Group struct {
	base    time.Time
	seed    maphash.Seed
	cfg     atomic.Pointer[groupConfig]
	untold  *Breaker // for keys that found no place
	entries sync.Map // string -> *entry

	mu        sync.Mutex // guards what follows, and all changes of entries
	ring      []*entry
	hand      int
	full      time.Duration // until when no place can be given up
	stats     GroupStats
	untracked uint64
}

type entry struct {
	key     string
	breaker *Breaker
	used    atomic.Bool   // asked for since the hand passed
	seen    time.Duration // when the hand last found it used
}

type groupConfig struct {
	breaker config
	keys    int
	idle    time.Duration
}

func (c *groupConfig) apply(opts []GroupOption) error {
	for i, o := range opts {
		if o == nil {
			return fmt.Errorf("option %d is nil; leave it out", i)
		}
		o.applyGroup(c)
	}
	return c.check()
}

func (c *groupConfig) check() error {
	switch {
	case c.keys < 1 || c.keys > 1<<20:
		return fmt.Errorf("WithKeys(%d): give 1 to 1048576", c.keys)
	case c.idle < time.Second:
		return fmt.Errorf("WithIdle(%v): give at least 1s", c.idle)
	}
	return c.breaker.check()
}

// A GroupOption is an option of [NewGroup] and [Group.Set]. Every [Option] is one too, for each breaker in the group.
type GroupOption interface{ applyGroup(*groupConfig) }

type groupOption func(*groupConfig)

func (f groupOption) applyGroup(c *groupConfig) { f(c) }

// WithKeys bounds how many breakers a [Group] keeps, 1 to 1,048,576. The default is 1,024. Each takes less than 1
// KiB, or some 300 bytes more with [WithSlowCalls] of a few seconds.
func WithKeys(n int) GroupOption { return groupOption(func(c *groupConfig) { c.keys = n }) }

// WithIdle sets how long a breaker must go without a call before a [Group] forgets it, at least 1 s; the default is
// 10 min. The group does so while it makes room for new keys, so it may happen later.
func WithIdle(d time.Duration) GroupOption { return groupOption(func(c *groupConfig) { c.idle = d }) }

// NewGroup returns an empty group whose breakers have the options given. It panics if one is out of its range.
func NewGroup(opts ...GroupOption) *Group {
	c := groupConfig{breaker: defaultConfig(), keys: 1024, idle: 10 * time.Minute}
	if err := c.apply(opts); err != nil {
		panic("breaker: NewGroup: " + err.Error())
	}
	g := &Group{base: time.Now(), seed: maphash.MakeSeed(), untold: New()}
	g.untold.Disable()
	g.untold.fixed = true
	g.cfg.Store(&c)
	return g
}

// Get returns the breaker for a key, or a new one if there is none. Ask for it with every call rather than keep it: a
// breaker that was forgotten meanwhile works on, but alone. A key longer than 256 bytes is known by its beginning and
// a hash of it.
func (g *Group) Get(key string) *Breaker {
	if len(key) > maxKey {
		key = g.shorten(key)
	}
	if v, ok := g.entries.Load(key); ok {
		e := v.(*entry)
		if !e.used.Load() {
			e.used.Store(true)
		}
		return e.breaker
	}
	return g.add(key)
}

// maxKey bounds what is kept of a key: it may be what a client sent.
const maxKey = 256

func (g *Group) shorten(key string) string {
	return key[:maxKey-17] + "#" + fmt.Sprintf("%016x", maphash.String(g.seed, key))
}

func (g *Group) add(key string) *Breaker {
	g.mu.Lock()
	defer g.mu.Unlock()
	if v, ok := g.entries.Load(key); ok {
		return v.(*entry).breaker
	}
	now := time.Since(g.base)
	c := g.cfg.Load()
	// A few steps of the hand with every new key: who is idle goes, in time.
	for range min(4, len(g.ring)) {
		g.step(now, c, false)
	}
	for len(g.ring) >= c.keys {
		if !g.makeRoom(now, c) {
			g.untracked++
			return g.untold
		}
	}
	key = strings.Clone(key) // it may be a small part of something large
	e := &entry{key: key, breaker: newBreaker(key, &c.breaker), seen: now}
	// The place behind the hand is the last that it comes to.
	g.ring = append(g.ring, e)
	if g.hand < len(g.ring)-1 {
		last := len(g.ring) - 1
		g.ring[g.hand], g.ring[last] = g.ring[last], g.ring[g.hand]
		g.hand++
	}
	g.entries.Store(key, e)
	return e.breaker
}

// lookAgain is how long the group takes it for granted that no place can be given up, after it has looked at so many.
const (
	lookAgain = 100 * time.Millisecond
	looks     = 4096
)

// makeRoom gives up one place for a new key. The caller holds mu.
func (g *Group) makeRoom(now time.Duration, c *groupConfig) bool {
	if now < g.full {
		return false
	}
	// The first turn of the hand spares those that were asked for since the last one. A large ring is not gone
	// over as a whole: where nearly every key is failing, each new one would wait for that.
	n, from := min(len(g.ring), looks), g.hand
	for range 2 {
		g.hand = from
		for range n {
			if g.step(now, c, true) {
				return true
			}
		}
	}
	g.full = now + lookAgain
	return false
}

// step moves the hand over one entry, or gives it up and reports true: one that is idle, or, if its
// place is needed, one that was not asked for since the hand last passed. The caller holds mu.
func (g *Group) step(now time.Duration, c *groupConfig, needed bool) bool {
	g.hand %= len(g.ring)
	e := g.ring[g.hand]
	if e.used.Swap(false) {
		e.seen = now
		g.hand++
		return false
	}
	idle := now-e.seen >= c.idle
	switch p := e.breaker.phase.Load(); {
	case p.state == Closed && idle:
		g.stats.Expired++
	case p.state == Closed && needed:
		g.stats.Evicted++
	case (p.state == Open || p.state == HalfOpen) && idle && e.breaker.now()-max(p.since, p.until.Load()) >= int64(c.idle):
		g.stats.Forgotten++
	default:
		g.hand++
		return false
	}
	g.entries.Delete(e.key)
	last := len(g.ring) - 1
	g.ring[g.hand], g.ring[last] = g.ring[last], nil
	g.ring = g.ring[:last]
	return true
}

// Settings returns the settings of breakers that the group makes.
func (g *Group) Settings() Settings { return g.cfg.Load().breaker.Settings }

// Set applies options to the group and gives all its breakers the group's settings, which replace what [Breaker.Set]
// changed on one of them. If an option is out of its range, Set returns an error and changes nothing.
func (g *Group) Set(opts ...GroupOption) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := *g.cfg.Load()
	if err := c.apply(opts); err != nil {
		return errors.New("breaker: Set: " + err.Error())
	}
	g.cfg.Store(&c)
	g.full = 0
	for _, e := range g.ring {
		e.breaker.mu.Lock()
		e.breaker.set(&c.breaker)
		e.breaker.mu.Unlock()
	}
	return nil
}

// All returns the keys and their breakers, in no order. It does not count as asking for them.
func (g *Group) All() iter.Seq2[string, *Breaker] {
	return func(yield func(string, *Breaker) bool) {
		g.entries.Range(func(_, v any) bool {
			e := v.(*entry)
			return yield(e.key, e.breaker)
		})
	}
}

// GroupStats is what a [Group] knows.
type GroupStats struct {
	Keys      int    `json:"keys"`
	Limit     int    `json:"limit"`
	Open      int    `json:"open"`      // keys whose breaker is open, half-open or forced open
	Evicted   uint64 `json:"evicted"`   // total of closed breakers that made room
	Expired   uint64 `json:"expired"`   // total of closed breakers that were idle
	Forgotten uint64 `json:"forgotten"` // total of breakers forgotten long after their open time
	Untracked uint64 `json:"untracked"` // total of requests for a key that found no place
}

// Stats returns what the group knows now.
func (g *Group) Stats() GroupStats {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.stats
	s.Keys, s.Limit, s.Untracked = len(g.ring), g.cfg.Load().keys, g.untracked
	for _, e := range g.ring {
		if !e.breaker.Passing() {
			s.Open++
		}
	}
	return s
}
