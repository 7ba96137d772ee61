package pool

import (
	"context"
	"errors"
	"iter"

	"github.com/spillgate/spillgate/limiter"
)

// Stream calls fn for every element of in and yields the results in the order of in, while later elements are being
// worked on. It reads ahead of its consumer by at most twice the pool's slots, so that memory is bounded however long
// in is and however slow the consumer.
//
// The first error, in the order of in, is yielded and ends the stream; it cancels the context of the elements that
// still run. Leaving the loop does the same. In both cases Stream returns once all of these elements have returned.
// Errors are those of [Future.Wait]. An element that the queue refused while it was read ahead is not yet an error: it
// is submitted again when its turn comes. in is read on the consumer's goroutine. opts apply to every element.
func Stream[A, R any](ctx context.Context, p *Pool, in iter.Seq[A], fn func(context.Context, A) (R, error), opts ...TaskOption) iter.Seq2[R, error] {
	return func(yield func(R, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		var ahead []*element[A, R]
		defer func() {
			cancel()
			for _, e := range ahead {
				e.wait(ctx)
			}
		}()
		submit := func(e *element[A, R]) {
			e.future = Submit(ctx, p, func(ctx context.Context) (R, error) {
				e.begun = true
				return fn(ctx, e.in)
			}, opts...)
		}
		// deliver yields the result of the element that is next, and reports whether the stream goes on.
		deliver := func() bool {
			e := ahead[0]
			r, err := e.wait(ctx)
			// It may be those read ahead that had the slots or the places in the queue.
			for i := 1; i <= len(ahead) && e.refused(err); i++ {
				if i < len(ahead) {
					if ahead[i].wait(ctx); !ahead[i].begun {
						continue
					}
				}
				submit(e)
				r, err = e.wait(ctx)
			}
			ahead = ahead[1:]
			return yield(r, err) && err == nil
		}
		// Not by iter.Pull: its coroutine ends the program where Overcommit locks or unlocks the thread in between.
		for a := range in {
			e := &element[A, R]{in: a}
			submit(e)
			ahead = append(ahead, e)
			for len(ahead) >= 2*p.Slots() {
				if !deliver() {
					return
				}
			}
		}
		for len(ahead) > 0 {
			if !deliver() {
				return
			}
		}
	}
}

// element is one element of a stream that was read.
type element[A, R any] struct {
	in     A
	future *Future[R]
	begun  bool // fn was called; to be looked at after wait
}

// wait returns the element's result, also when ctx has ended: that ends the element's work.
func (e *element[A, R]) wait(ctx context.Context) (R, error) {
	return e.future.Wait(context.WithoutCancel(ctx))
}

// refused reports whether err says that there was no slot for the element in time.
func (e *element[A, R]) refused(err error) bool {
	return !e.begun && (errors.Is(err, limiter.ErrSaturated) || errors.Is(err, limiter.ErrRateLimited))
}
