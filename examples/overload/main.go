// Command overload shows what an overload does to a server, and what it does to the same server behind middleware.Wrap.
//
//	go run ./examples/overload
//
// It measures how much the server can do, then drives an unprotected and a wrapped one with the same load: rising to
// ten times the capacity, then back to 0.9 times. Both are separate processes on the loopback interface. The load is an
// open loop: requests are sent at random moments whether or not earlier ones were answered, over connections that are
// kept alive, and latency counts from the moment at which a request was due. A client gives up after a second.
//
// It ends with a table and a chart (-svg), takes less than two minutes (-short: about one), and exits with 0 only if
// the wrapped server held: see heldShare.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

func main() {
	log.SetFlags(0)
	var a serverArgs
	a.define(flag.CommandLine)
	which := flag.String("profile", "cpu,io,mixed", "what the server does: "+describe())
	procs := flag.Int("procs", 1, "GOMAXPROCS of the servers; 0 is all cores, which they then share with the client")
	short := flag.Bool("short", false, "fewer and shorter steps, whatever -d says")
	svg := flag.String("svg", "overload.svg", "`file` to draw the chart to; empty draws none")
	d := flag.Duration("d", 2500*time.Millisecond, "how long a step takes, at most 10 s")
	flag.Parse()
	if flag.NArg() > 0 {
		log.Fatalf("%q is no flag; -h lists those there are", flag.Arg(0))
	}
	if a.profile != "" {
		if err := serve(a); err != nil {
			log.Fatal(err)
		}
		return
	}
	if *d <= 0 {
		log.Fatalf("overload: -d is %v; give more than 0", *d)
	}
	if *procs < 0 {
		log.Fatalf("overload: -procs is %d; give 1 or more, or 0 for all cores", *procs)
	}
	if err := writable(*svg); err != nil {
		log.Fatal("overload: -svg: ", err)
	}
	p := newPlan(*procs, *short, *d)
	live := newLive(os.Stderr)
	p.show = live.show
	all, err := runAll(p, strings.Split(*which, ","))
	live.clear()
	if err != nil {
		log.Fatal("overload: ", err)
	}
	if err := finish(os.Stdout, p, all, *svg); err != nil {
		log.Fatal("overload: ", err)
	}
}

func describe() string {
	var s []string
	for _, p := range profiles {
		s = append(s, p.name+" ("+p.what+")")
	}
	return strings.Join(s, ", ")
}

func newPlan(procs int, short bool, d time.Duration) plan {
	if procs < 1 {
		procs = runtime.NumCPU()
	}
	p := plan{
		procs:     procs,
		loads:     []float64{.5, .9, 1.5, 3, 10},
		after:     .9,
		d:         min(d, 10*time.Second),
		calibrate: 1500 * time.Millisecond,
		mostRate:  30_000,
		seed:      uint64(time.Now().UnixNano()),
		show:      func(progress) {},
	}
	if short {
		p.loads, p.d, p.calibrate = []float64{.9, 3, 6}, 1800*time.Millisecond, time.Second
	}
	return p
}

// runAll measures the profiles one after the other.
func runAll(p plan, names []string) ([]outcome, error) {
	var chosen []profile
	for _, n := range names {
		pr, err := profileByName(n)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(chosen, func(c profile) bool { return c.name == n }) {
			return nil, fmt.Errorf("profile %q is given twice", n)
		}
		chosen = append(chosen, pr)
	}
	p.rounds = calibrate(2 * time.Millisecond)
	var all []outcome
	for i, pr := range chosen {
		o, err := p.run(pr, time.Duration(len(chosen)-i)*p.perProfile())
		if err != nil {
			return nil, err
		}
		all = append(all, o)
	}
	return all, nil
}

// finish prints the table and draws the chart. Its error says that the wrapped server did
// not hold, or that there is no chart: the verdict is told all the same.
func finish(out io.Writer, p plan, all []outcome, svg string) error {
	table(out, p, all)
	drawn := draw(out, p, all, svg)
	var broken []string
	for _, o := range all {
		broken = append(broken, o.held()...)
	}
	if len(broken) > 0 {
		return errors.Join(drawn, fmt.Errorf("the wrapped server did not hold:\n\t%s", strings.Join(broken, "\n\t")))
	}
	fmt.Fprintln(out, "The wrapped server held.")
	return drawn
}

// writable says what would keep the chart from being written, before it takes minutes to measure it.
func writable(svg string) error {
	if svg == "" {
		return nil
	}
	f, err := os.OpenFile(svg, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err == nil {
		return errors.Join(f.Close(), os.Remove(svg))
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if f, err = os.OpenFile(svg, os.O_WRONLY, 0); err != nil {
		return err
	}
	return f.Close()
}

func draw(out io.Writer, p plan, all []outcome, svg string) error {
	if svg == "" {
		return nil
	}
	b, err := chart(p, all)
	if err != nil {
		return err
	}
	if err := os.WriteFile(svg, b, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nThe chart is in %s.\n", svg)
	return nil
}
