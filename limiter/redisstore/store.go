// Package redisstore keeps the token buckets of a [limiter.Rate] in Redis or Valkey, so that several processes, on
// several machines, share them.
//
//	client := redis.NewClient(&redis.Options{Addr: "redis:6379", ContextTimeoutEnabled: true, MaxRetries: -1, DialerRetries: 1})
//	limits := limiter.NewRate(10, 20, limiter.WithStore(redisstore.New(client)))
//	handler := middleware.Wrap(mux, middleware.Rate(limits))
//
// One script decides about an event in one question to the server. It takes tokens from all policies of a key or from
// none. It uses the clock of the server, so the clocks of its clients may differ. What a key has spent is one value
// of 8 bytes for each policy and 8 more, which expires when the buckets would be full again; a key that has spent
// nothing takes no memory there.
//
// For tenants with plans of their own, see [limiter.WithKeyLimit].
//
// Two limits of one service, such as a general one and one for logins, need two names ([limiter.WithName]) or two
// prefixes ([WithPrefix]). With neither they are one bucket.
//
// # When the server does not answer
//
// [limiter.WithStoreFailure] says what happens while the server does not answer: by default the buckets of each
// process decide. [limiter.WithStoreTimeout] says how long it may take. A question that nobody waits for any more
// goes on for at most 5 s, or until the client's own timeouts. Making a connection takes several round trips; where
// those take longer than a question may, as to another region, it would otherwise never be made.
//
// A question that the client retries may be charged twice. With MaxRetries -1 the client repeats no question, except
// a cluster client: it asks again after a connection was cut, as it does when it follows a slot that has moved
// (MaxRedirects). With DialerRetries 1 it dials once; otherwise it dials five times in half a second, and while the
// server is down a question takes all of its time, though the connection is refused at once. With a ConnMaxIdleTime
// of some seconds, instead of half an hour, it gives up connections that are not needed. If the machine of the server
// disappears without a word, as in a failover, each idle connection is found dead by a question that takes all of its
// time; there is one such question in two seconds while the store is left alone.
//
// # What the server needs
//
// The store needs Redis 5 or newer, or Valkey. The ACL of the server may restrict its user to the keys
// ~spillgate:rate:*, or to those of another prefix, and to the commands evalsha, eval, time, get, pttl, set and del.
// go-redis needs some more itself: select for a DB other than 0; ping for a Ring, which otherwise takes all servers to
// be down after some seconds; in a cluster cluster|slots, command and asking, and readonly if it reads from replicas.
//
// In a cluster each key is in one slot. Replication is asynchronous: a failover forgets what had not been replicated.
// When its memory is full, the server has to evict (maxmemory-policy volatile-ttl forgets those first whose buckets
// are nearly full); otherwise it refuses to write and counts as failed.
package redisstore

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/limiter"
)

//go:embed take.lua
var takeSource string

var takeScript = redis.NewScript(takeSource)

// Store is a [limiter.Store] in Redis. Make one with [New]. It has nothing to close but its client. It is safe for
// concurrent use.
type Store struct {
	client redis.Scripter
	prefix string
}

// Option configures [New].
type Option interface{ apply(*Store) }

type option func(*Store)

func (o option) apply(s *Store) { o(s) }

// WithPrefix sets what all keys in Redis begin with; the default is "spillgate:rate:". Stores on the same server
// share their buckets if they have the same prefix: give each service a prefix of its own, and so the limits of one
// service that are not the same limit. If the prefix has a part in braces, a cluster finds the slot by that part
// alone.
func WithPrefix(prefix string) Option {
	return option(func(s *Store) { s.prefix = prefix })
}

// New returns a Store. The client may be any client of go-redis: for a single server, one found by Sentinel, a
// cluster or a ring. It panics if client is nil.
func New(client redis.Scripter, opts ...Option) *Store {
	if client == nil {
		panic("redisstore: New: client is nil: give a client of go-redis")
	}
	s := &Store{client: client, prefix: "spillgate:rate:"}
	for _, o := range opts {
		o.apply(s)
	}
	return s
}

