package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/spillgate/spillgate/middleware/health"
	"github.com/spillgate/spillgate/middleware/outbound"
)

// A demo does one thing after another to the replicas and waits, each time, until
// the gateway has dealt with it. It fails if that does not happen before its
// context ends, or if a client ever sees an error.
type demo struct {
	*gateway
	load *load
	out  io.Writer
}

func runDemo(ctx context.Context, out io.Writer) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	g, err := newGateway()
	if err != nil {
		return errors.Join(err, l.Close())
	}
	defer g.close()
	serving, leave := context.WithCancel(context.Background())
	defer leave()
	left := make(chan error, 1)
	h := health.New(health.WithDrainWait(500 * time.Millisecond))
	go func() { left <- h.Serve(serving, l, &http.Server{Handler: g.handler}) }()
	d := &demo{gateway: g, load: startLoad("http://"+l.Addr().String(), 4), out: out}
	defer d.load.stop()
	if err := d.script(ctx); err != nil {
		return err
	}

	// The gateway leaves too. It serves on while its clients go elsewhere.
	leave()
	d.load.stop()
	select {
	case err = <-left:
	case <-ctx.Done():
		err = errors.New("the gateway did not leave in time")
	}
	if n := d.load.bad.Load(); err == nil && n > 0 {
		err = fmt.Errorf("%d clients saw an error, first %v", n, d.load.first.Load())
	}
	if err == nil {
		fmt.Fprintln(out, "== drain: the gateway has left")
	}
	return err
}

// script is the demonstration.
func (d *demo) script(ctx context.Context) error {
	a, b, c := d.replicas[0], d.replicas[1], d.replicas[2]

	start := d.requests()
	err := d.until(ctx, "balance: every replica gets its part", func(s outbound.SetStats) bool {
		now := d.since(start)
		total := now[0] + now[1] + now[2]
		return total >= 300 && min(now[0], now[1], now[2])*5 >= total
	})
	if err != nil {
		return err
	}

	b.set(failing)
	err = d.until(ctx, "ejection: b fails at once and is out, and nobody else noticed", func(s outbound.SetStats) bool {
		return s.Endpoints[1].Ejected
	})
	if err != nil {
		return err
	}
	if d.transport.Stats().Retries == 0 {
		return errors.New("b failed and nothing was tried again")
	}
	fmt.Fprintf(d.out, "   retry: %d requests that b refused were answered by others\n", d.transport.Stats().Retries)

	b.set(well)
	start = d.requests()
	err = d.until(ctx, "b is well and comes back", func(outbound.SetStats) bool { return d.since(start)[1] >= 100 })
	if err != nil {
		return err
	}

	c.set(slow)
	start = d.requests()
	err = d.until(ctx, "balance: c has become slow and gets little", func(outbound.SetStats) bool {
		now := d.since(start)
		total := now[0] + now[1] + now[2]
		return total >= 300 && now[2]*5 <= total
	})
	if err != nil {
		return err
	}
	c.set(well)
	start = d.requests()
	err = d.until(ctx, "c is well and comes back", func(outbound.SetStats) bool { return d.since(start)[2] >= 100 })
	if err != nil {
		return err
	}

	go a.drain(ctx)
	err = d.until(ctx, "drain: a says it is leaving, and gets nothing new", func(s outbound.SetStats) bool {
		return s.Endpoints[0].Down && s.Endpoints[0].InFlight == 0
	})
	if err != nil {
		return err
	}
	start = d.requests()
	a.drain(ctx) // returns when it has left
	err = d.until(ctx, "a has left", func(outbound.SetStats) bool {
		now := d.since(start)
		return now[1]+now[2] >= 100 && now[0] == 0
	})
	if err != nil {
		return err
	}
	if err := a.ok(); err != nil {
		return err
	}
	start = d.requests()
	err = d.until(ctx, "a is new and gets its part, slowly", func(outbound.SetStats) bool { return d.since(start)[0] >= 100 })
	if err != nil {
		return err
	}

	b.kill()
	start = d.requests()
	err = d.until(ctx, "retry: b was killed, and what it had was done by others", func(s outbound.SetStats) bool {
		now := d.since(start)
		return now[0]+now[2] >= 100 && (s.Endpoints[1].Ejected || s.Endpoints[1].Down)
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, "%d answers, no error, %d retries\n", d.load.good.Load(), d.transport.Stats().Retries)
	return nil
}

// until prints the table when something has come true.
func (d *demo) until(ctx context.Context, what string, done func(outbound.SetStats) bool) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if ctx.Err() != nil {
			return d.cutShort(ctx, what)
		}
		if n := d.load.bad.Load(); n > 0 {
			return fmt.Errorf("waiting for %q: %d clients saw an error, first %v", what, n, d.load.first.Load())
		}
		if done(d.set.Stats()) {
			fmt.Fprintln(d.out, "== "+what)
			d.table(d.out, d.load)
			return nil
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func (d *demo) cutShort(ctx context.Context, what string) error {
	d.table(d.out, d.load)
	return fmt.Errorf("waiting for %q: cut short: %w", what, context.Cause(ctx))
}

// requests is how many each replica has had.
func (d *demo) requests() (n [3]uint64) {
	for i, e := range d.set.Stats().Endpoints {
		n[i] = e.Requests
	}
	return n
}

func (d *demo) since(start [3]uint64) [3]uint64 {
	now := d.requests()
	for i := range now {
		now[i] -= start[i]
	}
	return now
}
