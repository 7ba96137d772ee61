package jobs

import (
	"cmp"
	"container/heap"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/spillgate/spillgate/pool"
)

// Local is an [Engine] in memory. Its jobs run in the slots of a pool, beside whatever else
// runs there and behind it: by default all of them have priority -4 in the pool. A handler
// that computes for long calls [pool.Checkpoint], which lets a request that waits go first.
//
// Everything is bounded: unfinished jobs, one client's share of them, finished jobs, the
// bytes of payloads and results, the time for which a finished job is kept. Jobs do not
// survive the process.
//
// It has goroutines only while jobs can run, and a timer while one is to be retried
// or forgotten; [Local.Close] ends them. The zero value does not work; use [NewLocal].
// Safe for concurrent use.
type Local struct {
	mux  *Mux
	pool *pool.Pool
	conf localConfig
	base time.Time
	mint *mint

	ctx  context.Context // ends when the time for draining is over
	stop context.CancelCauseFunc
	idle chan struct{} // closed when shut down with nothing unfinished
	runs sync.WaitGroup

	mu       sync.Mutex
	jobs     map[string]*entry
	keys     map[jobKey]*entry
	ready    line
	delayed  jobHeap // by the time at which they become ready
	finished jobHeap // by the time at which they are forgotten
	running  map[*entry]struct{}
	bytes    int64
	number   uint64
	mean     time.Duration // of the run time, moves by 1/8
	runners  int           // goroutines that run a job or wait for a slot
	coming   int           // of these, those that wait for a slot
	timer    *time.Timer
	timerAt  time.Duration // 0: not armed
	pause    time.Duration // no runner is started before this: the pool was full
	closed   bool
	drained  time.Duration // when closed: what cannot begin by then is dropped
	dropped  []string
	counts   Stats
}

type jobKey struct{ client, key string }

// entry is a job as the engine keeps it. All fields belong to the engine's lock.
type entry struct {
	rank     time.Duration // the order in the heap it is in
	number   uint64
	place    int
	priority int

	id, kind, client, key string
	hash                  [16]byte // of kind and payload; where key is set
	payload, result       []byte
	state                 State
	version               uint64
	attempt, attempts     int
	progress              *Progress
	err, detail           string
	cancelling            bool

	created, started, ended time.Time
	next                    time.Time // not before; of a final job, when it is forgotten
	deadline                time.Time
	cancel                  context.CancelCauseFunc // while it runs
	changed                 chan struct{}           // closed at the next change; made for the first who watches
}

// LocalOption sets one thing about a [Local].
type LocalOption interface{ applyLocal(*localConfig) }

type localConfig struct {
	unfinished, share, finished int
	payload, result             int
	bytes                       int64
	retain                      time.Duration
	priority                    int
}

type localOption func(*localConfig)

func (f localOption) applyLocal(c *localConfig) { f(c) }

// WithCapacity bounds the unfinished jobs, those of one client among them, and the finished
// jobs that are kept; the defaults are 10,000, a quarter of that and 10,000. When there are
// more finished jobs than that, the one that would be forgotten first goes. It panics unless
// all are positive and share is at most unfinished.
func WithCapacity(unfinished, share, finished int) LocalOption {
	if unfinished < 1 || share < 1 || share > unfinished || finished < 1 {
		panic(fmt.Sprintf("jobs: WithCapacity(%d, %d, %d): all must be at least 1 and the share no more than the whole", unfinished, share, finished))
	}
	return localOption(func(c *localConfig) { c.unfinished, c.share, c.finished = unfinished, share, finished })
}

// WithSizes bounds the bytes of one payload, of one result, and of everything that is kept
// together; the defaults are 64 KiB, 1 MiB and 64 MiB. To make room finished jobs are forgotten
// early. It panics unless all are positive and total holds at least one of each.
func WithSizes(payload, result int, total int64) LocalOption {
	if payload < 1 || result < 1 || total < int64(payload)+int64(result) {
		panic(fmt.Sprintf("jobs: WithSizes(%d, %d, %d): all must be positive and the total hold one payload and one result", payload, result, total))
	}
	return localOption(func(c *localConfig) { c.payload, c.result, c.bytes = payload, result, total })
}

