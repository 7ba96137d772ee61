//go:build unix

package riverjobs_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/riverjobs"
)

// In the processes that tests start as workers these name the database and how many jobs they run at a time.
const (
	workerOf = "RIVERJOBS_DATABASE"
	workersN = "RIVERJOBS_WORKERS"
)

// shortLease is that of workers in tests of their loss: long enough for a process that is not given the processor for a while.
const shortLease = 2 * time.Second

// workerKinds are those of the processes. Each says in its progress which process runs it.
func workerKinds() *jobs.Mux {
	m := jobs.NewMux()
	pid := os.Getpid()
	say := func(ctx context.Context) { jobs.Report(ctx, jobs.Progress{Done: int64(pid), Note: "here"}) }
	jobs.Register(m, "pid", func(context.Context, any) (int, error) { return pid, nil })
	jobs.Register(m, "wait", func(ctx context.Context, _ any) (int, error) {
		say(ctx)
		<-ctx.Done()
		return 0, context.Cause(ctx)
	})
	jobs.Register(m, "die", func(context.Context, any) (int, error) {
		syscall.Kill(pid, syscall.SIGKILL)
		select {}
	})
	// Waits when it is run first, and returns at once when it is run again.
	jobs.Register(m, "second time lucky", func(ctx context.Context, _ any) (int, error) {
		if a, _ := jobs.Current(ctx); a.Number > 1 {
			return pid, nil
		}
		say(ctx)
		<-ctx.Done()
		return 0, context.Cause(ctx)
	})
	return m
}

// workerProcess runs jobs until its standard input ends, and then is shut down.
func workerProcess() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, os.Getenv(workerOf))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	n, _ := strconv.Atoi(os.Getenv(workersN)) // set by the test
	e := riverjobs.New(pool, workerKinds(), riverjobs.WithWorkers(n), riverjobs.WithLease(shortLease), riverjobs.WithPollInterval(20*time.Millisecond))
	if err := e.Start(ctx); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("started")
	io.Copy(io.Discard, os.Stdin)
	e.Close()
}

// process is a worker in a process of its own.
type process struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

func startWorker(t *testing.T, url string, workers int) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(self)}
	p.cmd.SysProcAttr = diesWithParent()
	p.cmd.Env = append(os.Environ(), workerOf+"="+url, workersN+"="+strconv.Itoa(workers))
	p.cmd.Stderr = os.Stderr
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.kill() })
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "started" {
		t.Fatalf("the worker said %q, %v", lines.Text(), lines.Err())
	}
	go io.Copy(io.Discard, out)
	return p
}

func (p *process) pid() int64 { return int64(p.cmd.Process.Pid) }

