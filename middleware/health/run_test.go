//go:build unix

package health_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spillgate/spillgate/middleware/health"
)

// TestMain runs the test binary as a server of its own when the signal tests
// ask for it: a signal that kills is not for the process that tests.
func TestMain(m *testing.M) {
	if os.Getenv("HEALTH_TEST_SERVER") == "" {
		// The first Notify starts a goroutine that never ends, which must not
		// happen within a synctest bubble.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGUSR1)
		os.Exit(m.Run())
	}
	wait, _ := time.ParseDuration(os.Getenv("HEALTH_TEST_SERVER"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	ctx, leave := context.WithCancel(context.Background())
	if os.Getenv("HEALTH_TEST_CONTEXT") != "" {
		ctx, leave = signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	}
	h := health.New(health.WithDrainWait(wait))
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/leave":
			leave()
		case "/until-draining":
			<-h.Draining()
		}
		io.WriteString(w, "ok")
	})}
	fmt.Println(l.Addr())
	began := make(chan time.Time, 1)
	go func() {
		<-h.Draining()
		began <- time.Now()
	}()
	err = h.Serve(ctx, l, srv, shutdownFunc(func(context.Context) error {
		fmt.Println("released")
		return nil
	}))
	if d := time.Since(<-began); wait < time.Hour && d < wait/2 {
		fmt.Println("waited for", d)
	}
	fmt.Println("returned", err)
}

type server struct {
	*exec.Cmd
	out  *bufio.Reader
	base string
}

func startServer(t *testing.T, wait time.Duration, env ...string) *server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(append(os.Environ(), "HEALTH_TEST_SERVER="+wait.String()), env...)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &server{Cmd: cmd, out: bufio.NewReader(pipe)}
	addr, err := s.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	s.base = "http://" + strings.TrimSpace(addr)
	// A first answer says that Serve has begun, and with it the signals are caught.
	if got := s.get(t, "/readyz"); got != 200 {
		t.Fatalf("readyz %d", got)
	}
	return s
}

func (s *server) get(t *testing.T, path string) int {
	t.Helper()
	resp, err := http.Get(s.base + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

func TestSignalsDrain(t *testing.T) {
	for _, tc := range []struct {
		name   string
		signal os.Signal
		wait   time.Duration
		env    []string
	}{
		{"SIGTERM", syscall.SIGTERM, 0, nil},
		{"SIGINT skips the wait", os.Interrupt, time.Hour, nil},
		{"SIGTERM that ends the context too waits in full", syscall.SIGTERM, 500 * time.Millisecond, []string{"HEALTH_TEST_CONTEXT=signals"}},
		{"SIGINT that ends the context too skips the wait", os.Interrupt, time.Hour, []string{"HEALTH_TEST_CONTEXT=signals"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := startServer(t, tc.wait, tc.env...)
			s.Process.Signal(tc.signal)
			rest, _ := io.ReadAll(s.out)
			if err := s.Wait(); err != nil || string(rest) != "released\nreturned <nil>\n" {
				t.Errorf("%v, printed %q", err, rest)
			}
		})
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	s := startServer(t, time.Hour)
	s.Process.Signal(syscall.SIGTERM)
	if got := s.get(t, "/until-draining"); got != 200 {
		t.Errorf("draining server answered %d", got)
	}
	if got := s.get(t, "/readyz"); got != 503 {
		t.Errorf("readyz %d", got)
	}
	s.Process.Signal(syscall.SIGTERM)
	s.Wait()
	if ws := s.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGTERM {
		t.Errorf("ended with %v, want killed by SIGTERM", ws)
	}
}

// A process that leaves because its context has ended can be stopped like one
// that leaves because of a signal.
func TestSignalEndsADrainOfTheContext(t *testing.T) {
	s := startServer(t, time.Hour)
	for _, path := range []string{"/leave", "/until-draining"} {
		if got := s.get(t, path); got != 200 {
			t.Errorf("%s answered %d", path, got)
		}
	}
	s.Process.Signal(syscall.SIGTERM)
	s.Wait()
	if ws := s.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGTERM {
		t.Errorf("ended with %v, want killed by SIGTERM", ws)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	h := health.New(health.WithDrainWait(0), health.WithCheck(check("x", pass)))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var released bool
	returned := make(chan error, 1)
	go func() {
		returned <- h.Serve(ctx, l, &http.Server{Handler: http.NotFoundHandler()}, shutdownFunc(func(ctx context.Context) error {
			released = ctx.Err() == nil // the end of ctx asks to leave, not to hurry
			return nil
		}))
	}()
	resp, err := http.Get("http://" + l.Addr().String() + "/livez")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	cancel()
	if err := <-returned; err != nil || !released {
		t.Errorf("%v, released in time: %v", err, released)
	}
}

// Another process that has the socket is there afterwards only if it was said
// that there is one.
func TestSharedListenerGoesOn(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere closing never ends a shared socket")
	}
	for _, tc := range []struct {
		name   string
		opts   []health.Option
		goesOn bool
	}{
		{"with the option", []health.Option{health.WithSharedListener()}, true},
		{"without", nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			f, err := l.(*net.TCPListener).File() // what the other process has
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			other, err := net.FileListener(f)
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			ctx, leave := context.WithCancel(t.Context())
			leave()
			h := health.New(append(tc.opts, health.WithDrainWait(0))...)
			if err := h.Serve(ctx, l, &http.Server{Handler: http.NotFoundHandler()}); err != nil {
				t.Fatal(err)
			}
			c, err := net.Dial("tcp", l.Addr().String())
			if (err == nil) != tc.goesOn {
				t.Fatalf("connecting afterwards: %v", err)
			}
			if !tc.goesOn {
				return
			}
			defer c.Close()
			taken, err := other.Accept()
			if err != nil {
				t.Fatal(err)
			}
			taken.Close()
		})
	}
}

func TestRunReportsThatItCannotListen(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = health.New().Run(t.Context(), &http.Server{Addr: l.Addr().String()})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.HasPrefix(err.Error(), "health: ") {
		t.Errorf("error %v", err)
	}
}

func TestRunReleasesWhenServingFails(t *testing.T) {
	l := listenPipe()
	l.Close()
	released := false
	err := health.New().Serve(t.Context(), l, &http.Server{}, shutdownFunc(func(context.Context) error {
		released = true
		return nil
	}))
	if !errors.Is(err, net.ErrClosed) || !released {
		t.Errorf("error %v, released %v", err, released)
	}
}
