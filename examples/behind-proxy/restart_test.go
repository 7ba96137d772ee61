//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var (
	requests  = flag.Int("requests", 3000, "requests of the rolling restart, at least")
	restarts  = flag.Int("restarts", 1, "how often each replica is restarted")
	drainWait = flag.Duration("drain-wait", 2*time.Second, "drain wait of the replicas")
)

// TestMain runs the test binary as a replica when asked to.
func TestMain(m *testing.M) {
	if os.Getenv("BEHIND_PROXY_REPLICA") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// A replica is the example's own main in a process of its own.
type replica struct {
	args []string
	cmd  *exec.Cmd
	out  *bufio.Reader
}

func (r *replica) start(t *testing.T) {
	t.Helper()
	r.cmd = exec.Command(os.Args[0], r.args...)
	r.cmd.Env = append(os.Environ(), "BEHIND_PROXY_REPLICA=1")
	r.cmd.Stderr = os.Stderr
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	pipe, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.out = bufio.NewReader(pipe)
	if line, err := r.out.ReadString('\n'); !strings.HasPrefix(line, "listening on ") {
		t.Fatalf("replica said %q, %v", line, err)
	}
}

// leave sends SIGTERM and waits for the end.
func (r *replica) leave(t *testing.T) {
	t.Helper()
	r.cmd.Process.Signal(syscall.SIGTERM)
	rest, _ := io.ReadAll(r.out)
	if err := r.cmd.Wait(); err != nil || string(rest) != "left\n" {
		t.Errorf("replica left with %v, saying %q", err, rest)
	}
}

// reservePort finds an address, and holds it so that nobody else is given it
// while a replica is away: a socket that is bound and does not listen refuses
// connections, and lets another listen that says SO_REUSEADDR as it does.
func reservePort(t *testing.T) string {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	addr, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", addr.(*syscall.SockaddrInet4).Port)
}

// edit replaces what differs between the file that is shipped and the test, and
// fails if the file does not hold it.
func edit(t *testing.T, file string, changes ...string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := string(b)
	for i := 0; i < len(changes); i += 2 {
		if !strings.Contains(s, changes[i]) {
			t.Fatalf("%s does not hold %q", file, changes[i])
		}
		s = strings.ReplaceAll(s, changes[i], changes[i+1])
	}
	out := filepath.Join(t.TempDir(), filepath.Base(file))
	if err := os.WriteFile(out, []byte(s), 0o644); err != nil {
		t.Fatal(err)
	}
	return out
}

// command finds a proxy, or skips the test; where CI is set it must be there.
func command(t *testing.T, name string) string {
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
	path, err := exec.LookPath(name)
	if err != nil {
		missing := fmt.Sprintf("%s is not installed: the Debian package %s has it, and scripts/needs installs it when root", name, name)
		if os.Getenv("CI") != "" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	return path
}

// startProxy starts a proxy in the foreground, with the socket it listens on as
// its file 3, so that nobody has to wait for it: who connects early waits in the
// line of that socket. That of a proxy which has ended is closed, so that nobody
// waits for that either.
func startProxy(t *testing.T, l net.Listener, env string, name string, args ...string) {
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var said bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env)
	cmd.ExtraFiles = []*os.File{f}
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Handing the file on made the socket block, for all who have it.
	if err := syscall.SetNonblock(int(f.Fd()), true); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		l.Close()
		ended <- err
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		if t.Failed() {
			t.Logf("%s said:\n%s", name, unexpected(said.String()))
		}
	})
}

// unexpected is what a proxy said but for what it says of each request while a
// replica is away.
func unexpected(said string) string {
	var s strings.Builder
	refused := 0
	for line := range strings.Lines(said) {
		if strings.Contains(line, "Connection refused") {
			refused++
			continue
		}
		s.WriteString(line)
	}
	fmt.Fprintf(&s, "and %d times that a connection was refused\n", refused)
	return s.String()
}

