// Command gateway is a small API gateway in front of three replicas of a backend,
// which it starts itself. It shows what middleware/outbound does: balance,
// ejection, retry and drain. Kill or slow a replica and watch the table.
//
//	go run ./examples/gateway          type "kill b", "fail b", "slow b", "drain b" or "ok b"; "quit" ends it
//	go run ./examples/gateway -demo    does all of that by itself, and exits 0 only if it worked
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spillgate/spillgate/middleware/health"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "address of the gateway")
	demo := flag.Bool("demo", false, "run a script of faults and exit")
	clients := flag.Int("clients", 4, "clients that send requests without a pause, at most 1000; 0 leaves it to you")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "gateway: %q is no flag; -h lists those there are\n", flag.Arg(0))
		os.Exit(2)
	}
	if *demo {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if err := runDemo(ctx, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "gateway:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(*addr, *clients, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "gateway:", err)
		os.Exit(1)
	}
}

// mostClients is how many there is room for beside the gateway and its replicas, all in one process.
const mostClients = 1000

func checkClients(n int) error {
	if n < 0 || n > mostClients {
		return fmt.Errorf("-clients is %d; give 0 to %d", n, mostClients)
	}
	return nil
}

// run serves until the input ends or says quit, or a signal comes.
func run(addr string, clients int, in io.Reader, out io.Writer) error {
	if err := checkClients(clients); err != nil {
		return err
	}
	ctx, quit := context.WithCancel(context.Background())
	defer quit()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	g, err := newGateway()
	if err != nil {
		return errors.Join(err, l.Close())
	}
	defer g.close()
	fmt.Fprintf(out, "gateway on http://%s/; try: kill b, fail b, slow b, drain b, ok b, quit\n", l.Addr())
	load := startLoad("http://"+l.Addr().String(), clients)
	defer load.stop()

	go func() {
		defer quit()
		lines := bufio.NewScanner(in)
		for lines.Scan() {
			if strings.TrimSpace(lines.Text()) == "quit" {
				return
			}
			if err := g.command(ctx, lines.Text()); err != nil {
				fmt.Fprintln(out, err)
			}
		}
	}()
	go func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				g.table(out, load)
			}
		}
	}()
	// Time for its own clients to end, which have nobody else to turn to.
	h := health.New(health.WithDrainWait(500 * time.Millisecond))
	go func() {
		<-h.Draining()
		load.stop()
	}()
	return h.Serve(ctx, l, &http.Server{Handler: g.handler, ReadHeaderTimeout: 10 * time.Second})
}

// command carries out one line of input: what, and to which replica.
func (g *gateway) command(ctx context.Context, line string) error {
	what, name, _ := strings.Cut(strings.TrimSpace(line), " ")
	switch what {
	case "":
		return nil
	case "kill", "fail", "slow", "drain", "ok":
	default:
		return fmt.Errorf("cannot %q; give kill, fail, slow, drain or ok and a replica, or quit", what)
	}
	for _, r := range g.replicas {
		if r.name != strings.TrimSpace(name) {
			continue
		}
		switch what {
		case "kill":
			r.kill()
		case "fail":
			r.set(failing)
		case "slow":
			r.set(slow)
		case "drain":
			go r.drain(ctx)
		case "ok":
			return r.ok()
		}
		return nil
	}
	return fmt.Errorf("no replica %q; give a, b or c", name)
}

// table prints what the gateway knows of its replicas.
func (g *gateway) table(out io.Writer, load *load) {
	stats, s := g.set.Stats(), g.transport.Stats()
	var b strings.Builder
	fmt.Fprintf(&b, "%-8s %9s %9s %9s %9s  %s\n", "replica", "requests", "failures", "in flight", "breaker", "service")
	for i, e := range stats.Endpoints {
		state := "in service"
		switch {
		case stats.Panic:
			state = "in service, ejection suspended"
		case e.Down:
			state = "down by its probe"
		case e.Ejected:
			state = "ejected"
		case e.Share < 1:
			state = fmt.Sprintf("slow start, %.0f %%", 100*e.Share)
		case e.Breaker.Ramp < 1:
			state = fmt.Sprintf("coming back, %.0f %%", 100*e.Breaker.Ramp)
		}
		fmt.Fprintf(&b, "%-8s %9d %9d %9d %9s  %s\n", g.replicas[i].name, e.Requests, e.Failures, e.InFlight, e.Breaker.State, state)
	}
	fmt.Fprintf(&b, "clients: %d answers, %d errors; %d retries\n\n", load.good.Load(), load.bad.Load(), s.Retries)
	io.WriteString(out, b.String())
}
