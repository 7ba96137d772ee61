// Command reports is a page with a button that starts a CPU-heavy report. The page shows how far the report has come,
// can cancel it, and plots beside it how long a cheap request takes meanwhile. A switch runs the reports without a
// pool, to see the difference.
//
//	go run ./examples/reports
//
// and open the address that it prints. Start some reports, then do the same with the switch off.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "where to listen")
	work := flag.Duration("work", 5*time.Second, "about how long a report computes on an idle machine")
	overcommit := flag.Bool("overcommit", false, "use every core, see pool.Overcommit")
	flag.Parse()
	if flag.NArg() > 0 {
		log.Fatalf("%q is no flag; -h lists those there are", flag.Arg(0))
	}

	a, err := newApp(*work, *overcommit)
	if err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("open http://%s\n", l.Addr())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	s := &http.Server{Handler: a, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second}
	go func() {
		<-ctx.Done()
		a.close()
		s.Close()
	}()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
}