// While clients POST without a pause, each of two replicas is restarted behind a
// real proxy. No client may see anything but the answer to its own request.
func TestRollingRestart(t *testing.T) {
	proxies := []struct {
		name  string
		start func(t *testing.T, l net.Listener, a, b string)
		args  []string
	}{
		{"nginx", func(t *testing.T, l net.Listener, a, b string) {
			dir := t.TempDir()
			conf := edit(t, "nginx.conf",
				"127.0.0.1:8080", l.Addr().String(), "127.0.0.1:8081", a, "127.0.0.1:8082", b,
				"keepalive_timeout 5s", "keepalive_timeout 1s", // the drain wait is shorter too
				"http {\n", strings.ReplaceAll("http {\n    client_body_temp_path DIR;\n    proxy_temp_path DIR;\n    fastcgi_temp_path DIR;\n"+
					"    uwsgi_temp_path DIR;\n    scgi_temp_path DIR;\n", "DIR", strconv.Quote(dir)))
			startProxy(t, l, "NGINX=3;", "nginx", "-p", dir, "-c", conf,
				"-e", "stderr", "-g", "daemon off; pid "+strconv.Quote(filepath.Join(dir, "pid"))+";"+asMe())
		}, nil},
		{"haproxy", func(t *testing.T, l net.Listener, a, b string) {
			conf := edit(t, "haproxy.cfg",
				"bind 127.0.0.1:8080", "bind fd@3", "127.0.0.1:8081", a, "127.0.0.1:8082", b)
			startProxy(t, l, "", "haproxy", "-db", "-f", conf)
		}, []string{"-haproxy"}},
	}
	for _, p := range proxies {
		t.Run(p.name, func(t *testing.T) {
			command(t, p.name)
			var replicas []*replica
			for _, name := range []string{"a", "b"} {
				r := &replica{args: append([]string{"-addr", reservePort(t), "-name", name, "-work", "4ms", "-drain-wait", drainWait.String()}, p.args...)}
				r.start(t)
				replicas = append(replicas, r)
				t.Cleanup(func() { r.cmd.Process.Kill() })
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			p.start(t, l, replicas[0].args[1], replicas[1].args[1])
			url := "http://" + l.Addr().String() + "/orders"
			defer l.Close()

			load := startLoad(t, url)
			load.reach(200) // both are in use
			probesAreHidden(t, "http://"+l.Addr().String())
			for round := range *restarts {
				for _, r := range replicas {
					r.leave(t)
					r.start(t)
					// What an orchestrator calls minReadySeconds: HAProxy asks once a
					// second whether the new one is there.
					time.Sleep(2 * time.Second) // real time: a proxy outside the process has its own clock
				}
				if round == *restarts-1 {
					load.reach(int64(*requests))
				}
			}
			load.stop()
			for _, r := range replicas {
				r.leave(t)
			}
			t.Logf("%d POSTs during %d restarts of each replica, %d errors, slowest %v, by replica %v",
				load.sent.Load(), *restarts, load.failed.Load(), time.Duration(load.slowest.Load()), load.by())
			if n := load.failed.Load(); n != 0 {
				t.Errorf("%d client errors; the first: %v", n, load.first.Load())
			}
			if by := load.by(); by["a"] < 100 || by["b"] < 100 {
				t.Errorf("both replicas should have had their part: %v", by)
			}
		})
	}
}

// probesAreHidden asks for the probes as a client may spell them.
func probesAreHidden(t *testing.T, base string) {
	for _, path := range []string{"/livez", "/readyz", "/startupz", "/livez?x", "/%6civez", "/%72%65adyz"} {
		resp, err := http.Get(base + path)
		if err != nil {
			t.Error(err)
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != 404 {
			t.Errorf("a client that asks for %s gets %s", path, resp.Status)
		}
	}
}

func asMe() string {
	if os.Getuid() == 0 {
		return " user root;" // so that the workers may write to the folder of the test
	}
	return ""
}

// load is clients that POST without a pause.
type load struct {
	sent, failed, slowest atomic.Int64
	first                 atomic.Value
	cancel                context.CancelFunc
	clients               sync.WaitGroup

	mu       sync.Mutex
	passed   *sync.Cond
	replicas map[string]int
}

func startLoad(t *testing.T, url string) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel, replicas: map[string]int{}}
	l.passed = sync.NewCond(&l.mu)
	t.Cleanup(l.stop)
	for c := range 6 {
		l.clients.Go(func() {
			client := &http.Client{Transport: &http.Transport{}, Timeout: 20 * time.Second}
			defer client.CloseIdleConnections()
			for n := 0; ctx.Err() == nil; n++ {
				l.post(client, url, fmt.Sprintf("order %d of client %d", n, c))
			}
		})
	}
	return l
}

func (l *load) post(client *http.Client, url, order string) {
	began := time.Now()
	// A reader that hides what it is: net/http must not send it again by itself.
	req, err := http.NewRequest("POST", url, io.MultiReader(strings.NewReader(order)))
	if err != nil {
		panic(err)
	}
	req.ContentLength = int64(len(order))
	resp, err := client.Do(req)
	name := ""
	if err == nil {
		var b []byte
		b, err = io.ReadAll(resp.Body)
		resp.Body.Close()
		if err == nil && (resp.StatusCode != 200 || string(b) != order) {
			err = fmt.Errorf("%s: %.200s", resp.Status, b)
		}
		name = resp.Header.Get("X-Replica")
	}
	if err != nil {
		l.failed.Add(1)
		l.first.CompareAndSwap(nil, fmt.Sprint(err))
	}
	took := int64(time.Since(began))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slowest.Store(max(l.slowest.Load(), took))
	l.replicas[name]++
	l.sent.Add(1)
	l.passed.Broadcast()
}

// reach waits until n requests have been made.
func (l *load) reach(n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.sent.Load() < n {
		l.passed.Wait()
	}
}

func (l *load) stop() {
	l.cancel()
	l.clients.Wait()
}

func (l *load) by() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := map[string]int{}
	for name, n := range l.replicas {
		m[name] = n
	}
	return m
}
