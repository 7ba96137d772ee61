//go:build unix

package redisstore_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// shared is a server for all tests that do it no harm, each with a prefix of its own.
var shared *server

func TestMain(m *testing.M) {
	if os.Getenv(processOf) != "" {
		process()
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
		dir, err := os.MkdirTemp("", "redisstore")
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
	addr string
	cmd  *exec.Cmd
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
		var s *server
		if s, err = startAt(dir, at, args...); err == nil {
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

func startAt(dir, addr string, args ...string) (*server, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	s := &server{addr: addr, cmd: exec.Command("redis-server", append([]string{
		"--bind", "127.0.0.1", "--port", port, "--dir", dir, "--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"}, args...)...)}
	s.cmd.SysProcAttr = diesWithParent()
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	said := bufio.NewReader(out)
	var log strings.Builder
	for {
		line, err := said.ReadString('\n')
		log.WriteString(line)
		if err != nil {
			s.kill()
			return nil, fmt.Errorf("redis-server ended: %w\n%s", err, log.String())
		}
		if strings.Contains(line, "Ready to accept connections") {
			break
		}
	}
	go io.Copy(io.Discard, said)
	return s, nil
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

// client returns a client as the documentation asks for.
func (s *server) client(t testing.TB) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: s.addr, ContextTimeoutEnabled: true, MaxRetries: -1, DialerRetries: 1, ReadTimeout: 30 * time.Second})
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
