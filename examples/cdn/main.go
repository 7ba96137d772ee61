// Command cdn is a caching reverse proxy to put before a slow site.
//
//	go run ./examples/cdn -origin https://example.com
//	curl -i http://localhost:8080/                     # Cache-Status: cdn; fwd=uri-miss; ...; stored
//	curl -i http://localhost:8080/                     # Cache-Status: cdn; hit; ttl=...
//	go run ./examples/cdn -purge http://localhost:8080/
//
// See README.md for what Cache-Status says.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/signal"
	"time"

	"github.com/spillgate/spillgate/cache"
)

func main() {
	listen := flag.String("listen", "localhost:8080", "address to serve on")
	admin := flag.String("admin", "localhost:8081", "address for purging and statistics; keep it private")
	origin := flag.String("origin", "https://example.com", "site to put the cache in front of")
	size := flag.Int64("size", 256<<20, "bytes of memory for the cache")
	purge := flag.String("purge", "", "purge this URL at the cdn that runs at -admin, and leave")
	flag.Parse()

	if *purge != "" {
		res, err := http.PostForm("http://"+*admin+"/purge", url.Values{"url": {*purge}})
		if err != nil {
			log.Fatal(err)
		}
		defer res.Body.Close()
		io.Copy(os.Stdout, res.Body)
		return
	}
	target, err := url.Parse(*origin)
	if err != nil || target.Host == "" {
		log.Fatalf("-origin %q: give an absolute URL such as https://example.com", *origin)
	}
	if *size < 1<<20 {
		log.Fatalf("-size %d: give at least %d", *size, 1<<20)
	}
	public, private := newCDN(target, *size)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	servers := []*http.Server{{Addr: *listen, Handler: public}, {Addr: *admin, Handler: private}}
	for _, s := range servers {
		s.ReadHeaderTimeout = 10 * time.Second
		go func() {
			if err := s.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
				log.Fatal(err)
			}
		}()
	}
	log.Printf("http://%s shows %s; purge and statistics at http://%s", *listen, target, *admin)
	<-ctx.Done()
	grace, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, s := range servers {
		s.Shutdown(grace)
	}
}

// newCDN returns the handler for the world and the one for the operator.
func newCDN(target *url.URL, size int64) (public, private http.Handler) {
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target) // with the site's own host
		r.SetXForwarded()
	}}
	c := cache.New(size,
		cache.WithName("cdn"),
		cache.WithStaleWhileRevalidate(10*time.Second), // nobody waits for a page that has just expired
		cache.WithStaleIfError(time.Hour),              // and a site that is down still shows its pages
		cache.WithStaleIfUnreachable(time.Hour),
	)
	admin := http.NewServeMux()
	admin.Handle("/purge", c.PurgeHandler(func(*http.Request) bool { return true })) // -admin is private
	admin.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(c.Stats()); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	})
	return c.Handler(proxy), admin
}
