// Command grafana is a server to look at with the dashboard in this folder. It exports everything that Spillgate has,
// and generates its own load, in which every two minutes another thing goes wrong. See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "where to listen; metrics are at /metrics")
	quiet := flag.Bool("quiet", false, "make no load")
	flag.Parse()
	if flag.NArg() > 0 {
		log.Fatalf("%q is no flag; -h lists those there are", flag.Arg(0))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *addr, *quiet, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, addr string, quiet bool, out io.Writer) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer l.Close() // twice, where it was served
	s, err := newSite()
	if err != nil {
		return err
	}
	defer s.close()
	srv := &http.Server{Handler: s, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second}
	if !quiet {
		go s.load(ctx)
	}
	fmt.Fprintf(out, "http://%s/metrics\n", l.Addr())
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return errors.Join(s.stack.Shutdown(last), srv.Shutdown(last))
}
