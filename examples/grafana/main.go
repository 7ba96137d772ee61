// Command grafana is a server to look at with the dashboard in this folder: it has all that Spillgate exports, and makes its own load, in which every two
// minutes another thing goes wrong. See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "where to listen; metrics are at /metrics")
	quiet := flag.Bool("quiet", false, "make no load")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *addr, *quiet); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, addr string, quiet bool) error {
	s, err := newSite()
	if err != nil {
		return err
	}
	defer s.close()
	srv := &http.Server{Addr: addr, Handler: s, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second}
	if !quiet {
		go s.load(ctx)
	}
	fmt.Printf("http://%s/metrics\n", addr)
	failed := make(chan error, 1)
	go func() { failed <- srv.ListenAndServe() }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return errors.Join(s.stack.Shutdown(last), srv.Shutdown(last))
}
