package cache_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// door is a gate that lets pass what admit returns nil for.
type door struct {
	admit func(r *http.Request, f cache.Fill) error
	next  http.HandlerFunc
	asked atomic.Int64
}

var errShut = errors.New("shut")

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) { d.next(w, r) }

func (d *door) ServeFill(w http.ResponseWriter, r *http.Request, f cache.Fill) {
	d.asked.Add(1)
	if err := d.admit(r, f); err != nil {
		f.Refuse(err)
		w.Header().Set("Refused", r.URL.Path)
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprint(w, "refused "+r.URL.Path)
		return
	}
	d.next(w, f.Request())
}

func named(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "public, max-age=60")
	w.Header().Set("Page", r.URL.Path)
	fmt.Fprint(w, "page "+r.URL.Path)
}

func visit(h http.Handler, target string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", target, nil))
	return w
}

func TestGate(t *testing.T) {
	shut := func(*http.Request, cache.Fill) error { return errShut }
	open := func(*http.Request, cache.Fill) error { return nil }

	t.Run("a refusal reaches the client and is not kept", func(t *testing.T) {
		d := &door{admit: shut, next: named}
		h := cache.New(1 << 20).Handler(d)
		for range 2 {
			if w := visit(h, "/a"); w.Code != 503 || w.Body.String() != "refused /a" {
				t.Errorf("got %d %q", w.Code, w.Body)
			}
		}
		d.admit = open
		if w := visit(h, "/a"); w.Body.String() != "page /a" || w.Header().Get("Refused") != "" {
			t.Errorf("got %d %q, %v", w.Code, w.Body, w.Header())
		}
		d.admit = shut
		if w := visit(h, "/a"); w.Body.String() != "page /a" {
			t.Errorf("a hit was put before the gate: %q", w.Body)
		}
	})
	t.Run("a stale response stands in for a refusal", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := &door{admit: open, next: named}
			h := cache.New(1 << 20).Handler(d)
			visit(h, "/a")
			d.admit = shut
			time.Sleep(61 * time.Second) // in a synctest bubble
			for range 2 {
				if w := visit(h, "/a"); w.Code != 200 || w.Body.String() != "page /a" || w.Header().Get("Refused") != "" {
					t.Errorf("got %d %q, %v", w.Code, w.Body, w.Header())
				}
			}
			time.Sleep(time.Minute) // in a synctest bubble
			if w := visit(h, "/a"); w.Code != 503 {
				t.Errorf("got %d after the window", w.Code)
			}
		})
	})
	t.Run("those who wait come to no gate", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := &door{admit: func(*http.Request, cache.Fill) error { time.Sleep(time.Second); return nil }, next: named} // in a synctest bubble
			h := cache.New(1 << 20).Handler(d)
			for range 50 {
				go func() {
					if w := visit(h, "/a"); w.Body.String() != "page /a" {
						t.Errorf("got %d %q", w.Code, w.Body)
					}
				}()
			}
			time.Sleep(2 * time.Second) // in a synctest bubble
			if n := d.asked.Load(); n != 1 {
				t.Errorf("%d came to the gate, want 1", n)
			}
		})
	})
	t.Run("when the first is refused the others ask for themselves", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var d *door
			d = &door{admit: func(*http.Request, cache.Fill) error {
				if d.asked.Load() > 1 {
					return nil
				}
				time.Sleep(time.Second) // in a synctest bubble
				return errShut
			}, next: named}
			h := cache.New(1 << 20).Handler(d)
			var pages, refused atomic.Int64
			for range 5 {
				go func() {
					switch w := visit(h, "/a"); w.Body.String() {
					case "page /a":
						pages.Add(1)
					case "refused /a":
						refused.Add(1)
					}
				}()
			}
			time.Sleep(2 * time.Second) // in a synctest bubble
			if pages.Load() != 4 || refused.Load() != 1 {
				t.Errorf("%d pages, %d refused; want 4 and 1", pages.Load(), refused.Load())
			}
		})
	})
	t.Run("the wait at a gate ends when nobody is left", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var ended time.Duration
			begun := time.Now()
			d := &door{admit: func(_ *http.Request, f cache.Fill) error {
				<-f.Context().Done()
				ended = time.Since(begun)
				return errShut
			}, next: named}
			h := cache.New(1 << 20).Handler(d)
			for i := range 3 { // the first leaves first
				ctx, cancel := context.WithCancel(t.Context())
				go h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/a", nil).WithContext(ctx))
				synctest.Wait()
				time.AfterFunc(time.Duration(i+1)*time.Second, cancel)
			}
			time.Sleep(time.Minute) // in a synctest bubble
			synctest.Wait()
			if ended != 3*time.Second {
				t.Errorf("it ended after %v, want 3s", ended)
			}
		})
	})
	t.Run("a panic behind it travels on and leaves nothing under way", func(t *testing.T) {
		d := &door{admit: open, next: func(http.ResponseWriter, *http.Request) { panic("boom") }}
		c := cache.New(1 << 20)
		h := c.Handler(d)
		func() {
			defer func() {
				if v := recover(); v != "boom" {
					t.Errorf("recovered %v", v)
				}
			}()
			visit(h, "/a")
		}()
		if n := c.Stats().Fills; n != 0 {
			t.Errorf("%d fills under way", n)
		}
		d.next = named
		if w := visit(h, "/a"); w.Body.String() != "page /a" {
			t.Errorf("got %q", w.Body)
		}
	})
	t.Run("the route is told through the client's request", func(t *testing.T) {
		d := &door{admit: open, next: func(_ http.ResponseWriter, r *http.Request) { r.Pattern = "GET /a" }}
		r := httptest.NewRequest("GET", "/a", nil)
		cache.New(1<<20).Handler(d).ServeHTTP(httptest.NewRecorder(), r)
		if r.Pattern != "GET /a" {
			t.Errorf("pattern %q", r.Pattern)
		}
	})
}

// What is left of a refused fill serves another request; nobody may notice.
func TestGateMixesUpNothing(t *testing.T) {
	var n atomic.Int64
	d := &door{
		admit: func(r *http.Request, f cache.Fill) error {
			switch k := n.Add(1); {
			case k%3 == 0:
				return nil
			case k%7 == 0:
				select { // now the context is more than the client's
				case <-f.Context().Done():
				case <-time.After(time.Microsecond):
				}
			}
			return errShut
		},
		next: named,
	}
	c := cache.New(1 << 20)
	h := c.Handler(d)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 400 {
				path := fmt.Sprintf("/%d", (i*7+g)%40)
				if i%50 == 0 {
					c.PurgeAll()
				}
				ctx, cancel := context.WithCancel(t.Context())
				if i%5 == 0 {
					cancel() // a client that has left gets whatever comes, and takes nothing along
				}
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httptest.NewRequest("GET", path, nil).WithContext(ctx))
				cancel()
				body, refused, of := w.Body.String(), w.Header().Get("Refused"), w.Header().Get("Page")
				switch {
				case body == "page "+path && of == path && refused == "":
				case body == "refused "+path && refused == path && of == "":
				case i%5 == 0 && body == "":
				default:
					t.Errorf("asked for %s: %d %q, refused %q, page %q", path, w.Code, body, refused, of)
				}
			}
		})
	}
	wg.Wait()
	if s := c.Stats(); s.Fills != 0 {
		t.Errorf("%d fills under way at the end", s.Fills)
	}
}
