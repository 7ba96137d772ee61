// Command fairness measures what CPU-heavy requests do to cheap ones: without protection, with one adaptive limit for
// both, with a pool, and with a pool that overcommits.
//
//	go run ./examples/fairness
//
// For each mode it starts itself again as a server on the loopback interface, and generates the load itself: 32 clients
// ask for 50 ms of computing over and over (-clients, -work). Beside them, one client asks for a small answer 300 times
// a second at random moments, whether or not the earlier answers have come (an open loop: a slow server is not asked
// less). It prints how long the cheap answers took, how many heavy ones there were, and how many cores the server and
// the load itself used. A client that is refused asks again after the time that its request would have computed. A run
// takes the number of modes times -d, plus a quarter for warming up, and that for each of the -rounds. The modes take
// turns, so that a machine that is slow for a while is slow for all of them.
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
)

// modes are what is compared; the server and the table know them by name.
var modes = []string{"idle", "unprotected", "limit", "pool", "overcommit", "overcommit-nice"}

// neighbour is no mode of a server but the other process of -noise.
const neighbour = "neighbour"

func main() {
	log.SetFlags(0)
	serve := flag.String("serve", "", "be the server in this `mode` (used by the program itself)")
	blocks := flag.Int("blocks", 0, "how many KiB a heavy request hashes (used by the program itself)")
	clients := flag.Int("clients", 32, "heavy clients")
	rate := flag.Float64("rate", 300, "cheap requests a second")
	work := flag.Duration("work", 50*time.Millisecond, "computing in a heavy request")
	d := flag.Duration("d", 4*time.Second, "how long to measure each mode, at most 1 min")
	noise := flag.Bool("noise", false, "force a garbage collection 20 times a second, beside another process that computes on one core")
	rounds := flag.Int("rounds", 1, "how many times to measure each mode")
	which := flag.String("modes", strings.Join(modes, ","), "what to measure")
	flag.Parse()
	if flag.NArg() > 0 {
		log.Fatalf("%q is no flag; -h lists those there are", flag.Arg(0))
	}
	if *serve != "" {
		if err := server(*serve, *blocks, *noise); err != nil {
			log.Fatal(err)
		}
		return
	}
	l := load{clients: *clients, rate: *rate, d: min(*d, time.Minute), noise: *noise, rounds: *rounds, work: *work}
	chosen := strings.Split(*which, ",")
	if err := check(l, *work, chosen); err != nil {
		log.Fatal("fairness: ", err)
	}
	if err := table(os.Stdout, l, *work, chosen); err != nil {
		log.Fatal("fairness: ", err)
	}
}

// check returns what is wrong with the flags.
func check(l load, work time.Duration, which []string) error {
	switch {
	case l.clients < 0 || l.clients > 1000:
		return fmt.Errorf("-clients is %d; give 0 to 1000", l.clients)
	case !(l.rate > 0 && l.rate <= 100_000):
		return fmt.Errorf("-rate is %v; give more than 0 requests a second, and at most 100000", l.rate)
	case work <= 0:
		return fmt.Errorf("-work is %v; give more than 0", work)
	case l.d <= 0:
		return fmt.Errorf("-d is %v; give more than 0", l.d)
	case l.rounds < 1:
		return fmt.Errorf("-rounds is %d; give at least 1", l.rounds)
	}
	for i, m := range which {
		if !slices.Contains(modes, m) {
			return fmt.Errorf("-modes: there is no %q; give some of %s", m, strings.Join(modes, ","))
		}
		if slices.Contains(which[:i], m) {
			return fmt.Errorf("-modes: %q is given twice; -rounds says how many times each is measured", m)
		}
	}
	return nil
}

