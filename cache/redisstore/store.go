// Package redisstore also keeps what a [cache.Cache] stores in Redis or Valkey, so that several processes on several
// machines share it, and a new process does not begin with an empty cache.
//
//	client := redis.NewClient(&redis.Options{Addr: "redis:6379", ContextTimeoutEnabled: true})
//	c := cache.New(64<<20, cache.WithStore(redisstore.New(client), 50*time.Millisecond))
//	handler := middleware.Wrap(mux, middleware.Cache(c))
//
// The same Store carries purges from each process to the memory of the others:
//
//	store := redisstore.New(client)
//	c := cache.New(64<<20, cache.WithStore(store, 50*time.Millisecond), cache.WithRelay(store))
//	go c.Follow(ctx) // ends with ctx; what it returns says whether the others have been told of everything
//
// The memory of each process stands before Redis and serves its hits; the cache asks Redis for what memory does not
// have. [cache.WithStore] says what happens while Redis fails, and how it is purged. go-redis keeps to the timeout only
// with ContextTimeoutEnabled. A Get that nobody waits for any more goes on for 5 s at most: making a connection takes
// several round trips, and a timeout of a few round trips leaves no time for that. Set ConnMaxIdleTime to some seconds,
// in place of half an hour, so that go-redis closes connections that are not needed. If the machine of the server
// disappears without a word, as in a failover, only a call that takes all of its time finds such a connection dead, and
// while the store is left alone there is one such call in up to 32 seconds.
//
// Responses expire in Redis when nobody has a use for them. Redis may evict them sooner: set its maxmemory, and
// maxmemory-policy allkeys-lru or allkeys-lfu. The Store needs no commands but GET, SET and DEL, and each key is in one
// slot of a cluster. With a client that reads from replicas (ReadOnly, RouteByLatency, RouteRandomly), it still asks a
// primary, for which it needs MULTI and EXEC: a replica may have what was purged. If the ACL of the server restricts
// its user, go-redis needs some commands itself: select for a DB other than 0; ping for a Ring; in a cluster
// cluster|slots, command and asking, and readonly if it reads from replicas.
//
// A failover forgets what had not been replicated, and may thus bring back what was purged by its URL a moment before.
// If the Store also carries purges, as described below, that is purged again. A Redis that was killed and is restarted
// from a snapshot, as it is configured by default, brings back all that was purged by its URL since: configure a Redis
// that only caches to take no snapshots (save ""). If the Store also carries purges, the caches that follow find out in
// 2 s, and all in the Store is invalid then; in a cluster, they do so if it was the server that holds
// "spillgate:cache:k:spillgate:mark".
//
// Purges go through a Redis stream, "spillgate:cache:purges" with the default prefix. It also needs XADD, XRANGE,
// XREAD, PEXPIRE, MULTI and EXEC, and takes one connection of the client's pool for each cache that follows. The stream
// is cut off at some 10,000 messages ([WithMaxMessages]) and kept for an hour after the last server has looked. A
// message that a failover has lost is sent again. A server knows if messages for it are gone, by a failover, a restart,
// FLUSHALL or eviction, or because it came too late: [cache.WithRelay] says what it does then, and what is guaranteed.
// That guarantee is as good as Redis's own: a primary that has been replaced and does not know it yet answers those
// that still reach it, unless min-replicas-to-write prevents that. With a Ring, purges go through the server that has
// the stream while that is up, and through another one while it is down. For the seconds in which clients disagree
// about that, purges are late or missed.
package redisstore

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Store is a [cache.Store] and a [cache.Relay] in Redis. Create one with [New]; only its client needs to be closed. A
// Store is safe for concurrent use.
type Store struct {
	client   redis.UniversalClient
	prefix   string
	messages int64
	replicas bool // the client reads from them
}

// Option configures [New].
type Option interface{ apply(*Store) }

type option func(*Store)

func (o option) apply(s *Store) { o(s) }

// WithPrefix sets the beginning of all keys in Redis; the default is "spillgate:cache:". Stores on the same server
// share their responses if they have the same prefix: give each service its own, and each version of its pages that
// others must not see. If the prefix has braces, a cluster finds the slot only by what stands between them.
func WithPrefix(prefix string) Option {
	return option(func(s *Store) { s.prefix = prefix })
}

// New returns a Store. The client may be that of a single server, of one found by Sentinel, of a cluster or of a ring.
// New panics if client is nil.
func New(client redis.UniversalClient, opts ...Option) *Store {
	if client == nil {
		panic("redisstore: New: client is nil: give a client of go-redis")
	}
	s := &Store{client: client, prefix: "spillgate:cache:", messages: defaultMessages}
	if c, ok := client.(*redis.ClusterClient); ok {
		s.replicas = c.Options().ReadOnly
	}
	for _, o := range opts {
		o.apply(s)
	}
	return s
}

// Get implements [cache.Store]. It returns whatever error the client or the server returns.
func (s *Store) Get(ctx context.Context, key string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	type answer struct {
		value    []byte
		err      error
		panicked any
	}
	answers := make(chan answer, 1)
	go func() { // for longer than ctx: a connection that is given up is closed, also amid its handshake, and where that takes longer none would ever be made
		whole, cancel := context.WithTimeout(context.WithoutCancel(ctx), longest)
		defer cancel()
		var a answer
		defer func() {
			a.panicked = recover()
			answers <- a
		}()
		a.value, a.err = s.get(whole, s.name(key)).Bytes()
	}()
	select {
	case a := <-answers:
		switch {
		case a.panicked != nil:
			panic(a.panicked)
		case errors.Is(a.err, redis.Nil):
			return nil, nil
		}
		return a.value, wrap(a.err)
	case <-ctx.Done():
		return nil, wrap(ctx.Err())
	}
}

// longest is how long a Get may take that nobody waits for any more. What writes ends with its ctx: a later purge must not be overtaken.
const longest = 5 * time.Second

// get has a primary asked: a replica that lags has what was purged. Clients that read from replicas send it no transaction.
func (s *Store) get(ctx context.Context, name string) (got *redis.StringCmd) {
	if !s.replicas {
		return s.client.Get(ctx, name)
	}
	s.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
		got = p.Get(ctx, name)
		return nil
	}) // the error is that of the command
	return got
}

// Set implements [cache.Store]. A ttl of less than a millisecond, the unit of Redis, counts as one. It returns whatever
// error the client or the server returns.
func (s *Store) Set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	// To go-redis 0 is for ever, and a part of a millisecond none.
	ttl = max(ttl.Round(time.Millisecond), time.Millisecond)
	return wrap(s.client.Set(ctx, s.name(key), value, ttl).Err())
}

// Delete implements [cache.Store]. It returns whatever error the client or the server returns.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return wrap(s.client.Del(ctx, s.name(key)).Err())
}

func wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("redisstore: %w", err)
}

// longKey is the length from which on a hash of a key stands for it.
const longKey = 256

// name returns the key in Redis: a hash of what is long, or has the braces by which a client could choose the slot of a cluster. No
// other key is the name of a hash: those begin with another letter.
func (s *Store) name(key string) string {
	if len(key) <= longKey && !strings.ContainsAny(key, "{}") {
		return s.prefix + "k:" + key
	}
	sum := sha256.Sum256([]byte(key))
	return s.prefix + "h:" + base64.RawURLEncoding.EncodeToString(sum[:])
}
