package cache_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// TestSoak lets many clients of every kind loose on handlers of every kind, and checks that each
// gets its own response, whole, or a broken connection where the handler broke it; and that nothing
// is left behind. What a URL does is a function of its number alone.
func TestSoak(t *testing.T) {
	rounds := 30
	if testing.Short() {
		rounds = 3
	}
	for seed := range rounds {
		synctest.Test(t, func(t *testing.T) {
			const urls = 64
			body := func(n int, user string) string {
				return strings.Repeat(fmt.Sprintf("%d/%s.", n, user), 1+n*n*n%3000)
			}
			user := func(n int, r *http.Request) string {
				if n%4 < 2 { // responses for everybody
					return ""
				}
				return r.Header.Get("Cookie")
			}
			c := cache.New(256<<10, cache.WithMaxObject(16<<10), cache.WithRevalidations(4, 5*time.Second, time.Second),
				cache.WithCollapseWait([]time.Duration{300 * time.Millisecond, 5 * time.Second}[seed%2])) // shorter than some handlers take, and longer
			origin := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n, _ := strconv.Atoi(r.URL.Path[1:])
				b := body(n, user(n, r))
				if n%5 == 0 {
					time.Sleep(time.Duration(rand.IntN(2000)) * time.Millisecond) // in a synctest bubble
				}
				switch n % 4 {
				case 0:
					w.Header().Set("Cache-Control", "max-age=2, stale-while-revalidate=3")
				case 1:
					w.Header().Set("Cache-Control", "max-age=1")
					w.Header().Set("Etag", strconv.Quote(strconv.Itoa(n)))
				case 2:
					w.Header().Set("Cache-Control", []string{"private", "no-store", "max-age=0", ""}[n/4%4])
				case 3:
					w.Header().Set("Cache-Control", "max-age=2")
					w.Header().Set("Vary", "Cookie")
				}
				if n%7 == 3 {
					w.Header().Set("Content-Length", strconv.Itoa(len(b)))
				}
				if n%4 == 1 && r.Header.Get("If-None-Match") != "" {
					w.WriteHeader(http.StatusNotModified)
					return
				}
				for len(b) > 0 {
					piece := b[:min(len(b), 1+rand.IntN(8000))]
					b = b[len(piece):]
					if _, err := io.WriteString(w, piece); err != nil {
						return
					}
					switch {
					case n%6 == 1 && rand.IntN(4) == 0:
						http.NewResponseController(w).Flush()
					case n%11 == 4 && rand.IntN(3) == 0:
						panic(http.ErrAbortHandler)
					case n%9 == 2:
						select {
						case <-time.After(100 * time.Millisecond):
						case <-r.Context().Done():
							return
						}
					}
				}
			})
			h := c.Handler(origin)
			rng := rand.New(rand.NewPCG(uint64(seed), 1))
			var wg sync.WaitGroup
			for client := range 300 {
				n, wait := rng.IntN(urls), time.Duration(rng.IntN(10_000))*time.Millisecond
				kind := rng.IntN(8)
				wg.Go(func() {
					time.Sleep(wait) // in a synctest bubble
					ctx, cancel := context.WithCancel(context.Background())
					defer cancel()
					r := httptest.NewRequest("GET", "http://example.com/"+strconv.Itoa(n), nil).WithContext(ctx)
					r.Header.Set("Cookie", "user="+strconv.Itoa(client))
					w := &pacedWriter{ResponseRecorder: httptest.NewRecorder()}
					gaveUp := false
					switch kind {
					case 0:
						time.AfterFunc(50*time.Millisecond, cancel)
						gaveUp = true
					case 1:
						w.pace = 50 * time.Millisecond
					case 2:
						r.Header.Set("Cache-Control", "no-cache")
					case 3:
						c.Purge(r.URL.String())
					}
					aborted := true
					func() {
						defer func() {
							if v := recover(); v != nil && v != http.ErrAbortHandler {
								panic(v)
							}
						}()
						h.ServeHTTP(w, r)
						aborted = false
					}()
					got, expected := w.Body.String(), body(n, user(n, r))
					switch {
					case gaveUp || aborted:
						if !strings.HasPrefix(expected, got) {
							t.Errorf("URL %d: part of another response: %.60q", n, got)
						}
					case got != expected:
						t.Errorf("URL %d, client %d of kind %d: %d bytes %.40q, want %d bytes %.40q; %v", n, client, kind, len(got), got, len(expected), expected, w.Header())
					}
				})
			}
			wg.Wait()
			time.Sleep(time.Minute) // in a synctest bubble
			synctest.Wait()
			s := c.Stats()
			want(t, "fills", s.Fills, 0)
			want(t, "recording", s.Recording, 0)
			want(t, "within the budget", s.Bytes <= s.MaxBytes, true)
			c.PurgeAll()
			want(t, "ledger", c.Stats().Bytes, 0)
			want(t, "entries", c.Stats().Entries, 0)
		})
		if t.Failed() {
			return
		}
	}
}

// pacedWriter is a client that takes its time: that of the bubble in which TestSoak runs it.
type pacedWriter struct {
	*httptest.ResponseRecorder
	pace time.Duration
}

func (w *pacedWriter) Write(p []byte) (int, error) {
	time.Sleep(w.pace) // in a synctest bubble
	return w.ResponseRecorder.Write(p)
}
