package pool

import (
	"context"
	"iter"
)

// Stream calls fn for every element of in and yields the results in the order of in, while
// later elements are being worked on. It reads ahead of its consumer by at most twice the pool's
// slots, so that memory is bounded however long in is and however slow the consumer.
//
// The first error, in the order of in, is yielded and ends the stream; it cancels the
// context of the elements that still run. Leaving the loop does the same. In both cases
// Stream returns once they have all returned. Errors are those of [Future.Wait]. in is read on
// the consumer's goroutine. opts apply to every element.
func Stream[A, R any](ctx context.Context, p *Pool, in iter.Seq[A], fn func(context.Context, A) (R, error), opts ...TaskOption) iter.Seq2[R, error] {
	return func(yield func(R, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		next, stop := iter.Pull(in)
		defer stop()
		var ahead []*Future[R]
		defer func() {
			cancel()
			for _, f := range ahead {
				f.Wait(context.WithoutCancel(ctx))
			}
		}()
		more := true
		for {
			for window := 2 * p.Slots(); more && len(ahead) < window; {
				var a A
				if a, more = next(); !more {
					break
				}
				ahead = append(ahead, Submit(ctx, p, func(ctx context.Context) (R, error) { return fn(ctx, a) }, opts...))
			}
			if len(ahead) == 0 {
				return
			}
			r, err := ahead[0].Wait(context.WithoutCancel(ctx))
			ahead = ahead[1:]
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}
