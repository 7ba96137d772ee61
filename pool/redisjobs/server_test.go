//go:build unix

package redisjobs_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/spillgate/spillgate/pool/internal/remote/remotetest"
	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/redisjobs"
)

// shared is a server for all tests that do it no harm, each with a prefix of its own.
var shared *server

// silent is a log of go-redis that says nothing of servers that are gone, which is what tests are about.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

func TestMain(m *testing.M) {
	redis.SetLogger(silent{})
	redisjobs.ListenIdle(200 * time.Millisecond) // so that it is idle at all
	if os.Getenv(workerOf) != "" {
		workerProcess()
		return
	}
	if _, err := exec.LookPath("redis-server"); err != nil {
		fmt.Println("the command redis-server is missing: install the Debian package redis-server")
		if os.Getenv("CI") != "" {
			os.Exit(1)
		}
		return
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "redisjobs")
		if err != nil {
			fmt.Println(err)
			return 1
		}
		defer os.RemoveAll(dir)
		if shared, err = start(dir, ""); err != nil {
			fmt.Println(err)
			return 1
		}
		defer shared.kill()
		return m.Run()
	}())
}

// server is a process of redis-server.
type server struct {
	addr     string
	dir      string
	args     []string
	sentinel string // the file that configures it, if it is one
	cmd      *exec.Cmd
}

// start starts a server at addr, or on a free port if that is empty, and returns when it answers.
func start(dir, addr string, args ...string) (*server, error) {
	var err error
	for range 5 { // somebody else may take the port meanwhile
		at := addr
		if at == "" {
			if at, err = freePort(); err != nil {
				return nil, err
			}
		}
		s := &server{addr: at, dir: dir, args: args}
		if err = s.run(); err == nil {
			return s, nil
		}
	}
	return nil, err
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// run starts the process, also again after it has ended.
func (s *server) run() error {
	_, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		return err
	}
	args := []string{"--bind", "127.0.0.1", "--port", port, "--dir", s.dir, "--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"}
	ready := "Ready to accept connections"
	if s.sentinel != "" {
		args = []string{s.sentinel, "--sentinel", "--bind", "127.0.0.1", "--port", port}
		ready = "+monitor"
	}
	s.cmd = exec.Command("redis-server", append(args, s.args...)...)
	s.cmd.SysProcAttr = diesWithParent()
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	said := bufio.NewReader(out)
	var log strings.Builder
	for {
		line, err := said.ReadString('\n')
		log.WriteString(line)
		if err != nil {
			s.kill()
			return fmt.Errorf("redis-server ended: %w\n%s", err, log.String())
		}
		if strings.Contains(line, ready) {
			break
		}
	}
	go io.Copy(io.Discard, said)
	return nil
}

func (s *server) kill() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
}

// own starts a server for one test.
func own(t testing.TB, args ...string) *server {
	t.Helper()
	s, err := start(t.TempDir(), "", args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.kill)
	return s
}

// sentinel starts a Sentinel.
func sentinel(t testing.TB, conf string) *server {
	t.Helper()
	addr, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	s := &server{addr: addr, sentinel: conf}
	if err := s.run(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.kill)
	return s
}

// client returns a client of its own.
func (s *server) client(t testing.TB) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: s.addr, ContextTimeoutEnabled: true})
	t.Cleanup(func() { c.Close() })
	return c
}

// cluster starts three servers that share the slots.
func cluster(t testing.TB) *redis.ClusterClient {
	t.Helper()
	ctx := context.Background()
	var addrs []string
	var first *redis.Client
	for i, slots := range [][2]int{{0, 5460}, {5461, 10922}, {10923, 16383}} {
		bus, err := freePort() // the default is ten thousand above, which may be none
		if err != nil {
			t.Fatal(err)
		}
		host, busPort, _ := net.SplitHostPort(bus)
		s := own(t, "--cluster-enabled", "yes", "--cluster-port", busPort)
		c := s.client(t)
		if err := c.ClusterAddSlotsRange(ctx, slots[0], slots[1]).Err(); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = c
		}
		_, port, _ := net.SplitHostPort(s.addr)
		if err := first.Do(ctx, "CLUSTER", "MEET", host, port, busPort).Err(); i > 0 && err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, s.addr)
	}
	for _, addr := range addrs {
		c := redis.NewClient(&redis.Options{Addr: addr})
		until(t, "all slots are served at "+addr, func() bool {
			info, err := c.ClusterInfo(ctx).Result()
			return err == nil && strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:3")
		})
		c.Close()
	}
	c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs, ContextTimeoutEnabled: true})
	t.Cleanup(func() { c.Close() })
	return c
}

var prefixes atomic.Int64

// service is a prefix that no other test has.
func service() redisjobs.Option { return redisjobs.WithPrefix(servicePrefix()) }

func servicePrefix() string { return fmt.Sprintf("test%d", prefixes.Add(1)) }

// engine makes an engine, starts it if it has workers, and closes it when the test ends.
func engine(t testing.TB, c redis.UniversalClient, m *jobs.Mux, opts ...redisjobs.Option) *redisjobs.Engine {
	t.Helper()
	e := redisjobs.New(c, m, opts...)
	if err := e.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, dropped := errors.AsType[*jobs.DroppedError](e.Close()); dropped && !t.Failed() {
			t.Log("jobs were running when the test ended")
		}
	})
	return e
}

// What the tests of all remote engines have.
var (
	until  = remotetest.Until
	final  = remotetest.Final
	seen   = remotetest.Seen
	submit = remotetest.Submit
)