// Take implements [limiter.Store]. Buckets are told apart by the key and the names of all policies; limits and bursts
// may change from one call to the next. At most two bursts can be spent, the second as a debt. Take returns an error,
// and has taken nothing, if ctx has ended, if there is no policy, if states has another length, or if a limit or
// burst is out of range. It also returns any error of the client or the server, after which nothing is known.
func (s *Store) Take(ctx context.Context, req limiter.StoreRequest, states []limiter.PolicyState) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if len(req.Policies) == 0 || len(states) != len(req.Policies) {
		return false, fmt.Errorf("redisstore: %d policies and %d states: give one or more policies, and as many states", len(req.Policies), len(states))
	}
	args := make([]any, 2, 2+2*len(req.Policies))
	args[0], args[1] = boolArg(req.Force), req.Cost
	for _, p := range req.Policies {
		switch {
		case math.IsNaN(float64(p.Limit)) || p.Limit < 0 || p.Burst < 0:
			return false, fmt.Errorf("redisstore: policy %q has limit %v and burst %d: give 0 or more", p.Name, p.Limit, p.Burst)
		case infinite(p):
			args = append(args, 0, -1)
		default:
			args = append(args, float64(p.Limit), p.Burst)
		}
	}
	answer, err := s.ask(ctx, []string{s.name(req.Key, req.Policies)}, args)
	if err != nil {
		return false, fmt.Errorf("redisstore: %w", err)
	}
	if len(answer) != 1+len(states) {
		return false, errAnswer
	}
	ok := answer[0] == "1"
	for i, p := range req.Policies {
		spent, err := strconv.ParseFloat(answer[i+1], 64)
		if err != nil {
			return false, errAnswer
		}
		states[i] = state(p, spent, req.Cost, ok)
	}
	return ok, nil
}

// longest is how long a question may take that nobody waits for any more.
const longest = 5 * time.Second

// ask has the script run. Where ctx ends before there is an answer the question goes on: go-redis closes a connection that is given up, also amid its handshake. That
// takes several round trips, and where they took longer than a question may, none was ever made.
func (s *Store) ask(ctx context.Context, keys []string, args []any) ([]string, error) {
	type answer struct {
		list     []string
		err      error
		panicked any
	}
	answers := make(chan answer, 1)
	go func() {
		whole, cancel := context.WithTimeout(context.WithoutCancel(ctx), longest)
		defer cancel()
		var a answer
		defer func() {
			a.panicked = recover()
			answers <- a
		}()
		a.list, a.err = takeScript.Run(whole, s.client, keys, args...).StringSlice()
	}()
	select {
	case a := <-answers:
		if a.panicked != nil {
			panic(a.panicked)
		}
		return a.list, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

var errAnswer = errors.New("redisstore: the server's answer is not one of the script")

func boolArg(b bool) int {
	if b {
		return 1
	}
	return 0
}

func infinite(p limiter.Policy) bool { return p.Limit == rate.Inf || math.IsInf(float64(p.Limit), 1) }

// state describes a bucket of which so much is spent, after an event of that cost.
func state(p limiter.Policy, spent float64, cost int, ok bool) limiter.PolicyState {
	if infinite(p) {
		return limiter.PolicyState{Limit: p.Limit, Burst: p.Burst, Remaining: math.MaxInt}
	}
	burst, limit := float64(p.Burst), float64(p.Limit)
	slack := 1e-6 + burst*1e-14 // as in the script
	left := p.Burst
	if l := math.Floor(burst - spent + slack); l < burst {
		left = max(0, int(l))
	}
	st := limiter.PolicyState{
		Limit:      p.Limit,
		Burst:      p.Burst,
		Remaining:  left,
		ResetAfter: after(spent, limit, time.Nanosecond),
	}
	if missing := spent + float64(cost) - burst; !ok && missing > slack {
		st.Refused = true
		if cost <= p.Burst {
			st.RetryAfter = after(missing, limit, time.Microsecond) // of the server's clock
		}
	}
	return st
}

// after returns when so many tokens have flowed in, rounded up to whole units; 0 if none ever do.
func after(tokens, limit float64, unit time.Duration) time.Duration {
	if limit <= 0 {
		return 0
	}
	n := math.Ceil(tokens / limit * float64(time.Second/unit))
	if n >= math.MaxInt64/float64(unit) {
		return math.MaxInt64
	}
	return time.Duration(n) * unit
}

// longKey is the length from which on a hash of a key stands for it.
const longKey = 64

// name returns the key in Redis. Names of policies hold no quotes, so that no two are the same by chance. What a client may choose freely
// must not choose how much memory it takes, nor by braces the slot of a cluster: a hash of it cannot.
func (s *Store) name(key string, policies []limiter.Policy) string {
	var b strings.Builder
	b.WriteString(s.prefix)
	for i, p := range policies {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(`"` + p.Name + `"`)
	}
	if len(key) <= longKey && !strings.ContainsAny(key, "{}") {
		b.WriteString(":" + key)
		return b.String()
	}
	sum := sha256.Sum256([]byte(key))
	b.WriteString("#" + base64.RawURLEncoding.EncodeToString(sum[:]))
	return b.String()
}