func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// shutDown ends the process as it ends by itself.
func (p *process) shutDown(t *testing.T) {
	t.Helper()
	p.stdin.Close()
	if err := p.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// A job that was submitted here runs there, and here it is seen and cancelled.
func TestWebAndWorkers(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	web := engine(t, connect(t, url), workerKinds())
	workers := map[int64]*process{}
	for range 2 {
		p := startWorker(t, url, 1)
		workers[p.pid()] = p
	}
	var waiting []jobs.Job
	seenIn := map[int64]bool{}
	for range 2 { // each holds a worker, so that both have one
		j := submit(t, web, "wait", "0", jobs.SubmitOptions{})
		waiting = append(waiting, j)
		j = seen(t, web, j.ID, func(j jobs.Job) bool { return j.Progress.Note != "" })
		if workers[j.Progress.Done] == nil || seenIn[j.Progress.Done] {
			t.Fatalf("%+v; want one process each", j)
		}
		seenIn[j.Progress.Done] = true
	}
	for _, j := range waiting {
		if j, err := web.Cancel(t.Context(), j.ID); err != nil || !j.Cancelling || j.State != jobs.Running {
			t.Errorf("asked: %+v, %v", j, err)
		}
		if end := final(t, web, j.ID); end.State != jobs.Cancelled || end.Attempt != 1 {
			t.Errorf("ended as %+v", end)
		}
	}
	for range 5 {
		end := final(t, web, submit(t, web, "pid", "0", jobs.SubmitOptions{}).ID)
		if pid, err := strconv.ParseInt(string(end.Result), 10, 64); err != nil || workers[pid] == nil {
			t.Errorf("ended as %+v", end)
		}
	}
}

// A worker that is killed takes no job with it. Its kind allows one attempt, and it was none of the job's failures.
func TestWorkerKilled(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	web := engine(t, connect(t, url), workerKinds())
	one := startWorker(t, url, 2)
	j := submit(t, web, "second time lucky", "0", jobs.SubmitOptions{})
	cancelled := submit(t, web, "wait", "0", jobs.SubmitOptions{})
	for _, id := range []string{j.ID, cancelled.ID} {
		seen(t, web, id, func(j jobs.Job) bool { return j.Progress.Done == one.pid() })
	}
	two := startWorker(t, url, 2)
	one.kill()
	if _, err := web.Cancel(t.Context(), cancelled.ID); err != nil {
		t.Error(err)
	}
	if end := final(t, web, j.ID); end.State != jobs.Succeeded || end.Attempt != 2 || end.MaxAttempts != 2 || string(end.Result) != strconv.FormatInt(two.pid(), 10) || end.Err != "" {
		t.Errorf("ended as %+v", end)
	}
	if end := final(t, web, cancelled.ID); end.State != jobs.Cancelled || end.Attempt != 1 {
		t.Errorf("cancelled while it was lost: %+v", end)
	}
}

// A job that kills its workers does not kill all there are.
func TestJobThatKills(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	web := engine(t, connect(t, url), workerKinds())
	j := submit(t, web, "die", "0", jobs.SubmitOptions{})
	for range 3 {
		p := startWorker(t, url, 1)
		p.cmd.Wait()
	}
	startWorker(t, url, 1)
	if end := final(t, web, j.ID); end.State != jobs.Failed || end.Attempt != 3 || !strings.Contains(end.Err, "lost") {
		t.Errorf("ended as %+v", end)
	}
}

// A worker that is shut down gives back what it has not finished, at once and as it was.
func TestWorkerShutDown(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	web := engine(t, connect(t, url), workerKinds())
	one := startWorker(t, url, 1)
	j := submit(t, web, "wait", "0", jobs.SubmitOptions{})
	seen(t, web, j.ID, func(j jobs.Job) bool { return j.Progress.Done == one.pid() })
	one.shutDown(t)
	if j, err := web.Get(t.Context(), j.ID); err != nil || j.State != jobs.Queued || j.Attempt != 0 {
		t.Errorf("%+v, %v", j, err)
	}
	two := startWorker(t, url, 1)
	seen(t, web, j.ID, func(j jobs.Job) bool { return j.Progress.Done == two.pid() && j.Attempt == 1 })
}

// What a worker runs by the database and not by its own word was lost on the way: an answer to River that failed, for one.
func TestAnswerLost(t *testing.T) {
	t.Parallel()
	pool := connect(t, shared.database(t))
	e := engine(t, pool, kinds(), riverjobs.WithWorkers(1), riverjobs.WithLease(2*time.Second))
	j := submit(t, e, "n", "3", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
	if _, err := pool.Exec(t.Context(), `UPDATE river_job SET state = 'running', attempt = 1, attempted_at = now(),
		attempted_by = (SELECT array_agg(name) FROM spillgate_worker)`); err != nil {
		t.Fatal(err)
	}
	if end := final(t, e, j.ID); end.State != jobs.Succeeded || end.Attempt != 2 {
		t.Errorf("ended as %+v", end)
	}
}

// Who has not reached the database for a whole lease takes nobody for lost: after an outage nobody has been heard for long, and all are alive.
func TestNobodyIsLostAtFirst(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	pool := connect(t, url)
	const lease = 2 * time.Second
	web := engine(t, pool, kinds())
	j := submit(t, web, "n", "3", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
	if _, err := pool.Exec(t.Context(), "UPDATE river_job SET state = 'running', attempt = 1, attempted_at = now() - interval '1 hour', attempted_by = '{gone}'"); err != nil {
		t.Fatal(err)
	}
	var began time.Time // by the clock of the database
	if err := pool.QueryRow(t.Context(), "SELECT now()").Scan(&began); err != nil {
		t.Fatal(err)
	}
	engine(t, connect(t, url), kinds(), riverjobs.WithWorkers(1), riverjobs.WithLease(lease))
	if end := final(t, web, j.ID); end.State != jobs.Succeeded || end.Attempt != 2 || end.Started.Sub(began) < lease {
		t.Errorf("after %v it ended as %+v", end.Started.Sub(began), end)
	}
}

// A worker that was taken for lost and is not says nothing of the attempt that runs elsewhere, whether its own fails or is given back.
func TestNotLost(t *testing.T) {
	t.Parallel()
	for name, late := range map[string]error{"failed": errors.New("too late"), "failed for good": jobs.Permanent(errors.New("too late")), "shut down": jobs.ErrShutdown} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := shared.database(t)
			pool := connect(t, url)
			release, failed := make(chan struct{}), make(chan struct{})
			m := jobs.NewMux()
			jobs.Register(m, "late", func(ctx context.Context, _ any) (int, error) {
				defer close(failed)
				select {
				case <-release:
				case <-ctx.Done():
				}
				return 0, late
			}, jobs.WithAttempts(3), jobs.WithBackoff(time.Hour, time.Hour))
			web := engine(t, pool, m)
			e := engine(t, connect(t, url), m, riverjobs.WithWorkers(1), riverjobs.WithLease(time.Hour))
			j := submit(t, web, "late", "0", jobs.SubmitOptions{})
			seen(t, web, j.ID, func(j jobs.Job) bool { return j.State == jobs.Running })
			exec := func(sql string) {
				t.Helper()
				if tag, err := pool.Exec(t.Context(), sql); err != nil || tag.RowsAffected() != 1 {
					t.Fatal(tag, err)
				}
			}
			exec("UPDATE river_job SET attempt = 2, attempted_by = array_append(attempted_by, 'another') WHERE state = 'running'")
			if !errors.Is(late, jobs.ErrShutdown) {
				close(release)
				<-failed
			}
			e.Close() // by which River has written what the attempt ended with
			if j, err := web.Get(t.Context(), j.ID); err != nil || j.State != jobs.Running || j.Attempt != 2 || j.Err != "" {
				t.Errorf("elsewhere it is %+v, %v", j, err)
			}
			exec(`UPDATE river_job SET state = 'completed', finalized_at = now(), metadata = metadata || '{"output": "7"}' WHERE state = 'running'`)
			if end := final(t, web, j.ID); end.State != jobs.Succeeded || string(end.Result) != "7" {
				t.Errorf("ended as %+v", end)
			}
		})
	}
}

