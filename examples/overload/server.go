package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
)

// profile is a kind of service.
type profile struct {
	name string
	what string
	// optimum is about how many requests it takes under way to reach the capacity.
	optimum int
	// computes says that processors are what it runs out of; then the optimum is that of one.
	computes bool
	// serve does the work of one request.
	serve func(ctx context.Context, s *service) error
}

// The store gives up with the client, as a good driver does. The other two do not look
// whether anybody still waits for their few milliseconds: few handlers do.
var profiles = []profile{
	{"cpu", "2 ms of pure computation that never yields", 4, true,
		func(_ context.Context, s *service) error { s.compute(1); return nil }},
	{"io", "10 ms in a store that serves 8 requests at a time", 32, false,
		func(ctx context.Context, s *service) error { return s.store(ctx, 10*time.Millisecond) }},
	{"mixed", "1 ms of computation, 10 ms of waiting, 1 ms of computation", 24, true,
		func(_ context.Context, s *service) error {
			s.compute(.5)
			time.Sleep(10 * time.Millisecond)
			s.compute(.5)
			return nil
		}},
}

func profileByName(name string) (profile, error) {
	for _, p := range profiles {
		if p.name == name {
			return p, nil
		}
	}
	return profile{}, fmt.Errorf("profile %q: give cpu, io or mixed", name)
}

// service is what the handlers of a server share.
type service struct {
	rounds int           // what takes 2 ms
	slots  chan struct{} // of the store
}

var sink atomic.Uint64

// compute computes for 2 ms times f, in a loop without calls.
func (s *service) compute(f float64) { sink.Add(spin(int(f * float64(s.rounds)))) }

func spin(rounds int) uint64 {
	x := uint64(88172645463325252)
	for range rounds {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	return x
}

// store waits for a slot, first come first served, and keeps it for d; it gives up
// when ctx ends.
func (s *service) store(ctx context.Context, d time.Duration) error {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	time.Sleep(d)
	<-s.slots
	return nil
}

// calibrate returns how many rounds take d on this machine when nothing disturbs them.
func calibrate(d time.Duration) int {
	const n = 1_000_000
	best := time.Duration(1 << 62)
	for range 20 {
		began := time.Now()
		sink.Add(spin(n))
		best = min(best, time.Since(began))
	}
	return int(n * int64(d) / int64(best))
}

// serverArgs are given to the process that is the server.
type serverArgs struct {
	profile string
	wrapped bool
	busy    bool // its processors compute all the time
	rounds  int
}

func (a *serverArgs) define(f *flag.FlagSet) {
	const own = " (used by the program itself)"
	f.StringVar(&a.profile, "serve", "", "be the server of this `profile`"+own)
	f.BoolVar(&a.wrapped, "wrapped", false, "protect it"+own)
	f.BoolVar(&a.busy, "busy", false, "let it compute all the time"+own)
	f.IntVar(&a.rounds, "rounds", 0, "rounds of computing that take 2 ms"+own)
}

func (a serverArgs) flags() []string {
	return []string{"-serve", a.profile, "-wrapped=" + strconv.FormatBool(a.wrapped), "-busy=" + strconv.FormatBool(a.busy), "-rounds", strconv.Itoa(a.rounds)}
}

// serve is the server, until its standard input ends. It prints its address, and then, if it is
// wrapped, what the limiter has found, a few times a second.
func serve(a serverArgs) error {
	p, err := profileByName(a.profile)
	if err != nil {
		return err
	}
	s := &service{rounds: a.rounds, slots: make(chan struct{}, 8)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /work", func(w http.ResponseWriter, r *http.Request) {
		if err := p.serve(r.Context(), s); err != nil {
			http.Error(w, err.Error(), http.StatusGatewayTimeout)
			return
		}
		io.WriteString(w, "done\n")
	})
	mux.HandleFunc("GET /refuse", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "no", http.StatusServiceUnavailable)
	})
	var h http.Handler = mux
	var stack *middleware.Stack
	if a.wrapped {
		stack = middleware.New() // what Wrap does; a Stack can be asked for numbers
		h = stack.Handler(mux)
	}
	all := http.NewServeMux()
	all.Handle("/", h)
	all.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok\n") })
	var computed atomic.Int64
	all.HandleFunc("GET /computed", func(w http.ResponseWriter, r *http.Request) {
		cpu, _ := ownCPU()
		fmt.Fprintf(w, "%d %g\n", computed.Load(), cpu)
	})
	if a.busy {
		for range runtime.GOMAXPROCS(0) {
			go func() {
				for {
					for range 20 {
						s.compute(.05)
						computed.Add(1)
					}
					runtime.Gosched()
				}
			}()
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	hs := &http.Server{Handler: all}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		hs.Close()
	}()
	if stack != nil {
		go func() {
			for out := json.NewEncoder(os.Stdout); ; time.Sleep(200 * time.Millisecond) {
				for _, l := range stack.Stats().Layers {
					if l.Concurrency != nil && out.Encode(l.Concurrency) != nil {
						return
					}
				}
			}
		}()
	}
	if err := hs.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// process is a running server.
type process struct {
	addr  string
	cmd   *exec.Cmd
	in    io.Closer
	state atomic.Pointer[limiter.ConcurrencyStats] // nil where it is not wrapped
}

func start(a serverArgs, procs int) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, a.flags()...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS="+strconv.Itoa(procs))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, in: in}
	out := bufio.NewReader(stdout)
	address, err := out.ReadString('\n')
	if err != nil {
		p.stop()
		return nil, err
	}
	p.addr = strings.TrimSpace(address)
	go func() { // ends with the process
		for dec := json.NewDecoder(out); ; {
			s := new(limiter.ConcurrencyStats)
			if dec.Decode(s) != nil {
				return
			}
			p.state.Store(s)
		}
	}()
	return p, nil
}

func (p *process) stop() {
	p.in.Close()
	p.cmd.Process.Kill() // its own end is not worth waiting for under load
	p.cmd.Wait()
}
