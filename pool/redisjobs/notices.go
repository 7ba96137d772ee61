package redisjobs

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
)

// listenIdle is how long nothing may be heard until it is seen whether the connection is there, and how long one is kept that nobody needs. It is
// a variable for the sake of tests.
var listenIdle = time.Minute

// pongTime is how long the server may take to say that it is.
const pongTime = 10 * time.Second

// hear listens to a channel until the connection is lost, ctx ends or told returns false. told is called with each message; with none, and true, when
// it has begun to listen; and with neither when there was nothing for a while. hear reports whether it has listened.
func hear(ctx context.Context, client redis.UniversalClient, channel string, told func(said string, began bool) bool) bool {
	p := client.Subscribe(ctx, channel)
	defer p.Close()
	defer context.AfterFunc(ctx, func() { p.Close() })() // ends what waits for the next message
	listened, asked := false, false
	for {
		patience := listenIdle
		if asked || !listened {
			patience = pongTime
		}
		m, err := p.ReceiveTimeout(ctx, patience)
		if err != nil {
			timeout, ok := errors.AsType[net.Error](err)
			if !ok || !timeout.Timeout() || asked || !listened || ctx.Err() != nil {
				return listened
			}
			if asked = true; p.Ping(ctx) != nil || !told("", false) {
				return listened
			}
			continue
		}
		asked = false
		switch m := m.(type) {
		case *redis.Subscription:
			listened = true
			if !told("", true) {
				return true
			}
		case *redis.Message:
			if !told(m.Payload, false) {
				return true
			}
		}
	}
}