// server serves /cheap and /heavy in one mode until its standard input ends.
func server(mode string, blocks int, noise bool) error {
	if mode == neighbour {
		go func() {
			for {
				compute(context.Background(), 1000)
			}
		}()
		fmt.Println("computing")
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	}
	if noise {
		tick := time.NewTicker(time.Second / 20)
		defer tick.Stop()
		go func() {
			for range tick.C {
				runtime.GC()
			}
		}()
	}
	heavy := func(ctx context.Context) error { return compute(ctx, blocks) }
	do := heavy
	if mode != "idle" && mode != "unprotected" && mode != "limit" {
		p := pool.New()
		var opts []pool.OvercommitOption
		switch mode {
		case "pool":
		case "overcommit-nice":
			opts = append(opts, pool.WithNice(10))
			fallthrough
		case "overcommit":
			x, err := pool.Overcommit(p, opts...)
			if err != nil {
				return err
			}
			defer x.Close()
		default:
			return fmt.Errorf("no mode %q", mode)
		}
		do = func(ctx context.Context) error { return p.Do(ctx, heavy, pool.WithKind("heavy")) }
		if mode == "overcommit-nice" { // niced threads run what is submitted
			do = func(ctx context.Context) error {
				_, err := pool.Submit(ctx, p, func(ctx context.Context) (struct{}, error) { return struct{}{}, heavy(ctx) }).Wait(ctx)
				return err
			}
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /cheap", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"ok":true}`)
	})
	mux.HandleFunc("GET /heavy", func(w http.ResponseWriter, r *http.Request) {
		if err := do(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	s := &http.Server{Handler: mux}
	if mode == "limit" {
		s.Handler = middleware.Concurrency(limiter.NewAdaptive()).Handler(mux)
	}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		s.Close()
	}()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// compute hashes n blocks of 1 KiB, in calls short enough for the scheduler to step in.
func compute(ctx context.Context, n int) error {
	var b [1024]byte
	for i := range n {
		sum := sha256.Sum256(b[:])
		copy(b[:], sum[:])
		if i%512 == 0 {
			if err := pool.Checkpoint(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// calibrate returns how many blocks take d on this machine while it is idle.
func calibrate(d time.Duration) int {
	best := time.Duration(1 << 62)
	const n = 1000 // less than a millisecond: on a machine that is not idle some of them have the core to themselves
	for range 100 {
		began := time.Now()
		compute(context.Background(), n)
		best = min(best, time.Since(began))
	}
	return int(int64(n) * int64(d) / int64(best))
}

// load is what a server is given to do.
type load struct {
	clients int
	rate    float64
	d       time.Duration
	noise   bool
	rounds  int
	work    time.Duration
}

// result is what came of it.
type result struct {
	cheap  []time.Duration // sorted
	failed int64
	heavy  float64 // a second
	server float64 // cores that the server used on average; 0 is not known
	load   float64 // cores that this process used
}

// plus adds up two rounds.
func (r result) plus(o result) result {
	return result{append(r.cheap, o.cheap...), r.failed + o.failed, r.heavy + o.heavy, r.server + o.server, r.load + o.load}
}

func (r result) quantile(q float64) time.Duration {
	if len(r.cheap) == 0 {
		return 0
	}
	return r.cheap[min(int(q*float64(len(r.cheap))), len(r.cheap)-1)]
}

// table measures the modes and prints a line for each.
func table(out io.Writer, l load, work time.Duration, which []string) error {
	blocks := calibrate(work)
	fmt.Fprintf(out, "%d clients of %v of computing, %.0f cheap requests a second, %d cores, %v each\n",
		l.clients, work, l.rate, runtime.GOMAXPROCS(0), l.d)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "mode\tcheap p50\tp99\tmax\tanswers\tfailed\theavy/s\tserver\tload\t")
	sums := make(map[string]result)
	for range l.rounds {
		for _, mode := range which {
			r, err := measure(mode, blocks, l)
			if err != nil {
				return fmt.Errorf("%s: %w", mode, err)
			}
			sums[mode] = sums[mode].plus(r)
		}
	}
	for _, mode := range which {
		r, n := sums[mode], float64(l.rounds)
		slices.Sort(r.cheap)
		ms := func(d time.Duration) string { return strconv.FormatFloat(d.Seconds()*1000, 'f', 2, 64) + " ms" }
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%.1f\t%.2f\t%.2f\t\n", mode, ms(r.quantile(0.5)), ms(r.quantile(0.99)), ms(r.quantile(1)),
			len(r.cheap), r.failed, r.heavy/n, r.server/n, r.load/n)
	}
	return w.Flush()
}

// measure runs one server under load.
func measure(mode string, blocks int, l load) (result, error) {
	address, pid, stop, err := child(mode, blocks, l.noise)
	if err != nil {
		return result{}, err
	}
	defer stop()
	if l.noise {
		_, _, stop, err := child(neighbour, 0, false)
		if err != nil {
			return result{}, err
		}
		defer stop()
	}
	// The load must not wait for the server that it measures, where that is allowed.
	normal := ownPriority()
	setOwnPriority(normal - 10)
	defer setOwnPriority(normal)
	if mode == "idle" {
		l.clients = 0
	}
	return l.run("http://"+address, pid)
}

// child starts this program as a server and returns the line that it says first.
func child(mode string, blocks int, noise bool) (says string, pid int, stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return "", 0, nil, err
	}
	cmd := exec.Command(self, "-serve", mode, "-blocks", strconv.Itoa(blocks), "-noise="+strconv.FormatBool(noise))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", 0, nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return "", 0, nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", 0, nil, err
	}
	stop = func() {
		in.Close()
		cmd.Process.Kill() // its own end is not worth waiting for under load
		cmd.Wait()
	}
	says, err = bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		stop()
		return "", 0, nil, err
	}
	return strings.TrimSpace(says), cmd.Process.Pid, stop, nil
}

// run loads the server and returns what it answered after a quarter of the time for warming up.
func (l load) run(url string, pid int) (result, error) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1000, MaxConnsPerHost: 0}}
	defer client.CloseIdleConnections()
	warm := l.d / 4
	ctx, cancel := context.WithTimeout(context.Background(), warm+l.d)
	defer cancel()
	began := time.Now()
	get := func(ctx context.Context, path string) bool {
		req, err := http.NewRequestWithContext(ctx, "GET", url+path, nil)
		if err != nil {
			return false
		}
		resp, err := client.Do(req)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return err == nil && resp.StatusCode == http.StatusOK
	}
	var r result
	var heavy atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		cores := func(pid int, before time.Duration) float64 { return (cpuTime(pid) - before).Seconds() / l.d.Seconds() }
		select {
		case <-time.After(warm):
		case <-ctx.Done():
		}
		server, own := cpuTime(pid), cpuTime(os.Getpid())
		<-ctx.Done()
		r.server, r.load = cores(pid, server), cores(os.Getpid(), own)
	})
	for range l.clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				if !get(ctx, "/heavy") {
					select {
					case <-time.After(l.work):
					case <-ctx.Done():
					}
				} else if time.Since(began) > warm {
					heavy.Add(1)
				}
			}
		})
	}
	var mu sync.Mutex
	var failed atomic.Int64
	for due := began; ctx.Err() == nil; {
		due = due.Add(time.Duration(rand.ExpFloat64() / l.rate * float64(time.Second)))
		select {
		case <-time.After(time.Until(due)):
		case <-ctx.Done():
			continue
		}
		wg.Go(func() {
			// A request that is still open at the end is waited for, or the slowest would be missing.
			late, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			sent := time.Now()
			ok := get(late, "/cheap")
			took := time.Since(sent)
			if sent.Sub(began) < warm {
				return
			}
			if !ok {
				failed.Add(1)
				return
			}
			mu.Lock()
			r.cheap = append(r.cheap, took)
			mu.Unlock()
		})
	}
	wg.Wait()
	slices.Sort(r.cheap)
	r.failed = failed.Load()
	r.heavy = float64(heavy.Load()) / l.d.Seconds()
	return r, nil
}
