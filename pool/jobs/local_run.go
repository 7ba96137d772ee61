package jobs

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spillgate/spillgate/pool"
)

// tidy forgets what has expired, ends what can no longer begin in time and makes ready what has waited long enough.
func (l *Local) tidy(now time.Duration) {
	for len(l.due) > 0 && l.due[0].at <= now {
		e := l.due[0].e
		l.withdraw(e)
		l.end(e, Failed, ErrDeadline.Error(), "", nil)
	}
	for len(l.finished) > 0 && l.finished[0].rank <= now {
		l.forget(l.finished[0])
	}
	for len(l.delayed) > 0 && l.delayed[0].rank <= now {
		e := heap.Pop(&l.delayed).(*entry)
		e.next = time.Time{}
		l.ready.push(e, now)
		l.tell(e) // a job that waits for it may have a slot for it
	}
}

func (l *Local) delay(e *entry, at time.Duration) {
	e.rank = at
	now := time.Now() // not base.Add(at): the wall clock may have been set since
	e.next = now.Add(at - now.Sub(l.base)).Round(0)
	heap.Push(&l.delayed, e)
}

// await has a job that waits end at its deadline, waited says that it waits no more.
func (l *Local) await(e *entry, now time.Duration) {
	if !e.deadline.IsZero() {
		e.due = &due{e: e, at: max(after(now, time.Until(e.deadline)), 1)}
		heap.Push(&l.due, e.due)
	}
}

func (l *Local) waited(e *entry) {
	if e.due != nil {
		heap.Remove(&l.due, e.due.place)
		e.due = nil
	}
}

// goOn starts what can begin, and then sets the timer. It is both or neither: tidy may have made ready what the timer was set for, and
// who moves the timer before it fires has to start that.
func (l *Local) goOn(now time.Duration) {
	l.start(now)
	l.arm(now)
}