// WithRetention sets how long a job is kept after it has ended; the default is 1 h. A kind can
// have its own ([WithRetain]). It panics if d is not positive.
func WithRetention(d time.Duration) LocalOption {
	if d <= 0 {
		panic(fmt.Sprintf("jobs: WithRetention(%v): the time must be positive", d))
	}
	return localOption(func(c *localConfig) { c.retain = d })
}

// WithPoolPriority sets the priority that all jobs have in the pool, from -8 to 7, where
// requests usually have 0; the default is -4.
func WithPoolPriority(p int) LocalOption {
	return localOption(func(c *localConfig) { c.priority = p })
}

// NewLocal returns an engine that runs the kinds of m in the slots of p. It panics if one of
// them is nil.
func NewLocal(m *Mux, p *pool.Pool, opts ...LocalOption) *Local {
	if m == nil || p == nil {
		panic("jobs: NewLocal: it needs a Mux with the handlers and a pool to run them in")
	}
	c := localConfig{
		unfinished: 10000, finished: 10000,
		payload: 64 << 10, result: 1 << 20, bytes: 64 << 20,
		retain: time.Hour, priority: -4,
	}
	c.share = c.unfinished / 4
	for _, o := range opts {
		o.applyLocal(&c)
	}
	l := &Local{
		mux: m, pool: p, conf: c, base: time.Now(), mint: newMint(),
		idle:    make(chan struct{}),
		jobs:    make(map[string]*entry),
		keys:    make(map[jobKey]*entry),
		running: make(map[*entry]struct{}),
	}
	l.ctx, l.stop = context.WithCancelCause(context.Background())
	return l
}

func (l *Local) now() time.Duration { return time.Since(l.base) }

