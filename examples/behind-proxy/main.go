// Command behind-proxy is a server that can be restarted behind nginx, HAProxy or
// Kubernetes while it is in use, without a client noticing. nginx.conf,
// haproxy.cfg and kubernetes.yaml beside it are the other half; the test restarts
// two of these servers behind the real proxies, under load.
//
//	go build -o bin/ ./examples/behind-proxy # go run does not pass SIGTERM on
//	bin/behind-proxy -addr 127.0.0.1:8081 -name a &
//	bin/behind-proxy -addr 127.0.0.1:8082 -name b &
//	sudo nginx -c "$PWD/examples/behind-proxy/nginx.conf" -g 'daemon off;' # its own files are root's
//
// And in another terminal
//
//	curl -d hello http://127.0.0.1:8080/orders
//	pkill -f 'behind-proxy .*-name a' # it serves on for 15 s (-drain-wait), says that it left, and can be started again
//
// With HAProxy both are started with -haproxy besides, and in place of nginx
//
//	haproxy -f examples/behind-proxy/haproxy.cfg
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spillgate/spillgate/middleware/health"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "behind-proxy:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("behind-proxy", flag.ExitOnError)
	addr := flags.String("addr", "127.0.0.1:8081", "address to listen on")
	name := flags.String("name", "a", "name of this replica, sent as X-Replica")
	wait := flags.Duration("drain-wait", 15*time.Second, "how long to serve on after SIGTERM, while proxies notice")
	haproxy := flags.Bool("haproxy", false, "answer 404 on /readyz while draining, for disable-on-404")
	work := flags.Duration("work", 2*time.Millisecond, "how long a request takes")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q is no flag; -h lists those there are", flags.Arg(0))
	}
	if *wait < 0 {
		return fmt.Errorf("-drain-wait is %v; give 0 or more", *wait)
	}
	if *work < 0 {
		return fmt.Errorf("-work is %v; give 0 or more", *work)
	}

	opts := []health.Option{health.WithDrainWait(*wait)}
	if *haproxy {
		opts = append(opts, health.WithDrainStatus(http.StatusNotFound))
	}
	h := health.New(opts...)

	mux := http.NewServeMux()
	mux.HandleFunc("POST /orders", func(w http.ResponseWriter, r *http.Request) {
		order, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			http.Error(w, "cannot read the order", http.StatusBadRequest)
			return
		}
		time.Sleep(*work)
		w.Header().Set("X-Replica", *name)
		w.Write(order)
	})

	l, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "listening on", l.Addr())
	err = h.Serve(context.Background(), l, &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second})
	fmt.Fprintln(out, "left")
	return err
}
