package redisstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/spillgate/spillgate/cache"
)

const (
	defaultMessages = 10_000
	keepMessages    = time.Hour   // after the last server has looked
	maxBlock        = time.Second // a blocked command does not hear of a context that is cancelled
	maxReceived     = 100
)

// WithMaxMessages sets how many messages of purges are kept for servers that read slowly or are cut off for a while;
// the default is 10,000, and Redis keeps some more. A server sends at most twenty a second, unless it has more purges
// than fit into that many messages of some 4 KiB. A server that finds messages gone before it has read them treats
// everything in its memory as purged, softly (see [cache.WithRelay]). WithMaxMessages panics if n is less than 1.
func WithMaxMessages(n int64) Option {
	if n < 1 {
		panic(fmt.Sprintf("redisstore: WithMaxMessages(%d): must be at least 1", n))
	}
	return option(func(s *Store) { s.messages = n })
}

func (s *Store) stream() string { return s.prefix + "purges" }

// Send implements [cache.Relay]. It returns whatever error the client or the server returns.
func (s *Store) Send(ctx context.Context, message []byte) error {
	_, err := s.add(ctx, "m", message)
	return err
}

// End implements [cache.Relay]. It adds an entry that is no message: whether that entry is still there shows whether
// anything behind it is gone. It returns whatever error the client or the server returns.
func (s *Store) End(ctx context.Context) (string, error) { return s.add(ctx, "end", "") }

func (s *Store) add(ctx context.Context, field string, value any) (place string, err error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	// Where the stream was lost, and the clock goes back or has not gone on, another entry gets an id that was given before.
	mark := strconv.FormatUint(rand.Uint64(), 36)
	var added *redis.StringCmd
	_, err = s.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
		added = p.XAdd(ctx, &redis.XAddArgs{Stream: s.stream(), MaxLen: s.messages, Approx: true, Values: []any{field, value, "mark", mark}})
		p.PExpire(ctx, s.stream(), keepMessages)
		return nil
	})
	if err != nil {
		return "", wrap(err)
	}
	return added.Val() + " " + mark, nil
}

// placeOf is the place behind an entry: its id, and its mark.
func placeOf(e redis.XMessage) string {
	mark, _ := e.Values["mark"].(string)
	return e.ID + " " + mark
}

// Receive implements [cache.Relay]. It returns [cache.ErrGap] if the entry at place is gone, and whatever error the
// client or the server returns.
func (s *Store) Receive(ctx context.Context, place string, wait time.Duration) (m cache.Messages, err error) {
	for end := time.Now().Add(wait); ; {
		if err := ctx.Err(); err != nil {
			return m, err
		}
		id, _, _ := strings.Cut(place, " ")
		if left := time.Until(end); left > 0 {
			// This wakes, and does no more: a client that reads from replicas is answered by one of them, and one that lags has not even the entry at place.
			block := max(min(left, maxBlock), time.Millisecond)
			err := s.client.XRead(ctx, &redis.XReadArgs{Streams: []string{s.stream(), id}, Count: 1, Block: block}).Err()
			if err != nil && !errors.Is(err, redis.Nil) {
				return m, wrap(err)
			}
		}
		if m, err = s.read(ctx, id, place); err != nil || len(m.List) > 0 || !time.Now().Before(end) {
			return m, err
		}
		place = m.Next
	}
}

// read returns what stands behind a place now. It writes, so that a primary answers, and one that may not write any more does not.
func (s *Store) read(ctx context.Context, id, place string) (m cache.Messages, err error) {
	var found *redis.XMessageSliceCmd
	_, err = s.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
		found = p.XRangeN(ctx, s.stream(), id, "+", 1+maxReceived)
		p.PExpire(ctx, s.stream(), keepMessages)
		return nil
	})
	if err != nil {
		return m, wrap(err)
	}
	entries := found.Val()
	if len(entries) == 0 || placeOf(entries[0]) != place {
		return m, fmt.Errorf("redisstore: %w: %s is not in the stream any more", cache.ErrGap, id)
	}
	for _, e := range entries[1:] {
		if text, ok := e.Values["m"].(string); ok {
			m.List = append(m.List, []byte(text))
		} else if _, ok := e.Values["end"]; !ok {
			m.List = append(m.List, nil) // of somebody else, or a later version: not understood
		}
	}
	m.Next, m.More = placeOf(entries[len(entries)-1]), len(entries) == 1+maxReceived
	return m, nil
}
