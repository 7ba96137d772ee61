//go:build unix

package redisjobs_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/redisjobs"
)

// In the processes that tests start as workers these name the server, the prefix, and how many jobs they run at a time.
const (
	workerOf = "REDISJOBS_SERVER"
	prefixOf = "REDISJOBS_PREFIX"
	workersN = "REDISJOBS_WORKERS"
)

// shortLease is that of workers in tests of their loss: long enough for a process that is not given the processor for a while.
const shortLease = 2 * time.Second

// workerKinds are those of the processes. Each says in its progress which process runs it.
func workerKinds() *jobs.Mux {
	m := jobs.NewMux()
	pid := os.Getpid()
	say := func(ctx context.Context) { jobs.Report(ctx, jobs.Progress{Done: int64(pid), Note: "here"}) }
	jobs.Register(m, "pid", func(context.Context, any) (int, error) { return pid, nil })
	jobs.Register(m, "busy", func(context.Context, any) (int, error) {
		sum := sha256.Sum256(make([]byte, 8<<20))
		return int(sum[0]), nil
	})
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

// raced is how many keys the processes submit with that run no jobs.
const raced = 200

// submitterProcess submits with the same keys as others do, and prints what it got.
func submitterProcess(e *redisjobs.Engine) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range raced {
		wg.Go(func() {
			j, created, err := e.Submit(context.Background(), "pid", []byte("0"), jobs.SubmitOptions{Client: "a", Key: strconv.Itoa(i)})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				fmt.Println(err)
				return
			}
			fmt.Println(i, j.ID, created)
		})
	}
	wg.Wait()
}

// workerProcess runs jobs until its standard input ends, and then is shut down.
func workerProcess() {
	ctx := context.Background()
	c := redis.NewClient(&redis.Options{Addr: os.Getenv(workerOf), ContextTimeoutEnabled: true})
	n, _ := strconv.Atoi(os.Getenv(workersN)) // set by the test
	if n == 0 {
		submitterProcess(redisjobs.New(c, workerKinds(), redisjobs.WithPrefix(os.Getenv(prefixOf))))
		return
	}
	e := redisjobs.New(c, workerKinds(), redisjobs.WithPrefix(os.Getenv(prefixOf)), redisjobs.WithWorkers(n), redisjobs.WithLease(shortLease))
	fmt.Println("starting") // before a job may kill the process
	if err := e.Start(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	io.Copy(io.Discard, os.Stdin)
	e.Close()
}

// process is a worker in a process of its own.
type process struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

func startWorker(t *testing.T, s *server, prefix string, workers int) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(self)}
	p.cmd.SysProcAttr = diesWithParent()
	p.cmd.Env = append(os.Environ(), workerOf+"="+s.addr, prefixOf+"="+prefix, workersN+"="+strconv.Itoa(workers))
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
	if !lines.Scan() || lines.Text() != "starting" {
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
	prefix := servicePrefix()
	web := engine(t, shared.client(t), workerKinds(), redisjobs.WithPrefix(prefix))
	workers := map[int64]*process{}
	for range 2 {
		p := startWorker(t, shared, prefix, 1)
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
	prefix := servicePrefix()
	web := engine(t, shared.client(t), workerKinds(), redisjobs.WithPrefix(prefix))
	one := startWorker(t, shared, prefix, 3)
	j := submit(t, web, "second time lucky", "0", jobs.SubmitOptions{})
	often := submit(t, web, "second time lucky", "0", jobs.SubmitOptions{MaxAttempts: math.MaxInt})
	cancelled := submit(t, web, "wait", "0", jobs.SubmitOptions{})
	for _, id := range []string{j.ID, often.ID, cancelled.ID} {
		seen(t, web, id, func(j jobs.Job) bool { return j.Progress.Done == one.pid() })
	}
	two := startWorker(t, shared, prefix, 2)
	one.kill()
	if _, err := web.Cancel(t.Context(), cancelled.ID); err != nil {
		t.Error(err)
	}
	if end := final(t, web, j.ID); end.State != jobs.Succeeded || end.Attempt != 2 || end.MaxAttempts != 2 || string(end.Result) != strconv.FormatInt(two.pid(), 10) || end.Err != "" {
		t.Errorf("ended as %+v", end)
	}
	if end := final(t, web, often.ID); end.State != jobs.Succeeded || end.Attempt != 2 {
		t.Errorf("ended as %+v", end)
	}
	if end := final(t, web, cancelled.ID); end.State != jobs.Cancelled || end.Attempt != 1 {
		t.Errorf("cancelled while it was lost: %+v", end)
	}
}

// Where the clock of the server is set back, as by a replica that takes over, the job of a worker that is lost does not wait until it is as late once more, and a worker that is
// alive is not taken for lost. To set the clock back is the same as to have what stands there be later.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	c, prefix := shared.client(t), servicePrefix()
	web := engine(t, c, workerKinds(), redisjobs.WithPrefix(prefix))
	one := startWorker(t, shared, prefix, 1)
	j := submit(t, web, "second time lucky", "0", jobs.SubmitOptions{})
	seen(t, web, j.ID, func(j jobs.Job) bool { return j.Progress.Done == one.pid() })
	one.kill()
	two := startWorker(t, shared, prefix, 1)
	other := submit(t, web, "wait", "0", jobs.SubmitOptions{})
	seen(t, web, other.ID, func(j jobs.Job) bool { return j.Progress.Done == two.pid() })
	for _, id := range []string{j.ID, other.ID} {
		if err := c.ZIncrBy(t.Context(), "{"+prefix+"}:run", 3.6e9, id).Err(); err != nil {
			t.Fatal(err)
		}
	}
	startWorker(t, shared, prefix, 1)
	if end := final(t, web, j.ID); end.State != jobs.Succeeded || end.Attempt != 2 {
		t.Errorf("ended as %+v", end)
	}
	if j, err := web.Get(t.Context(), other.ID); err != nil || j.State != jobs.Running || j.Attempt != 1 {
		t.Errorf("of a worker that is alive: %+v, %v", j, err)
	}
}

