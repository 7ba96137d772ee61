package limiter

import (
	"fmt"
	"time"

	"golang.org/x/time/rate"
)

// RateOption is an option of [NewRate].
type RateOption interface{ applyRate(*rateConfig) }

type rateOption func(*rateConfig)

func (f rateOption) applyRate(c *rateConfig) { f(c) }

type rateConfig struct {
	policies []Policy
	maxKeys  int
	maxWait  time.Duration
	exact    bool
	unkeyed  bool
	shadow   bool
	budget   *Policy
	keyRule  func(key string) (rate.Limit, int)
	trace    RateTrace

	offenders int

	store        Store
	storeTimeout time.Duration
	storeFailure StoreFailure
}

// check panics on what no single option can see.
func (c *rateConfig) check() {
	if len(c.policies) > ratePolicyMax {
		panic(fmt.Sprintf("limiter: NewRate: %d policies: give at most %d", len(c.policies), ratePolicyMax))
	}
	seen := make(map[string]bool)
	for _, p := range c.policies {
		if seen[p.Name] {
			panic(fmt.Sprintf("limiter: NewRate: two policies have the name %q: give each a name of its own", p.Name))
		}
		seen[p.Name] = true
	}
	if c.unkeyed && (c.exact || c.budget != nil || c.keyRule != nil || c.offenders > 0) {
		panic("limiter: NewRate: WithoutKeys leaves no key for WithExactKeys, WithNewKeyBudget, WithKeyLimit or WithOffenders: drop one of them")
	}
}

// WithPolicy adds a policy. An event is admitted only if every policy admits it, and is charged to all of them or to
// none. A name is 1 to 64 printable ASCII characters without quote and backslash; the policy of NewRate is called
// "default" unless [WithName] says otherwise. A Rate has at most 8 policies, and each one added takes 8 bytes in
// every slot of the table. WithPolicy panics where NewRate would.
func WithPolicy(name string, limit rate.Limit, burst int) RateOption {
	if !policyNameOK(name) {
		panic(fmt.Sprintf("limiter: WithPolicy: name %q: give 1 to 64 printable ASCII characters without quote and backslash", name))
	}
	if fault := policyCheck(limit, burst); fault != "" {
		panic("limiter: WithPolicy: " + fault)
	}
	return rateOption(func(c *rateConfig) {
		c.policies = append(c.policies, Policy{Name: name, Limit: policyLimit(limit), Burst: burst})
	})
}

// WithName names the first policy, which is otherwise called "default". It panics unless the name is as in
// [WithPolicy].
func WithName(name string) RateOption {
	if !policyNameOK(name) {
		panic(fmt.Sprintf("limiter: WithName: name %q: give 1 to 64 printable ASCII characters without quote and backslash", name))
	}
	return rateOption(func(c *rateConfig) { c.policies[0].Name = name })
}

// WithMaxKeys sets how many keys the table can hold whose buckets are not full; the default is 65,536. The memory for
// them, 16 bytes each (24 with two policies, and so on), is taken at construction and never grows. A key whose
// buckets are full again takes no room. With more keys than that, a new one displaces the key that is nearest to full
// buckets, unless there is a [WithNewKeyBudget]. Twice the expected number keeps displacement rare. It panics if n is
// below 1 or above 2^32, and rounds n up to a multiple of 8.
func WithMaxKeys(n int) RateOption {
	checkMaxKeys("WithMaxKeys", n)
	return rateOption(func(c *rateConfig) { c.maxKeys = n })
}

func checkMaxKeys(who string, n int) {
	if n < 1 || int64(n) > 1<<32 {
		panic(fmt.Sprintf("limiter: %s: %d keys: give 1 to 2^32", who, n))
	}
}

// WithNewKeyBudget keeps the table from forgetting keys. While all slots for a new key hold buckets that are in use,
// new keys displace nobody: they share one bucket of this limit and burst, besides being within their own quota. So a
// flood of made-up keys cannot help an abuser among them; honest new keys share what the budget leaves until slots
// become free. What such a key is charged or refunded later goes to that bucket, too. It panics where NewRate would.
func WithNewKeyBudget(limit rate.Limit, burst int) RateOption {
	if fault := policyCheck(limit, burst); fault != "" {
		panic("limiter: WithNewKeyBudget: " + fault)
	}
	return rateOption(func(c *rateConfig) { c.budget = &Policy{Limit: limit, Burst: burst} })
}

// WithExactKeys keeps the keys themselves instead of their seeded 64-bit hashes. The chance that two of a million
// live keys share a hash, and so a bucket, is 3 in 10^8. If even that is too much, this option costs about 250 bytes
// a key, work for the garbage collector and an allocation for every new key, and it displaces the key that was used
// least recently. Keys above 256 bytes are kept as their SHA-256.
func WithExactKeys() RateOption {
	return rateOption(func(c *rateConfig) { c.exact = true })
}

// WithoutKeys makes one bucket for all events, a [rate.Limiter]: keys are ignored.
func WithoutKeys() RateOption {
	return rateOption(func(c *rateConfig) { c.unkeyed = true })
}

// WithKeyLimit gives keys a limit and a burst of their own at the first policy, for tenants or plans. fn is called
// for each decision, with no lock held, and must be fast and safe for concurrent use. [rate.Inf] exempts a key from
// the policy; a limit that is not positive, or a burst below 1, refuses the key. When a key's limit changes, the time
// until its bucket is full stays the same; if nobody can owe as much under the new limit, the bucket is empty. If a
// burst takes more than two years to flow in, the key has no more than what flows in within that time, or 1. The
// limit of NewRate then serves in Policies only. [WithStore] says what is different with a store. It panics if fn is
// nil.
func WithKeyLimit(fn func(key string) (rate.Limit, int)) RateOption {
	if fn == nil {
		panic("limiter: WithKeyLimit: fn is nil: give a function")
	}
	return rateOption(func(c *rateConfig) { c.keyRule = fn })
}

// WithMaxWait sets how long [Rate.Wait] waits at most, even without a deadline; the default is a minute. A longer
// wait is refused at once. It panics if d is not positive.
func WithMaxWait(d time.Duration) RateOption {
	if d <= 0 {
		panic(fmt.Sprintf("limiter: WithMaxWait: %v: give a positive duration", d))
	}
	return rateOption(func(c *rateConfig) { c.maxWait = d })
}

// WithRateShadow makes the Rate decide and count but refuse nothing: a Decision that would have been a refusal has OK
// and Shadow set. Nor does [Rate.Wait] wait. If it would have admitted the event after a wait, the tokens are taken,
// except with [WithStore], which reserves none.
func WithRateShadow() RateOption {
	return rateOption(func(c *rateConfig) { c.shadow = true })
}

// WithRateTrace sets functions to be called when something happens.
func WithRateTrace(t RateTrace) RateOption {
	return rateOption(func(c *rateConfig) { c.trace = t })
}
