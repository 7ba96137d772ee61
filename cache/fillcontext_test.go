package cache_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// The context of a fill is the client's as far as a handler can tell, whatever it asks first.
func TestFillContext(t *testing.T) {
	type key struct{}
	left := errors.New("the client left")
	for name, ask := range map[string]func(t *testing.T, ctx context.Context){
		"a value of the client's": func(t *testing.T, ctx context.Context) {
			if ctx.Value(key{}) != "mine" || ctx.Value(1) != nil || ctx.Err() != nil {
				t.Errorf("value %v, %v", ctx.Value(key{}), ctx.Err())
			}
		},
		"Err alone tells that nobody is left": func(t *testing.T, ctx context.Context) {
			time.Sleep(2 * time.Second) // in a synctest bubble
			ctx.Err()                   // the first to ask learns it a moment later
			synctest.Wait()
			if ctx.Err() != context.Canceled {
				t.Errorf("Err is %v after the client left", ctx.Err())
			}
		},
		"Done alone does": func(t *testing.T, ctx context.Context) {
			select {
			case <-ctx.Done():
			case <-time.After(2 * time.Second):
				t.Error("not done a second after the client left")
			}
		},
		"the cause is the client's": func(t *testing.T, ctx context.Context) {
			<-ctx.Done()
			if context.Cause(ctx) != left {
				t.Errorf("cause %v, want %v", context.Cause(ctx), left)
			}
		},
		"a context made from it ends with it": func(t *testing.T, ctx context.Context) {
			inner, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			<-inner.Done()
			if inner.Err() != context.Canceled || context.Cause(inner) != left {
				t.Errorf("%v, cause %v", inner.Err(), context.Cause(inner))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := cache.New(1 << 20).Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { ask(t, r.Context()) }))
				ctx, cancel := context.WithCancelCause(context.WithValue(t.Context(), key{}, "mine"))
				time.AfterFunc(time.Second, func() { cancel(left) })
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil).WithContext(ctx))
				cancel(nil)
			})
		})
	}
}

// The deadline is the client's, too, and what a handler leaves behind sees the end of the run.
func TestFillContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept []context.Context
		h := cache.New(1 << 20).Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/asked" {
				r.Context().Done()
			}
			if r.URL.Path == "/late" {
				time.Sleep(2 * time.Second) // in a synctest bubble
				if err := r.Context().Err(); err != context.DeadlineExceeded {
					t.Errorf("Err after the deadline is %v", err)
				}
			}
			kept = append(kept, r.Context())
		}))
		for _, path := range []string{"/asked", "/not-asked", "/late"} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", path, nil).WithContext(ctx))
			cancel()
		}
		for i, ctx := range kept {
			if ctx.Err() == nil {
				t.Errorf("context %d has no error after its run", i)
			}
			<-ctx.Done()
		}
	})
}