// arm sets the timer for the next thing that time alone brings about.
func (l *Local) arm(now time.Duration) {
	var at time.Duration
	for _, h := range []ordered[*entry]{l.delayed, l.finished} {
		if len(h) > 0 && (at == 0 || h[0].rank < at) {
			at = h[0].rank
		}
	}
	if len(l.due) > 0 && (at == 0 || l.due[0].at < at) {
		at = l.due[0].at
	}
	if l.pause > now && l.ready.n > 0 && (at == 0 || l.pause < at) {
		at = l.pause
	}
	if l.look > now && l.ready.n > l.coming && (at == 0 || l.look < at) {
		at = l.look
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
	l.goOn(now)
}

const (
	askEvery   = time.Second           // how long no runner joins the pool's queue after it was full
	knockEvery = 50 * time.Millisecond // and how often it is looked meanwhile whether there is a slot that nobody waits for
)

// start sends for as many runners as there are slots to run in and jobs to be run, or for one that looks whether there is a slot.
func (l *Local) start(now time.Duration) {
	if now < l.pause {
		return
	}
	slots := l.pool.Slots()
	more := func() bool { return l.coming < l.ready.n && l.runners < slots && l.ctx.Err() == nil }
	if now < l.knock {
		if l.coming == 0 && more() {
			l.send(true)
		}
	} else {
		for more() {
			l.send(false)
		}
	}
	if l.coming < l.ready.n && l.look <= now {
		l.look = now + time.Second
	}
}

// send starts a runner; knocks says that it does not wait for a slot.
func (l *Local) send(knocks bool) {
	l.runners++
	l.coming++
	l.runs.Add(1)
	go l.runner(l.refused, knocks)
}

// runner waits for a slot and runs the job that is next when it has one. Where the pool has refused runners since
// arrival it comes as one of them: else a queue that is always full would never have one for so long that it has aged.
func (l *Local) runner(arrival time.Time, knocks bool) {
	defer l.runs.Done()
	begun := false
	run := func(ctx context.Context) (struct{}, error) {
		begun = true
		l.work(ctx)
		return struct{}{}, nil
	}
	opts := []pool.TaskOption{pool.WithKind("jobs"), pool.WithPriority(l.conf.priority), pool.WithArrival(arrival)}
	var err error
	if !knocks {
		_, err = pool.Submit(l.ctx, l.pool, run, opts...).Wait(context.Background())
	} else if f, ok := pool.TrySubmit(l.ctx, l.pool, run, opts...); ok {
		_, err = f.Wait(context.Background())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	l.runners--
	if !begun {
		l.coming--
		switch {
		case errors.Is(err, pool.ErrShutdown):
			l.closed = true // nothing will ever run there again
			l.dropWaiting()
		case err != nil:
			l.knock = now + askEvery // the pool's queue is full
			if l.refused.IsZero() {
				l.refused = time.Now()
			}
			fallthrough
		case knocks:
			l.pause = now + knockEvery
		}
	}
	l.tidy(now)
	l.goOn(now)
}

// work runs the job that is next, in the slot of task.
func (l *Local) work(task context.Context) {
	l.mu.Lock()
	l.coming--
	l.refused = time.Time{}
	now := l.now()
	l.tidy(now)
	for l.ready.n > 0 {
		e := l.ready.head()
		if e.deadline.IsZero() || !time.Now().After(e.deadline) {
			break
		}
		l.ready.remove(e)
		l.end(e, Failed, ErrDeadline.Error(), "", nil)
	}
	charged := max(l.mean, 1)
	e := l.ready.pop(charged)
	if e == nil {
		l.mu.Unlock()
		return
	}
	run := l.begin(task, e, nil, now, charged)
	l.mu.Unlock()
	run()
}

// begin has an attempt of a job begin that is in no heap any more, in the slot of task, which is that of another job, by, or nil. Its
// client was charged so much. The lock is held, and must not be for the func that it returns, which runs the attempt.
func (l *Local) begin(task context.Context, e, by *entry, now, charged time.Duration) (run func()) {
	l.waited(e)
	ctx, stop := context.WithCancelCause(task)
	e.cancel, e.task, e.lends, e.looks, e.lent = stop, task, nil, nil, 0
	stood := pool.StoodBack(task)
	l.running[e] = struct{}{}
	e.state, e.started, e.progress = Running, time.Now(), nil
	e.attempt++
	over := false // under the engine's lock
	attempt := Attempt{ID: e.id, Kind: e.kind, Number: e.attempt, Report: func(p Progress) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if !over { // what a handler has left running does not speak for the next attempt
			e.progress = &p
			e.version++
			l.tellSoon(e)
		}
	}}
	payload, deadline := e.payload, e.deadline
	l.change(e)
	l.goOn(now) // there may be another slot
	return func() {
		var result []byte
		err := ErrGoexit
		defer func() {
			stop(nil)
			if err == nil && len(result) > l.conf.result {
				err = fmt.Errorf("%w: the result has %d bytes, %d are allowed", ErrTooLarge, len(result), l.conf.result)
			}
			var failed *failure
			if err != nil {
				failed = failureOf(err)
			}
			l.mu.Lock()
			over = true
			took := l.now() - now
			had := took - (pool.StoodBack(task) - stood)
			if by != nil {
				by.lent += had
			}
			l.ready.charge(e.client, had-e.lent-charged)
			if l.mean == 0 {
				l.mean = took
			}
			l.mean += (took - l.mean) / 8
			l.finish(e, result, failed)
			lends := e.lends
			l.mu.Unlock()
			if lends != nil { // the slot is not free before, where a goroutine that the handler has left behind waits for what runs in it
				<-lends
			}
		}()
		if !deadline.IsZero() {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadline(ctx, deadline)
			defer cancel()
		}
		result, err = l.mux.Run(ctx, attempt, slices.Clone(payload))
	}
}

// failure is what the engine keeps of the error that an attempt ended with.
type failure struct {
	text, detail string
	panicked     bool
	retry        bool // another attempt may do better
}

// failureOf asks an error of a handler what it says. The error's methods are the handler's: no lock is held, since they may
// call the engine, and where one of them panics, as that of a nil pointer does, the handler has panicked.
func failureOf(err error) (f *failure) {
	defer func() {
		if v := recover(); v != nil {
			f = failureOf(&PanicError{Value: v, Stack: debug.Stack()})
		}
	}()
	f = &failure{text: clip(err.Error(), 1024), retry: Retryable(err)}
	var p *PanicError
	if errors.As(err, &p) {
		f.detail = clip(fmt.Sprintf("panic: %v\n\n%s", p.Value, p.Stack), 8192)
		f.panicked = true
	}
	return f
}

// finish takes in how an attempt ended; failed is nil if it did not fail. The lock is held.
func (l *Local) finish(e *entry, result []byte, failed *failure) {
	delete(l.running, e)
	e.cancel, e.task = nil, nil
	if failed == nil {
		l.end(e, Succeeded, "", "", result)
		return
	}
	text, detail := failed.text, failed.detail
	if failed.panicked {
		l.counts.Panics++
	}
	now := l.now()
	switch retry := !e.cancelling && failed.retry && e.attempt < e.attempts; {
	case e.cancelling:
		l.end(e, Cancelled, ErrCancelled.Error(), detail, nil)
	case retry && l.ctx.Err() == nil:
		policy, _ := l.mux.Policy(e.kind)
		at := after(now, policy.Delay(e.attempt))
		if !e.deadline.IsZero() && at-now > time.Until(e.deadline) {
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
		l.await(e, now)
		l.change(e)
	default:
		l.end(e, Failed, text, detail, nil)
	}
}

// clip returns at most the first n bytes of s, whole characters if it is UTF-8, and does not keep the rest in memory, nor
// what s is a part of.
func clip(s string, n int) string {
	if len(s) <= n {
		return strings.Clone(s)
	}
	for range utf8.UTFMax - 1 {
		if n > 0 && !utf8.RuneStart(s[n]) {
			n--
		}
	}
	return strings.Clone(s[:n])
}

// end makes a job final that is in no heap any more. The lock is held.
func (l *Local) end(e *entry, s State, text, detail string, result []byte) {
	now := l.now()
	l.waited(e)
	l.bytes -= e.bytes()
	payload := len(e.payload)
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
	e.rank, e.next = after(now, keep), e.ended.Add(keep)
	l.bytes += e.bytes()
	l.keep(e)
	l.ready.end(e.client, payload)
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
		l.forget(l.first(e))
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
	if e.later != nil {
		e.later.Stop()
		e.later = nil
	}
	if e.changed != nil {
		close(e.changed)
		e.changed = nil
	}
}

// reportEvery is how long those who watch are not told of a job's progress again after they were. A handler may report each of a million
// rows, and all who watch would be as busy with that as it is.
const reportEvery = 200 * time.Millisecond

// tellSoon tells those who watch of progress, or of the latest there is when it is time.
func (l *Local) tellSoon(e *entry) {
	if e.changed == nil || e.later != nil {
		return
	}
	now := l.now()
	if wait := e.quiet - now; wait > 0 {
		var later *time.Timer
		later = time.AfterFunc(wait, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			if e.later == later { // else they have been told meanwhile
				e.quiet = l.now() + reportEvery
				l.tell(e)
			}
		})
		e.later = later
		return
	}
	e.quiet = now + reportEvery
	l.tell(e)
}