// Workers are killed and connections cut in the middle of much work, and all of it is done.
func TestWorkersKilledUnderLoad(t *testing.T) {
	t.Parallel()
	s, prefix := own(t), servicePrefix()
	web := engine(t, s.client(t), workerKinds(), redisjobs.WithPrefix(prefix))
	var workers []*process
	for range 3 {
		workers = append(workers, startWorker(t, s, prefix, 4))
	}
	operator := s.client(t)
	var ids []string
	for i := range 300 {
		o := jobs.SubmitOptions{Key: strconv.Itoa(i), Client: strconv.Itoa(i % 7)}
		until(t, "it is accepted", func() bool { // also where the connection is cut
			j, _, err := web.Submit(t.Context(), "busy", []byte("0"), o)
			if err == nil {
				ids = append(ids, j.ID)
			}
			return err == nil
		})
		if i%10 == 0 {
			for _, kind := range []string{"normal", "pubsub"} {
				if err := operator.ClientKillByFilter(t.Context(), "TYPE", kind, "SKIPME", "yes").Err(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if i == 100 || i == 200 {
			workers[i/100].kill()
		}
	}
	again := 0
	for _, id := range ids {
		end := final(t, web, id)
		if end.State != jobs.Succeeded || end.Attempt > 3 {
			t.Errorf("ended as %+v", end)
		}
		if end.Attempt > 1 {
			again++
		}
	}
	t.Logf("%d of %d began again", again, len(ids))
	workers[0].shutDown(t)
	for _, key := range keys(t, operator, prefix) {
		if kind, _, _ := strings.Cut(key, ":"); !slices.Contains([]string{"job", "key", "claim", "mint", "open", "served"}, kind) {
			t.Errorf("there is still %s", key)
		}
	}
}

// A worker that stood still for longer than its lease finds its job taken, and leaves it alone.
func TestWorkerStoodStill(t *testing.T) {
	t.Parallel()
	prefix := servicePrefix()
	web := engine(t, shared.client(t), workerKinds(), redisjobs.WithPrefix(prefix))
	one := startWorker(t, shared, prefix, 1)
	j := submit(t, web, "wait", "0", jobs.SubmitOptions{})
	seen(t, web, j.ID, func(j jobs.Job) bool { return j.Progress.Done == one.pid() })
	if err := one.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	two := startWorker(t, shared, prefix, 1)
	j = seen(t, web, j.ID, func(j jobs.Job) bool { return j.Progress.Done == two.pid() })
	if err := one.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// It has a free place again, and nothing else has changed.
	if end := final(t, web, submit(t, web, "pid", "0", jobs.SubmitOptions{}).ID); string(end.Result) != strconv.FormatInt(one.pid(), 10) {
		t.Errorf("ended as %+v", end)
	}
	if after, err := web.Get(t.Context(), j.ID); err != nil || after.State != jobs.Running || after.Attempt != 2 || after.Progress.Done != two.pid() {
		t.Errorf("%+v, %v", after, err)
	}
}

// A job that kills its workers does not kill all there are.
func TestJobThatKills(t *testing.T) {
	t.Parallel()
	prefix := servicePrefix()
	web := engine(t, shared.client(t), workerKinds(), redisjobs.WithPrefix(prefix))
	j := submit(t, web, "die", "0", jobs.SubmitOptions{})
	for range 3 {
		p := startWorker(t, shared, prefix, 1)
		p.cmd.Wait()
	}
	startWorker(t, shared, prefix, 1)
	if end := final(t, web, j.ID); end.State != jobs.Failed || end.Attempt != 3 || !strings.Contains(end.Err, "lost") {
		t.Errorf("ended as %+v", end)
	}
}

// A worker that is shut down gives back what it has not finished, at once and as it was.
func TestWorkerShutDown(t *testing.T) {
	t.Parallel()
	prefix := servicePrefix()
	web := engine(t, shared.client(t), workerKinds(), redisjobs.WithPrefix(prefix))
	one := startWorker(t, shared, prefix, 1)
	j := submit(t, web, "wait", "0", jobs.SubmitOptions{})
	seen(t, web, j.ID, func(j jobs.Job) bool { return j.Progress.Done == one.pid() })
	one.shutDown(t)
	if j, err := web.Get(t.Context(), j.ID); err != nil || j.State != jobs.Queued || j.Attempt != 0 {
		t.Errorf("%+v, %v", j, err)
	}
	two := startWorker(t, shared, prefix, 1)
	seen(t, web, j.ID, func(j jobs.Job) bool { return j.Progress.Done == two.pid() && j.Attempt == 1 })
}

// What the server has begun by an answer that was lost on its way begins when it is asked again, and is no other attempt.
func TestAnswerLost(t *testing.T) {
	t.Parallel()
	c, prefix := shared.client(t), servicePrefix()
	lossy := shared.client(t)
	hook := new(losesOneClaim)
	lossy.AddHook(hook)
	web := engine(t, c, kinds(), redisjobs.WithPrefix(prefix))
	var ids []string
	for range 4 {
		ids = append(ids, submit(t, web, "n", "3", jobs.SubmitOptions{}).ID)
	}
	engine(t, lossy, kinds(), redisjobs.WithPrefix(prefix), redisjobs.WithWorkers(2), redisjobs.WithLease(time.Hour))
	for _, id := range ids {
		if end := final(t, web, id); end.State != jobs.Succeeded || end.Attempt != 1 || end.MaxAttempts != 1 {
			t.Errorf("ended as %+v", end)
		}
	}
	if !hook.lost.Load() {
		t.Error("no answer was lost")
	}
}

// A job that is cancelled after its answer was lost is told so when it begins.
func TestCancelledWhileAnswerLost(t *testing.T) {
	t.Parallel()
	c, prefix := shared.client(t), servicePrefix()
	web := engine(t, c, kinds(), redisjobs.WithPrefix(prefix))
	j := submit(t, web, "wait", "0", jobs.SubmitOptions{})
	lossy := shared.client(t)
	lossy.AddHook(&losesOneClaim{then: func() {
		if j, err := web.Cancel(context.Background(), j.ID); err != nil || !j.Cancelling {
			t.Errorf("%+v, %v", j, err)
		}
	}})
	engine(t, lossy, kinds(), redisjobs.WithPrefix(prefix), redisjobs.WithWorkers(1), redisjobs.WithLease(time.Hour))
	if end := final(t, web, j.ID); end.State != jobs.Cancelled {
		t.Errorf("ended as %+v", end)
	}
}

// losesOneClaim has the first answer with a job in it never arrive, and does something else then.
type losesOneClaim struct {
	lost atomic.Bool
	then func()
}

func (h *losesOneClaim) DialHook(next redis.DialHook) redis.DialHook { return next }
func (h *losesOneClaim) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
func (h *losesOneClaim) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if c, ok := cmd.(*redis.Cmd); ok && err == nil {
			if v, _ := c.Val().([]any); len(v) == 2 {
				if claimed, _ := v[1].([]any); len(claimed) > 0 && !h.lost.Swap(true) {
					if h.then != nil {
						h.then()
					}
					c.SetErr(io.ErrUnexpectedEOF)
					return io.ErrUnexpectedEOF
				}
			}
		}
		return err
	}
}

// pretend has the server say that another worker began a job, so long from now ago.
func pretend(t *testing.T, c *redis.Client, prefix, id string, ago time.Duration) {
	t.Helper()
	job := "{" + prefix + "}:job:" + id
	for _, err := range []error{
		c.ZRem(t.Context(), "{"+prefix+"}:later", id).Err(),
		c.HSet(t.Context(), job, "state", "running", "worker", "another", "started", time.Now().Add(-ago).UnixMicro()).Err(),
		c.HIncrBy(t.Context(), job, "attempt", 1).Err(),
		c.HIncrBy(t.Context(), job, "version", 1).Err(),
		c.ZAdd(t.Context(), "{"+prefix+"}:run", redis.Z{Score: float64(time.Now().Add(-ago).UnixMicro()), Member: id}).Err(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Who has not reached the server for a whole lease takes nobody for lost: after an outage nobody has been heard for long, and all are alive.
func TestNobodyIsLostAtFirst(t *testing.T) {
	t.Parallel()
	c, prefix := shared.client(t), servicePrefix()
	const lease = 2 * time.Second
	web := engine(t, c, kinds(), redisjobs.WithPrefix(prefix))
	j := submit(t, web, "n", "3", jobs.SubmitOptions{NotBefore: time.Now().Add(time.Hour)})
	pretend(t, c, prefix, j.ID, time.Hour)
	began := time.Now()
	engine(t, shared.client(t), kinds(), redisjobs.WithPrefix(prefix), redisjobs.WithWorkers(1), redisjobs.WithLease(lease))
	if end := final(t, web, j.ID); end.State != jobs.Succeeded || end.Attempt != 2 || end.Started.Sub(began) < lease {
		t.Errorf("after %v it ended as %+v", end.Started.Sub(began), end)
	}
}

// A worker that was taken for lost and is not says nothing of how the attempt that runs elsewhere fails, but a result is a result.
func TestNotLost(t *testing.T) {
	t.Parallel()
	for name, fails := range map[string]bool{"failure": true, "result": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, prefix := shared.client(t), servicePrefix()
			release := make(chan struct{})
			m := jobs.NewMux()
			jobs.Register(m, "late", func(context.Context, any) (int, error) {
				<-release
				if fails {
					return 0, errors.New("too late")
				}
				return 7, nil
			})
			e := engine(t, c, m, redisjobs.WithPrefix(prefix), redisjobs.WithWorkers(1), redisjobs.WithLease(time.Hour))
			j := submit(t, e, "late", "0", jobs.SubmitOptions{})
			seen(t, e, j.ID, func(j jobs.Job) bool { return j.State == jobs.Running })
			pretend(t, c, prefix, j.ID, 0)
			close(release)
			if !fails {
				if end := final(t, e, j.ID); end.State != jobs.Succeeded || string(end.Result) != "7" {
					t.Errorf("ended as %+v", end)
				}
				return
			}
			if err := e.Close(); err != nil { // which waits for the answer
				if _, dropped := errors.AsType[*jobs.DroppedError](err); !dropped {
					t.Error(err)
				}
			}
			if j, err := e.Get(t.Context(), j.ID); err != nil || j.State != jobs.Running || j.Attempt != 2 || j.Err != "" {
				t.Errorf("%+v, %v", j, err)
			}
		})
	}
}

// A worker that has missed the message that a job was cancelled learns of it all the same.
func TestCancelNotHeard(t *testing.T) {
	t.Parallel()
	c, prefix := shared.client(t), servicePrefix()
	e := engine(t, c, kinds(), redisjobs.WithPrefix(prefix), redisjobs.WithWorkers(1), redisjobs.WithLease(2*time.Second))
	j := submit(t, e, "wait", "0", jobs.SubmitOptions{})
	seen(t, e, j.ID, func(j jobs.Job) bool { return j.State == jobs.Running })
	began := time.Now()
	c.HSet(t.Context(), "{"+prefix+"}:job:"+j.ID, "cancelling", 1) // as the script does, and nobody is told
	if end := final(t, e, j.ID); end.State != jobs.Cancelled || time.Since(began) > 20*time.Second {
		t.Errorf("after %v it ended as %+v", time.Since(began), end)
	}
}

// Two processes with the same keys have the same jobs, and each job is one of them's.
func TestKeysOfProcesses(t *testing.T) {
	t.Parallel()
	prefix := servicePrefix()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out [2][]byte
	var wg sync.WaitGroup
	for i := range out {
		wg.Go(func() {
			cmd := exec.Command(self)
			cmd.SysProcAttr = diesWithParent()
			cmd.Env = append(os.Environ(), workerOf+"="+shared.addr, prefixOf+"="+prefix, workersN+"=0")
			var err error
			if out[i], err = cmd.Output(); err != nil {
				t.Errorf("%v: %s", err, out[i])
			}
		})
	}
	wg.Wait()
	ids, created := map[string]string{}, map[string]int{}
	for _, said := range out {
		for line := range strings.Lines(string(said)) {
			var key, id string
			var fresh bool
			if _, err := fmt.Sscan(line, &key, &id, &fresh); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			if first, ok := ids[key]; ok && first != id {
				t.Errorf("%s: jobs %s and %s", key, first, id)
			}
			ids[key] = id
			if fresh {
				created[key]++
			}
		}
	}
	for key := range ids {
		if created[key] != 1 {
			t.Errorf("%s was created %d times", key, created[key])
		}
	}
	if len(ids) != raced {
		t.Errorf("%d jobs, want %d", len(ids), raced)
	}
}
