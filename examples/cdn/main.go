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
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
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
	if flag.NArg() > 0 {
		log.Fatalf("%q is no flag; -h lists those there are", flag.Arg(0))
	}

	if *purge != "" {
		if err := purgeAt(*admin, *purge, os.Stdout); err != nil {
			log.Fatal(err)
		}
		return
	}
	target, err := parseOrigin(*origin)
	if err != nil {
		log.Fatal(err)
	}
	if *size < 1<<20 {
		log.Fatalf("-size %d: give at least %d", *size, 1<<20)
	}
	if err := run(*listen, *admin, target, *size); err != nil {
		log.Fatal(err)
	}
}

// run serves until SIGTERM or Ctrl-C; then what is under way may end.
func run(listen, admin string, target *url.URL, size int64) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	defer l.Close()
	al, err := net.Listen("tcp", admin)
	if err != nil {
		return err
	}
	defer al.Close()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	log.Printf("http://%s shows %s; purge and statistics at http://%s", l.Addr(), target.Redacted(), al.Addr())

	public, private := newCDN(target, size)
	servers := []*http.Server{{Handler: public}, {Handler: private}}
	served := make(chan error, len(servers))
	for i, l := range []net.Listener{l, al} {
		servers[i].ReadHeaderTimeout = 10 * time.Second
		go func() { served <- servers[i].Serve(l) }()
	}
	var failed error
	select {
	case <-ctx.Done():
	case failed = <-served:
	}
	stop() // a second signal ends the program at once
	grace, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, s := range servers {
		failed = errors.Join(failed, s.Shutdown(grace))
	}
	return failed
}

func parseOrigin(origin string) (*url.URL, error) {
	u, err := url.Parse(origin)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		origin = origin[strings.LastIndexByte(origin, '@')+1:] // what is before may hold a password
		return nil, fmt.Errorf("-origin %q: give an absolute URL such as https://example.com", origin)
	}
	return u, nil
}

// purgeAt asks the cdn at admin to purge a URL, and prints its answer.
func purgeAt(admin, purge string, out io.Writer) error {
	res, err := http.PostForm("http://"+admin+"/purge", url.Values{"url": {purge}})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(out, res.Body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("purging %s: %s", purge, res.Status)
	}
	return nil
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
	// The operator's browser can reach it, and so could any page in there.
	return c.Handler(proxy), http.NewCrossOriginProtection().Handler(admin)
}
