package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// said collects what several goroutines print.
type said struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestDemo(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var out said
	if err := runDemo(ctx, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{"== balance:", "== ejection: b", "retry: ", "== balance: c", "== drain: a", "== drain: the gateway"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("nothing was said of %q", want)
		}
	}
}

// A demo that cannot see what it waits for must fail, and end.
func TestDemoFailsWhenItSeesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := runDemo(ctx, io.Discard); err == nil {
		t.Error("no error")
	}
}

func TestCommands(t *testing.T) {
	in, keys := io.Pipe()
	var out said
	ended := make(chan error, 1)
	go func() { ended <- run("127.0.0.1:0", 2, in, &out) }()
	io.WriteString(keys, "slow b\nfail c\nok c\nkill c\nok c\ndrain a\nsteal a\nkill z\nquit\n")
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, want := range []string{"gateway on http://", `cannot "steal"`, `no replica "z"`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}

// leaver sends this process a SIGTERM when the first table is printed.
type leaver struct {
	said
	once sync.Once
}

func (l *leaver) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("clients:")) {
		l.once.Do(func() {
			if self, err := os.FindProcess(os.Getpid()); err == nil {
				self.Signal(syscall.SIGTERM)
			}
		})
	}
	return l.said.Write(p)
}

// Its own clients end before the gateway does: what they see of its end is no error of anybody.
func TestClientsLeaveFirst(t *testing.T) {
	in, keys := io.Pipe()
	defer keys.Close()
	var out leaver
	if err := run("127.0.0.1:0", 4, in, &out); err != nil {
		t.Error(err)
	}
	if n := strings.Count(out.String(), "clients:"); n < 2 || n != strings.Count(out.String(), " 0 errors;") {
		t.Errorf("an end with errors, or none:\n%s", out.String())
	}
}

func TestClientsOutOfRange(t *testing.T) {
	if err := run("127.0.0.1:0", -1, strings.NewReader(""), io.Discard); err == nil || !strings.Contains(err.Error(), "-clients is -1") {
		t.Error(err)
	}
}