// What it says of a job that has ended elsewhere meanwhile changes nothing, whether it failed there or not.
func TestResultStays(t *testing.T) {
	t.Parallel()
	for name, late := range map[string]error{"failed": jobs.Permanent(errors.New("too late")), "succeeded": nil} {
		t.Run(name, func(t *testing.T) {
			pool := connect(t, shared.database(t))
			release := make(chan struct{})
			m := jobs.NewMux()
			jobs.Register(m, "late", func(context.Context, any) (int, error) { <-release; return 8, late })
			e := engine(t, pool, m, riverjobs.WithWorkers(1), riverjobs.WithLease(time.Hour))
			j := submit(t, e, "late", "0", jobs.SubmitOptions{})
			seen(t, e, j.ID, func(j jobs.Job) bool { return j.State == jobs.Running })
			if _, err := pool.Exec(t.Context(), `UPDATE river_job SET state = 'completed', finalized_at = now(), metadata = metadata || '{"output": "7"}' WHERE state = 'running'`); err != nil {
				t.Fatal(err)
			}
			end := final(t, e, j.ID)
			close(release)
			e.Close() // by which River has written what the attempt ended with
			if j, err := e.Get(t.Context(), j.ID); err != nil || j.State != jobs.Succeeded || string(j.Result) != "7" || j.Version != end.Version {
				t.Errorf("%+v, %v; before %+v", j, err, end)
			}
		})
	}
}

// Handlers may have all connections of the pool for longer than a lease, and their worker is not lost.
func TestPoolIsExhausted(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	busy := connect(t, strings.Replace(url, "pool_max_conns=20", "pool_max_conns=2", 1))
	has, release := make(chan struct{}), make(chan struct{})
	m := kinds()
	jobs.Register(m, "greedy", func(ctx context.Context, _ any) (int, error) {
		for range 2 {
			c, err := busy.Acquire(ctx)
			if err != nil {
				return 0, err
			}
			defer c.Release()
		}
		close(has) // a second run panics
		<-release
		return 1, nil
	})
	pool := connect(t, url)
	web := engine(t, pool, m)
	engine(t, busy, m, riverjobs.WithWorkers(1), riverjobs.WithLease(shortLease))
	t.Cleanup(func() { close(release) })
	j := submit(t, web, "greedy", "0", jobs.SubmitOptions{})
	<-has
	lost := submit(t, web, "n", "3", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
	if _, err := pool.Exec(t.Context(), "UPDATE river_job SET state = 'running', attempt = 1, attempted_at = now(), attempted_by = '{gone}' WHERE state = 'scheduled'"); err != nil {
		t.Fatal(err)
	}
	engine(t, connect(t, url), m, riverjobs.WithWorkers(2), riverjobs.WithLease(shortLease))
	final(t, web, lost.ID) // which was lost after the other had all connections
	if j, err := web.Get(t.Context(), j.ID); err != nil || j.State != jobs.Running || j.Attempt != 1 {
		t.Errorf("%+v, %v", j, err)
	}
}

// Where somebody cuts connections that are idle for longer than a while, a worker is alive all the same, and sees who is not.
func TestIdleConnectionsAreCut(t *testing.T) {
	t.Parallel()
	url := shared.database(t)
	pool := connect(t, url)
	web := engine(t, pool, kinds())
	lost := submit(t, web, "n", "3", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
	if _, err := pool.Exec(t.Context(), "UPDATE river_job SET state = 'running', attempt = 1, attempted_at = now(), attempted_by = '{gone}' WHERE state = 'scheduled'"); err != nil {
		t.Fatal(err)
	}
	engine(t, connect(t, url+"&idle_session_timeout=1500"), kinds(), riverjobs.WithWorkers(1), riverjobs.WithLease(8*time.Second)) // it speaks every two
	if end := final(t, web, lost.ID); end.State != jobs.Succeeded || end.Attempt != 2 {
		t.Errorf("ended as %+v", end)
	}
}
