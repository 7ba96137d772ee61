package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// live is the progress line: rewritten in place on a terminal, a line a step elsewhere.
type live struct {
	f        *os.File
	terminal bool
	width    int
	last     string
}

func newLive(f *os.File) *live { return &live{f: f, terminal: isTerminal(f)} }

func (l *live) show(x progress) {
	s := fmt.Sprintf("%-5s %-11s", x.profile, x.server)
	if x.t != nil {
		s += fmt.Sprintf(" %-12s", x.step.name())
	}
	if !l.terminal {
		if s != l.last {
			l.last = s
			fmt.Fprintf(l.f, "%s (%.0f s left)\n", strings.TrimSpace(s), x.left.Seconds())
		}
		return
	}
	if x.t != nil {
		x.t.mu.Lock()
		s += fmt.Sprintf(" %6.0f/s  sent %-6d in time %-5d 503 %-6d too late or lost %-6d", x.step.rate, x.t.sent, x.t.good, len(x.t.refused), x.t.late+x.t.lost)
		x.t.mu.Unlock()
		if x.limit > 0 {
			s += fmt.Sprintf(" limit %-4d", x.limit)
		}
	}
	s += fmt.Sprintf(" %3.0f s left", x.left.Seconds())
	fmt.Fprintf(l.f, "\r%-*s", l.width, s)
	l.width = len(s)
}

func (l *live) clear() {
	if l.terminal {
		fmt.Fprintf(l.f, "\r%*s\r", l.width, "")
	}
}

// table prints what was measured.
func table(out io.Writer, p plan, all []outcome) {
	for i, o := range all {
		if i > 0 {
			fmt.Fprintln(out)
		}
		fmt.Fprintf(out, "%s: %s. GOMAXPROCS %d, capacity %.0f/s", o.profile.name, o.profile.what, p.procs, o.cal.capacity)
		if o.cal.answer > 0 {
			fmt.Fprintf(out, "; an answer takes %.2f ms of a core, a bare 503 of a busy server %.0f us", 1e3*o.cal.answer, 1e6*o.cal.refusal)
		}
		fmt.Fprintln(out)
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(w, "offered\t/s\tserver\tin time/s\tof capacity\tof possible\t503/s\tlate\tlost\tp50\tp99\t503 p99\thealth p99\tlimit\tcores\tothers\tlag p99\t")
		for j := range o.bare {
			row(w, "unprotected", o.cal, o.bare[j])
			row(w, "wrapped", o.cal, o.wrapped[j])
		}
		w.Flush()
	}
	fmt.Fprintf(out, "\nin time: 200 within %v. p50, p99: of all that were not refused, those without an answer after %v among them.\n", inTime, patience)
	fmt.Fprintln(out, "of capacity: of what was offered and what the server does when it refuses nothing and has its cores to itself.")
	fmt.Fprintln(out, "of possible: of what was offered and what the cores could do that other processes and the 503s left, each at the cost of a bare one.")
	fmt.Fprintln(out, "health: a route of the same server that no layer protects, asked for all the while.")
	fmt.Fprintln(out, "cores: what the server used; others: the client and whatever else ran. lag: how late the client sent.")
}

func row(w io.Writer, server string, cal calibration, r result) {
	ms := func(d time.Duration) string {
		if d == 0 {
			return "-"
		}
		return strconv.FormatFloat(d.Seconds()*1000, 'f', 1, 64) + " ms"
	}
	limit, cores, others := "-", "-", "-"
	if r.limit > 0 {
		limit = strconv.Itoa(r.limit)
	}
	if r.cpu >= 0 {
		cores, others = fmt.Sprintf("%.2f", r.cpu), fmt.Sprintf("%.2f", r.others)
	}
	fmt.Fprintf(w, "%s\t%.0f\t%s\t%.0f\t%.2f\t%.2f\t%.0f\t%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n",
		r.step.name(), r.offered(), server, r.good, r.plain(cal.capacity), r.share(), r.refused, r.late, r.lost, ms(r.p50), ms(r.p99), ms(r.no99), ms(r.health99), limit, cores, others, ms(r.lag99))
}
