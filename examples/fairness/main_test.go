package main

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test binary be the server, as the program itself is.
func TestMain(m *testing.M) {
	if len(os.Args) == 6 && os.Args[1] == "-serve" && os.Args[3] == "-blocks" {
		blocks, err := strconv.Atoi(os.Args[4])
		if err == nil {
			err = server(os.Args[2], blocks, false)
		}
		if err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestShortForm holds what is beyond all noise: with the pool the cheap answer that stands
// in the middle comes at least four times sooner than without it. It is about 500 times on
// a quiet machine.
func TestShortForm(t *testing.T) {
	if runtime.GOMAXPROCS(0) < 2 {
		t.Skip("with one core there is none to keep free")
	}
	blocks := calibrate(50 * time.Millisecond)
	l := load{clients: 16, rate: 100, d: time.Second} // real time: the scheduler itself is under test
	median := make(map[string]time.Duration)
	for _, mode := range []string{"unprotected", "pool", "overcommit"} {
		r, err := measure(mode, blocks, l)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.cheap) == 0 || r.heavy == 0 {
			t.Fatalf("%s: %d cheap answers, %.1f heavy a second", mode, len(r.cheap), r.heavy)
		}
		median[mode] = r.quantile(0.5)
		t.Logf("%s: p50 %v, p99 %v, %.1f heavy/s", mode, median[mode], r.quantile(0.99), r.heavy)
	}
	for _, mode := range []string{"pool", "overcommit"} {
		if median[mode]*4 > median["unprotected"] {
			t.Errorf("%s: p50 %v, unprotected %v", mode, median[mode], median["unprotected"])
		}
	}
}

func TestFlagsOutOfRange(t *testing.T) {
	good := load{clients: 1, rate: 1, d: time.Second, rounds: 1}
	if err := check(good, time.Second, modes); err != nil {
		t.Errorf("what is in range: %v", err)
	}
	for name, set := range map[string]func(l *load, work *time.Duration, which *[]string){
		"-clients":             func(l *load, _ *time.Duration, _ *[]string) { l.clients = -1 },
		"-clients is 99999999": func(l *load, _ *time.Duration, _ *[]string) { l.clients = 99_999_999 },
		"-rate":                func(l *load, _ *time.Duration, _ *[]string) { l.rate = 0 },
		"-work":                func(_ *load, work *time.Duration, _ *[]string) { *work = 0 },
		"-d":                   func(l *load, _ *time.Duration, _ *[]string) { l.d = 0 },
		"-rounds":              func(l *load, _ *time.Duration, _ *[]string) { l.rounds = 0 },
		"-modes":               func(_ *load, _ *time.Duration, which *[]string) { *which = []string{"pool", ""} },
		`-modes: "pool"`:       func(_ *load, _ *time.Duration, which *[]string) { *which = []string{"pool", "idle", "pool"} },
	} {
		l, work, which := good, time.Second, modes
		set(&l, &work, &which)
		if err := check(l, work, which); err == nil || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("%s out of range: %v; want an error that begins with the flag", name, err)
		}
	}
}