// Submit implements [Engine]. What the context carries is not passed on to the job.
func (l *Local) Submit(ctx context.Context, kind string, payload []byte, o SubmitOptions) (Job, bool, error) {
	if ctx.Err() != nil {
		return Job{}, false, context.Cause(ctx)
	}
	policy, err := l.mux.Policy(kind)
	if err != nil {
		return Job{}, false, err
	}
	if len(payload) > l.conf.payload {
		return Job{}, false, fmt.Errorf("%w: the payload has %d bytes, %d are allowed", ErrTooLarge, len(payload), l.conf.payload)
	}
	if len(o.Key) > 255 || len(o.Client) > 255 {
		return Job{}, false, fmt.Errorf("%w: a key or a client's name has at most 255 bytes", ErrTooLarge)
	}
	if err := l.mux.Check(kind, payload); err != nil {
		return Job{}, false, err
	}
	e := &entry{
		id: l.mint.id(), kind: kind, client: o.Client, key: o.Key, priority: o.Priority,
		payload: slices.Clone(payload), state: Queued, attempts: cmp.Or(max(o.MaxAttempts, 0), policy.MaxAttempts),
		created: time.Now(), next: o.NotBefore, deadline: o.Deadline, version: 1, place: -1,
	}
	if o.Key != "" {
		h := sha256.New()
		h.Write([]byte(kind))
		h.Write([]byte{0})
		h.Write(payload)
		copy(e.hash[:], h.Sum(nil))
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	l.tidy(now)
	if o.Key != "" {
		if first := l.keys[jobKey{o.Client, o.Key}]; first != nil {
			if first.hash != e.hash {
				return Job{}, false, ErrKeyReused
			}
			return l.view(first), false, nil
		}
	}
	switch size := int64(len(payload)); {
	case l.closed:
		return Job{}, false, ErrShutdown
	case l.unfinished() >= l.conf.unfinished:
		return Job{}, false, &Error{ErrFull, l.wait(1)}
	case o.Client != "" && l.ready.clients[o.Client] != nil && l.ready.clients[o.Client].unfinished >= l.conf.share:
		return Job{}, false, &Error{ErrShareFull, l.wait(1)}
	case !l.room(size):
		return Job{}, false, &Error{ErrFull, l.wait(1)}
	default:
		l.bytes += size
	}
	l.number++
	e.number = l.number
	l.jobs[e.id] = e
	if o.Key != "" {
		l.keys[jobKey{o.Client, o.Key}] = e
	}
	l.ready.begin(e.client)
	l.counts.Submitted++
	if d := time.Until(o.NotBefore); !o.NotBefore.IsZero() && d > 0 {
		l.delay(e, now+d)
	} else {
		e.next = time.Time{}
		l.ready.push(e, now)
	}
	l.start(now)
	l.arm(now)
	return l.view(e), true, nil
}

func (l *Local) unfinished() int { return l.ready.n + len(l.delayed) + len(l.running) }

// wait is how long it takes until about n of the jobs have ended, between 1 s and 1 min.
func (l *Local) wait(n int) time.Duration {
	d := l.mean * time.Duration(n) / time.Duration(max(1, l.pool.Slots()))
	return min(max(d, time.Second), time.Minute)
}

// room makes room for size bytes by forgetting finished jobs, and reports whether there is.
func (l *Local) room(size int64) bool {
	for l.bytes+size > l.conf.bytes {
		if len(l.finished) == 0 {
			return false
		}
		l.forget(l.finished[0])
	}
	return true
}

// forget drops a finished job; its id will be answered with ErrExpired.
func (l *Local) forget(e *entry) {
	heap.Remove(&l.finished, e.place)
	delete(l.jobs, e.id)
	if e.key != "" {
		delete(l.keys, jobKey{e.client, e.key})
	}
	l.bytes -= e.bytes()
	l.counts.Forgotten++
	l.tell(e)
}

func (e *entry) bytes() int64 {
	return int64(len(e.payload) + len(e.result) + len(e.detail))
}

// tidy forgets what has expired and makes ready what has waited long enough.
func (l *Local) tidy(now time.Duration) {
	for len(l.finished) > 0 && l.finished[0].rank <= now {
		l.forget(l.finished[0])
	}
	for len(l.delayed) > 0 && l.delayed[0].rank <= now {
		e := heap.Pop(&l.delayed).(*entry)
		e.next = time.Time{}
		l.ready.push(e, now)
	}
}

func (l *Local) delay(e *entry, at time.Duration) {
	e.rank = at
	e.next = l.base.Add(at).Round(0)
	heap.Push(&l.delayed, e)
}

// arm sets the timer for the next thing that time alone brings about.
func (l *Local) arm(now time.Duration) {
	var at time.Duration
	for _, h := range []jobHeap{l.delayed, l.finished} {
		if len(h) > 0 && (at == 0 || h[0].rank < at) {
			at = h[0].rank
		}
	}
	if l.pause > now && l.ready.n > 0 && (at == 0 || l.pause < at) {
		at = l.pause
	}
	if l.ctx.Err() != nil || at == l.timerAt {
		return
	}
	l.timerAt = at
	switch d := max(at-now, 1); {
	case at == 0:
		l.timer.Stop()
	case l.timer == nil:
		l.timer = time.AfterFunc(d, l.tick)
	default:
		l.timer.Reset(d)
	}
}

func (l *Local) tick() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.timerAt = 0
	now := l.now()
	l.tidy(now)
	l.start(now)
	l.arm(now)
}

// start sends for as many runners as there are slots to run in and jobs to be run.
func (l *Local) start(now time.Duration) {
	if now < l.pause {
		return
	}
	for slots := l.pool.Slots(); l.coming < l.ready.n && l.runners < slots && l.ctx.Err() == nil; {
		l.runners++
		l.coming++
		l.runs.Add(1)
		go l.runner()
	}
}

// runner waits for a slot and runs the job that is next when it has one.
func (l *Local) runner() {
	defer l.runs.Done()
	begun := false
	_, err := pool.Submit(l.ctx, l.pool, func(ctx context.Context) (struct{}, error) {
		begun = true
		l.work(ctx)
		return struct{}{}, nil
	}, pool.WithKind("jobs"), pool.WithPriority(l.conf.priority)).Wait(context.Background())
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	l.runners--
	if !begun {
		l.coming--
		if err != nil {
			l.pause = now + time.Second // the pool's line is full, or it is shut down
		}
	}
	l.tidy(now)
	l.start(now)
	l.arm(now)
}

