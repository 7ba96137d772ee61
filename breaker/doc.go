// Package breaker stops calling work that fails, and finds out by itself when it works again.
//
// A [Breaker] guards one dependency: a host, a route, a queue. While it is closed, every call passes and its outcome
// is counted over a sliding window. When too many calls fail, are slow, or hang, it opens: it refuses calls at once,
// for a time that grows from one opening to the next and is jittered, so that replicas do not all come back together.
// When that time is over it is half-open: a few calls pass as probes. If they succeed, it closes and lets the traffic
// back in along a ramp. If one fails, or is not reported within its lease, it opens again.
//
//	call, err := b.Allow()
//	if err != nil {
//		return err // errors.Is(err, breaker.ErrOpen); errors.As to *breaker.OpenError tells when to return
//	}
//	resp, err := dependency(ctx)
//	call.Done(outcome, latency)
//
// [Breaker.Do] does the same around a function. A [Group] keeps a breaker for each key in bounded memory.
// [WithShadow] shows what a breaker would do before it does it.
//
// The state machine is [github.com/sony/gobreaker/v2]: it decides when an opening is over, how many probes run at
// once, and what their results mean. This package adds what gobreaker cannot know. Calls to a closed breaker are
// counted in a window without locks, and gobreaker is told of one failure when the window says so. Each probe is on a
// lease, so a probe that never reports cannot keep the breaker half-open for ever. gobreaker's state is mirrored
// behind one atomic pointer, which is all that a call reads while the breaker is closed.
package breaker
