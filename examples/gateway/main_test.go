package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
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
	io.WriteString(keys, "slow b\nfail c\nok c\nkill c\nok c\ndrain a\nsteal a\nkill z\nhelp\nquit\n")
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, want := range []string{"gateway on http://", `cannot "steal"`, `no replica "z"`, `cannot "help"`} {
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
	for _, n := range []int{-1, 99_999_999} {
		if err := checkClients(n); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("-clients is %d; give 0 to ", n)) {
			t.Errorf("%d: %v", n, err)
		}
	}
	if err := run("127.0.0.1:0", -1, strings.NewReader(""), io.Discard); err == nil || !strings.Contains(err.Error(), "-clients is -1") {
		t.Error(err)
	}
}

// Where there is no replica to ask, the answer says when to come back.
func TestNoReplica(t *testing.T) {
	g, err := newGateway()
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	if err := g.set.Update(nil); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	g.handler.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("%d, %v", w.Code, w.Header())
	}
}

// A client that says that it has no more to say may still wait for its answer: that no replica gave one must not look
// like one that is empty.
func TestNoAnswerIsNoSuccess(t *testing.T) {
	g, err := newGateway()
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	for _, r := range g.replicas {
		r.set(slow)
	}
	srv := httptest.NewServer(g.handler)
	defer srv.Close()
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET /items HTTP/1.1\r\nHost: gateway\r\n\r\n")
	c.(*net.TCPConn).CloseWrite()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return // nothing is no success either
	}
	resp.Body.Close()
	if resp.StatusCode < 500 {
		t.Errorf("%s, %d bytes", resp.Status, resp.ContentLength)
	}
}