// work runs the job that is next, in the slot of ctx.
func (l *Local) work(ctx context.Context) {
	l.mu.Lock()
	l.coming--
	now := l.now()
	l.tidy(now)
	var e *entry
	for e == nil {
		e = l.ready.pop(max(l.mean, 1))
		if e == nil {
			l.mu.Unlock()
			return
		}
		if !e.deadline.IsZero() && time.Now().After(e.deadline) {
			l.end(e, Failed, ErrDeadline.Error(), "", nil)
			e = nil
		}
	}
	charged := max(l.mean, 1)
	ctx, e.cancel = context.WithCancelCause(ctx)
	stop := e.cancel
	l.running[e] = struct{}{}
	e.state, e.started, e.progress = Running, time.Now(), nil
	e.attempt++
	attempt := Attempt{ID: e.id, Kind: e.kind, Number: e.attempt, Report: func(p Progress) { l.report(e, p) }}
	payload, deadline := e.payload, e.deadline
	l.change(e)
	l.mu.Unlock()

	var result []byte
	err := ErrGoexit
	defer func() {
		stop(nil)
		l.mu.Lock()
		took := l.now() - now
		l.ready.charge(e.client, took-charged)
		if l.mean == 0 {
			l.mean = took
		}
		l.mean += (took - l.mean) / 8
		l.finish(e, result, err)
		l.mu.Unlock()
	}()
	if !deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	result, err = l.mux.Run(ctx, attempt, slices.Clone(payload))
}

func (l *Local) report(e *entry, p Progress) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.state == Running {
		e.progress = &p
		l.change(e)
	}
}

// finish takes in how an attempt ended. The lock is held.
func (l *Local) finish(e *entry, result []byte, err error) {
	delete(l.running, e)
	e.cancel = nil
	if err == nil && len(result) > l.conf.result {
		err = fmt.Errorf("%w: the result has %d bytes, %d are allowed", ErrTooLarge, len(result), l.conf.result)
	}
	if err == nil {
		l.end(e, Succeeded, "", "", result)
		return
	}
	text, detail := clip(err.Error(), 1024), ""
	var p *PanicError
	if errors.As(err, &p) {
		detail = clip(fmt.Sprintf("panic: %v\n\n%s", p.Value, p.Stack), 8192)
		l.counts.Panics++
	}
	now := l.now()
	switch retry := !e.cancelling && Retryable(err) && e.attempt < e.attempts; {
	case e.cancelling:
		l.end(e, Cancelled, ErrCancelled.Error(), detail, nil)
	case retry && l.ctx.Err() == nil:
		policy, _ := l.mux.Policy(e.kind)
		at := now + policy.Delay(e.attempt)
		if !e.deadline.IsZero() && l.base.Add(at).After(e.deadline) {
			l.end(e, Failed, text, detail, nil)
			return
		}
		if l.closed && l.drained != 0 && at > l.drained {
			l.dropped = append(l.dropped, e.id)
			l.end(e, Failed, text, detail, nil)
			return
		}
		l.bytes -= int64(len(e.detail))
		e.state, e.err, e.detail = Retrying, text, ""
		l.counts.Retried++
		l.delay(e, at)
		l.change(e)
	default:
		l.end(e, Failed, text, detail, nil)
	}
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}

// end makes a job final that is in no heap any more. The lock is held.
func (l *Local) end(e *entry, s State, text, detail string, result []byte) {
	now := l.now()
	l.bytes -= e.bytes()
	if s != Failed {
		e.payload = nil // a failed one may be queued again
	}
	e.state, e.err, e.detail, e.result = s, text, detail, result
	e.ended, e.cancel = time.Now().Round(0), nil
	if s == Succeeded {
		e.progress = nil
	}
	policy, _ := l.mux.Policy(e.kind)
	keep := cmp.Or(policy.Retain, l.conf.retain)
	e.rank, e.next = now+keep, e.ended.Add(keep)
	l.bytes += e.bytes()
	heap.Push(&l.finished, e)
	l.ready.end(e.client)
	switch s {
	case Succeeded:
		l.counts.Succeeded++
	case Failed:
		l.counts.Failed++
	case Cancelled:
		l.counts.Cancelled++
	}
	l.change(e)
	for len(l.finished) > l.conf.finished || l.bytes > l.conf.bytes && len(l.finished) > 1 {
		l.forget(l.finished[0])
	}
	if l.closed && l.unfinished() == 0 {
		l.done()
	}
}

