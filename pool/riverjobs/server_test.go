//go:build unix

package riverjobs_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/spillgate/spillgate/pool/internal/remote/remotetest"
	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/riverjobs"
)

// otherSchema is one that databases of tests have besides the usual, and one that needs quotes.
const otherSchema = "Jobs"

// shared is a server for all tests that do it no harm, each with a database of its own.
var shared *server

func TestMain(m *testing.M) {
	if os.Getenv(workerOf) != "" {
		workerProcess()
		return
	}
	bin := binaries()
	if bin == "" {
		fmt.Println("the command postgres is missing: install the Debian package postgresql")
		if os.Getenv("CI") != "" {
			os.Exit(1)
		}
		return
	}
	os.Exit(func() int {
		s, err := newServer(bin)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		shared = s
		defer s.remove()
		return m.Run()
	}())
}

// binaries is the folder of the newest Postgres; Debian does not put it on the PATH.
func binaries() string {
	if p, err := exec.LookPath("postgres"); err == nil {
		return filepath.Dir(p)
	}
	all, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres") // the pattern is right
	version := func(p string) int {
		n, _ := strconv.Atoi(strings.Split(p, "/")[4]) // what is none comes first
		return n
	}
	if len(all) == 0 {
		return ""
	}
	return filepath.Dir(slices.MaxFunc(all, func(a, b string) int { return version(a) - version(b) }))
}

// server is a Postgres with a folder of its own. It does not run as root, who may not.
type server struct {
	bin, dir, port string
	user           *syscall.Credential
	cmd            *exec.Cmd
	databases      atomic.Int64
}

// newServer makes a server, starts it, and prepares a database that others are copied from.
func newServer(bin string) (s *server, err error) {
	s = &server{bin: bin}
	if s.dir, err = os.MkdirTemp("", "riverjobs"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.remove()
		}
	}()
	if os.Geteuid() == 0 {
		nobody, err := user.Lookup("nobody")
		if err != nil {
			return nil, err
		}
		uid, _ := strconv.Atoi(nobody.Uid) // numbers on any unix
		gid, _ := strconv.Atoi(nobody.Gid)
		s.user = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(s.dir, uid, gid); err != nil {
			return nil, err
		}
	}
	if out, err := s.command("initdb", "-D", s.dir+"/data", "-U", "test", "-A", "trust", "-N", "--no-locale", "-E", "UTF8").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	for range 5 { // somebody else may take the port meanwhile
		if s.port, err = freePort(); err != nil {
			return nil, err
		}
		if err = s.start(); err == nil {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	if err := s.exec(ctx, "CREATE DATABASE migrated"); err != nil {
		return nil, err
	}
	pool, err := pgxpool.New(ctx, s.url("migrated"))
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	if err := riverjobs.Migrate(ctx, pool); err != nil {
		return nil, err
	}
	return s, riverjobs.Migrate(ctx, pool, riverjobs.WithSchema(otherSchema))
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

func (s *server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.SysProcAttr = diesWithParent()
	cmd.SysProcAttr.Credential = s.user
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "HOME="+s.dir)
	return cmd
}

// start returns when the server says that it takes connections.
func (s *server) start() error {
	s.cmd = s.command("postgres", "-D", s.dir+"/data", "-h", "127.0.0.1", "-p", s.port, "-k", "", "-c", "fsync=off", "-c", "full_page_writes=off",
		"-c", "max_connections=300", "-c", "shared_buffers=64MB", "-c", "dynamic_shared_memory_type=mmap")
	out, err := s.cmd.StderrPipe()
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
			return fmt.Errorf("postgres ended: %w\n%s", err, log.String())
		}
		if strings.Contains(line, "ready to accept connections") {
			break
		}
	}
	go io.Copy(io.Discard, said)
	return nil
}

// stop ends the server as a restart does: connections are cut, and nothing is lost that was committed.
func (s *server) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGINT); err != nil {
		return err
	}
	return s.cmd.Wait()
}

// kill has all processes of the server end at once.
func (s *server) kill() {
	s.cmd.Process.Signal(syscall.SIGQUIT)
	s.cmd.Wait()
}

func (s *server) remove() {
	if s.cmd != nil && s.cmd.ProcessState == nil && s.cmd.Process != nil {
		s.kill()
	}
	os.RemoveAll(s.dir)
}

func (s *server) url(database string) string {
	return "postgres://test@127.0.0.1:" + s.port + "/" + database + "?sslmode=disable&pool_max_conns=20"
}

func (s *server) exec(ctx context.Context, sql string) error {
	c, err := pgx.Connect(ctx, "postgres://test@127.0.0.1:"+s.port+"/postgres?sslmode=disable")
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	_, err = c.Exec(ctx, sql)
	return err
}

// create makes a database as the template is, and returns its address.
func (s *server) create(template string) (string, error) {
	name := fmt.Sprintf("test%d", s.databases.Add(1))
	return s.url(name), s.exec(context.Background(), "CREATE DATABASE "+name+" TEMPLATE "+template)
}

// database returns the address of a database of this test's that has been migrated to.
func (s *server) database(t testing.TB) string {
	t.Helper()
	url, err := s.create("migrated")
	if err != nil {
		t.Fatal(err)
	}
	return url
}

// connect returns a pool of connections to a database.
func connect(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// engine makes an engine, starts it if it has workers, and closes it when the test ends.
func engine(t testing.TB, pool *pgxpool.Pool, m *jobs.Mux, opts ...riverjobs.Option) *riverjobs.Engine {
	t.Helper()
	e := riverjobs.New(pool, m, append([]riverjobs.Option{riverjobs.WithPollInterval(20 * time.Millisecond)}, opts...)...)
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
