package remote

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"unicode/utf8"

	"github.com/spillgate/spillgate/pool/jobs"
)

// Run runs a handler on a goroutine of its own, which it may end.
func Run(ctx context.Context, m *jobs.Mux, a jobs.Attempt, payload []byte) (result []byte, err error) {
	err = jobs.ErrGoexit
	done := make(chan struct{})
	go func() {
		defer close(done)
		result, err = m.Run(ctx, a, payload)
	}()
	<-done
	return result, err
}

// Failure is what is kept of the error that an attempt ended with.
type Failure struct {
	Text, Detail string
	Retry        bool // another attempt may do better
	Shutdown     bool // it is what the handler was told to end with
}

// FailureOf asks an error of a handler what it says. The error's methods are the handler's: where one of them panics, as that of a
// nil pointer does, the handler has panicked. clip shortens a text to so many bytes, as the server takes it.
func FailureOf(err error, clip func(s string, n int) string) (f *Failure) {
	defer func() {
		if v := recover(); v != nil {
			f = FailureOf(&jobs.PanicError{Value: v, Stack: debug.Stack()}, clip)
		}
	}()
	f = &Failure{
		Text: clip(err.Error(), 1024), Retry: jobs.Retryable(err),
		Shutdown: errors.Is(err, jobs.ErrShutdown),
	}
	if p, ok := errors.AsType[*jobs.PanicError](err); ok {
		f.Detail = clip(fmt.Sprintf("panic: %v\n\n%s", p.Value, p.Stack), 8192)
	}
	return f
}

// Clip returns at most the first n bytes of s as valid UTF-8.
func Clip(s string, n int) string {
	s = strings.ToValidUTF8(s[:min(len(s), n+utf8.UTFMax)], "\uFFFD")
	if len(s) <= n {
		return s
	}
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