func (l *Local) done() {
	select {
	case <-l.idle:
	default:
		close(l.idle)
	}
}

// change counts a change and tells those who watch.
func (l *Local) change(e *entry) {
	e.version++
	l.tell(e)
}

func (l *Local) tell(e *entry) {
	if e.changed != nil {
		close(e.changed)
		e.changed = nil
	}
}

// view is e as the outside sees it. The lock is held. Payloads and results are never
// written to, so they can be shared.
func (l *Local) view(e *entry) Job {
	j := Job{
		ID: e.id, Kind: e.kind, State: e.state, Version: e.version,
		Attempt: e.attempt, MaxAttempts: e.attempts, Cancelling: e.cancelling && !e.state.Final(),
		Created: e.created, Started: e.started, Result: e.result, Err: e.err,
		Client: e.client, Detail: e.detail,
	}
	if e.progress != nil {
		j.Progress = *e.progress
	}
	switch {
	case e.state.Final():
		j.Finished, j.Expires = e.ended, e.next
	case e.state == Running:
		j.RetryAfter = min(max(l.mean-time.Since(e.started), time.Second), time.Minute)
	default:
		j.Next = e.next
		j.RetryAfter = l.wait(l.ready.n + 1)
		if !e.next.IsZero() {
			j.RetryAfter = max(j.RetryAfter, min(time.Until(e.next), time.Minute))
		}
	}
	return j
}

// find returns the entry of a job that is known. The lock is held.
func (l *Local) find(id string) (*entry, error) {
	now := l.now()
	l.tidy(now)
	if e := l.jobs[id]; e != nil {
		return e, nil
	}
	if l.mint.gaveOut(id) {
		return nil, ErrExpired
	}
	return nil, ErrNotFound
}

// Get implements [Engine].
func (l *Local) Get(ctx context.Context, id string) (Job, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, err := l.find(id)
	if err != nil {
		return Job{}, err
	}
	return l.view(e), nil
}

// Cancel implements [Engine].
func (l *Local) Cancel(ctx context.Context, id string) (Job, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, err := l.find(id)
	if err != nil {
		return Job{}, err
	}
	switch e.state {
	case Queued, Retrying:
		l.withdraw(e)
		l.end(e, Cancelled, ErrCancelled.Error(), "", nil)
		l.arm(l.now())
	case Running:
		if !e.cancelling {
			e.cancelling = true
			e.cancel(ErrCancelled)
			l.change(e)
		}
	default:
		return l.view(e), ErrFinal
	}
	return l.view(e), nil
}

// withdraw takes a job that waits out of its heap.
func (l *Local) withdraw(e *entry) {
	if e.place < len(l.delayed) && l.delayed[e.place] == e {
		heap.Remove(&l.delayed, e.place)
	} else {
		l.ready.remove(e)
	}
}

// Watch implements [Engine].
func (l *Local) Watch(ctx context.Context, id string) iter.Seq2[Job, error] {
	return func(yield func(Job, error) bool) {
		var seen uint64
		for {
			l.mu.Lock()
			e, err := l.find(id)
			if err != nil {
				l.mu.Unlock()
				yield(Job{}, err)
				return
			}
			j := l.view(e)
			if e.changed == nil && !j.State.Final() {
				e.changed = make(chan struct{})
			}
			changed := e.changed
			l.mu.Unlock()
			if j.Version != seen {
				seen = j.Version
				if !yield(j, nil) {
					return
				}
			}
			if j.State.Final() {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				yield(Job{}, context.Cause(ctx))
				return
			}
		}
	}
}

// Requeue gives a failed job all its attempts again; it keeps its id. It is for the operator.
// Errors wrap [ErrNotFound], [ErrExpired], [ErrNotFailed], [ErrFull] or [ErrShutdown].
func (l *Local) Requeue(ctx context.Context, id string) (Job, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, err := l.find(id)
	if err != nil {
		return Job{}, err
	}
	switch {
	case e.state != Failed:
		return l.view(e), ErrNotFailed
	case l.closed:
		return l.view(e), ErrShutdown
	case l.unfinished() >= l.conf.unfinished:
		return l.view(e), &Error{ErrFull, l.wait(1)}
	}
	heap.Remove(&l.finished, e.place)
	l.bytes -= int64(len(e.detail))
	e.state, e.attempt, e.err, e.detail, e.cancelling = Queued, 0, "", "", false
	e.ended, e.started, e.next, e.deadline = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	now := l.now()
	l.ready.begin(e.client)
	l.ready.push(e, now)
	l.change(e)
	l.start(now)
	l.arm(now)
	return l.view(e), nil
}

