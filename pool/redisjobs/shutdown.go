package redisjobs

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/spillgate/spillgate/pool/jobs"
)

// Start begins to run jobs if the engine has workers ([WithWorkers]); otherwise it only checks the server. It returns
// an error if the server does not accept the scripts, or may evict jobs that have not ended. It returns when it has
// begun, and does not use ctx after that. A second Start does nothing.
func (e *Engine) Start(ctx context.Context) error {
	v, begun := &voice{client: e.client, key: e.keys[0]}, false
	defer func() {
		if !begun {
			v.close()
		}
	}()
	if err := e.check(ctx, v); err != nil {
		return err
	}
	e.life.Lock()
	defer e.life.Unlock()
	switch {
	case e.closed.Load():
		return jobs.ErrShutdown
	case e.drained != nil || e.conf.workers == 0 || len(e.kinds) == 0:
		return nil
	}
	begun = true
	e.drained, e.stopped = make(chan struct{}), make(chan struct{})
	e.fetches.Go(e.fetch)
	e.keeps.Go(func() { e.keep(v) })
	hearing, deaf := context.WithCancel(context.Background())
	e.keeps.Go(func() { <-e.stopped; deaf() })
	e.keeps.Go(func() { e.listen(hearing) })
	return nil
}

// check asks the server for what it must have, first by v.
func (e *Engine) check(ctx context.Context, v *voice) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := v.run(ctx, beatScript, 0).Err(); err != nil { // which has its connection before handlers have all of them
		if strings.Contains(err.Error(), "compiling") {
			err = fmt.Errorf("the server must be Redis 7 or newer, or Valkey: %w", err)
		}
		return e.fault(ctx, err)
	}
	if _, err := e.ids(ctx); err != nil {
		return err
	}
	var server redis.Cmdable = e.client
	if c, ok := server.(*redis.ClusterClient); ok { // which would ask any
		node, err := c.MasterForKey(ctx, e.keys[0])
		if err != nil {
			return e.fault(ctx, err)
		}
		server = node
	}
	info, err := server.Info(ctx, "memory").Result()
	if err == nil && strings.Contains(info, "maxmemory_policy:allkeys-") && !strings.Contains(info, "maxmemory:0\r") {
		return fmt.Errorf("redisjobs: the server evicts any key when its memory is full, and so loses jobs: set its maxmemory-policy to noeviction, or to volatile-ttl to lose results first")
	}
	return nil // who may not ask has to know
}

// toReturn is how long Shutdown waits for handlers that were told to stop.
const toReturn = time.Second

// Shutdown accepts and begins no more jobs, waits for those that this engine runs, and returns nil. Waiting jobs stay
// on the server, for other engines or for later. What the running jobs still submit, with their contexts, is accepted
// for them as well.
//
// If ctx ends first, the contexts of running jobs end with [jobs.ErrShutdown] as their cause, and Shutdown returns a
// [*jobs.DroppedError] with their ids. Jobs whose handlers return within a second go back to the queue at once, and the
// attempt does not count; others go back when they return, or when the lease of this engine is over ([WithLease]).
// [Engine.Close] waits for all handlers.
//
// Get, Cancel and Watch continue to work.
func (e *Engine) Shutdown(ctx context.Context) error {
	stopped := e.drain()
	if stopped == nil {
		return nil
	}
	select {
	case <-stopped:
		return nil
	case <-ctx.Done():
	}
	e.mu.Lock()
	var running []string
	for a := range e.running {
		running = append(running, a.id)
	}
	e.mu.Unlock()
	slices.Sort(running)
	e.abort(jobs.ErrShutdown)
	timer := time.NewTimer(toReturn)
	defer timer.Stop()
	select {
	case <-stopped:
	case <-timer.C:
	}
	if len(running) == 0 {
		return nil
	}
	return &jobs.DroppedError{Cause: fmt.Errorf("redisjobs: %w", context.Cause(ctx)), Running: running}
}

// drain has no more jobs begin and returns what is closed when none runs any more, or nil if none ever did.
func (e *Engine) drain() <-chan struct{} {
	e.closed.Store(true)
	e.life.Lock()
	defer e.life.Unlock()
	if e.drained == nil {
		return nil
	}
	e.stop.Do(func() {
		close(e.drained)
		go func() {
			defer close(e.stopped)
			e.fetches.Wait()
		}()
	})
	return e.stopped
}

// Close ends everything without draining and waits until the handlers have returned. It returns what [Engine.Shutdown] returns.
func (e *Engine) Close() error {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(jobs.ErrShutdown)
	err := e.Shutdown(ctx)
	if stopped := e.drain(); stopped != nil {
		<-stopped
	}
	e.keeps.Wait()
	e.watch.Close()
	return err
}
