// Command quickstart is a small server behind all five protections, with endpoints that show
// each of them.
//
//	go run ./examples/quickstart          # start it, and try the commands it prints
//	go run ./examples/quickstart -demo    # let it try them itself
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	c := defaults()
	demo := false
	flag.StringVar(&c.addr, "addr", c.addr, "address to listen on")
	flag.Float64Var(&c.rate, "rate", c.rate, "requests a second that one client may send to /login")
	flag.IntVar(&c.burst, "burst", c.burst, "requests that one client may send to /login at once")
	flag.IntVar(&c.limit, "limit", c.limit, "requests to /db in flight at once, and as many waiting")
	flag.IntVar(&c.slots, "slots", c.slots, "requests to /report that compute at once; 0 is GOMAXPROCS-1")
	flag.DurationVar(&c.open, "open", c.open, "how long the breaker of a failing route stays open at first")
	flag.BoolVar(&demo, "demo", false, "send traffic to the server, print what each layer did, and exit")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "quickstart: %q is no flag; -h lists those there are\n", flag.Arg(0))
		os.Exit(2)
	}

	if err := run(c, demo); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func run(c config, demo bool) error {
	if err := c.check(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	if demo {
		c.addr = "127.0.0.1:0"
	}
	ln, err := net.Listen("tcp", c.addr)
	if err != nil {
		return err
	}
	a := newApp(c)
	alone, err := a.onOneProcessor()
	if err != nil {
		return err
	}
	defer alone()
	// No BaseContext: a request's context must outlive the signal, since those in flight are to end in peace.
	srv := &http.Server{Handler: a.handler, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()

	var failed error
	if demo {
		failed = a.demo(ctx, "http://"+ln.Addr().String(), os.Stdout)
	} else {
		fmt.Print(a.help(ln.Addr().String()))
		select {
		case <-ctx.Done():
			fmt.Println("\nshutting down: requests in flight may end, new ones get 503")
		case err := <-served:
			return err
		}
	}
	stop() // a second signal ends the program at once
	end, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err = errors.Join(a.stack.Shutdown(end), srv.Shutdown(end))
	if e := <-served; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return errors.Join(failed, err)
}