// DeadLetters returns the failed jobs that are still known, the latest first, with what
// only the operator may see.
func (l *Local) DeadLetters() []Job {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tidy(l.now())
	var all []Job
	for _, e := range l.finished {
		if e.state == Failed {
			all = append(all, l.view(e))
		}
	}
	slices.SortFunc(all, func(a, b Job) int { return b.Finished.Compare(a.Finished) })
	return all
}

// Shutdown accepts no more jobs and waits until all are final, then returns nil. Jobs that wait
// for a time after the deadline of ctx are dropped at once: they become Failed.
//
// If ctx ends first, what waits is dropped, the contexts of running jobs end with
// [ErrShutdown] as their cause, and Shutdown returns a [*DroppedError] with the ids of
// both. It does not wait for running jobs any longer; [Local.Close] does.
// Get and Watch go on working.
func (l *Local) Shutdown(ctx context.Context) error {
	l.mu.Lock()
	l.closed = true
	now := l.now()
	if until, ok := ctx.Deadline(); ok {
		l.drained = max(until.Sub(l.base), 1)
		for _, e := range slices.Clone(l.delayed) {
			if e.rank > l.drained {
				l.drop(e)
			}
		}
	}
	if l.unfinished() == 0 {
		l.done()
	}
	l.start(now)
	l.arm(now)
	l.mu.Unlock()

	select {
	case <-l.idle:
	case <-ctx.Done():
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	l.stop(ErrShutdown)
	for _, e := range slices.Clone(l.delayed) {
		l.drop(e)
	}
	for l.ready.n > 0 {
		l.drop(l.ready.order[0].jobs[0])
	}
	var running []string
	for e := range l.running {
		running = append(running, e.id)
	}
	slices.Sort(running)
	if l.timer != nil {
		l.timer.Stop()
		l.timerAt = 0
	}
	if len(running) == 0 && len(l.dropped) == 0 {
		return nil
	}
	return &DroppedError{Cause: cmp.Or(context.Cause(ctx), ErrShutdown), Waiting: slices.Clone(l.dropped), Running: running}
}

// drop ends a job that waits because there is no time left for it.
func (l *Local) drop(e *entry) {
	l.withdraw(e)
	l.dropped = append(l.dropped, e.id)
	l.end(e, Failed, ErrShutdown.Error(), "", nil)
}

// Close ends everything without draining and waits until the handlers have returned. It
// returns what [Local.Shutdown] returns.
func (l *Local) Close() error {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(ErrShutdown)
	err := l.Shutdown(ctx)
	l.runs.Wait()
	return err
}

// Stats is the state of a [Local] at one moment and its counts since it was made.
type Stats struct {
	Queued   int   `json:"queued"`   // could begin now
	Delayed  int   `json:"delayed"`  // wait for a time: of their own, or for another attempt
	Running  int   `json:"running"`  // in a handler
	Finished int   `json:"finished"` // final and still known
	Bytes    int64 `json:"bytes"`    // of payloads, results and details

	Submitted int64 `json:"submitted"`
	Succeeded int64 `json:"succeeded"`
	Failed    int64 `json:"failed"`
	Cancelled int64 `json:"cancelled"`
	Retried   int64 `json:"retried"`   // attempts that failed and were to be repeated
	Panics    int64 `json:"panics"`    // attempts that panicked
	Forgotten int64 `json:"forgotten"` // expired, or gone to make room

	MeanRun time.Duration `json:"mean_run"` // of an attempt, lately
}

// Stats returns counts and state.
func (l *Local) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tidy(l.now())
	s := l.counts
	s.Queued, s.Delayed, s.Running, s.Finished = l.ready.n, len(l.delayed), len(l.running), len(l.finished)
	s.Bytes, s.MeanRun = l.bytes, l.mean
	return s
}
