// Package browser tests the page of examples/reports in a real Chromium. It is a module of its
// own for the sake of the driver.
package browser

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

func TestPage(t *testing.T) {
	chromium := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "chromium-headless-shell"} {
		if p, err := exec.LookPath(name); err == nil {
			chromium = p
			break
		}
	}
	if chromium == "" {
		const missing = "there is no Chromium here: on Debian, apt-get install chromium"
		if os.Getenv("CI") != "" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}

	url := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(chromium), chromedp.NoSandbox,
		chromedp.UserDataDir(t.TempDir()), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("host-resolver-rules", "MAP reports.test 127.0.0.1"))
	ctx, cancel = chromedp.NewExecAllocator(ctx, opts...)
	defer cancel()
	ctx, cancel = chromedp.NewContext(ctx)
	defer cancel()

	var mu sync.Mutex
	var faults []string
	if err := chromedp.Listen(ctx, func(event any) {
		if e, ok := event.(*runtime.EventExceptionThrown); ok {
			mu.Lock()
			fault := e.ExceptionDetails.Text
			if x := e.ExceptionDetails.Exception; x != nil {
				fault += " " + x.Description
			}
			faults = append(faults, fault)
			mu.Unlock()
		}
	}); err != nil {
		t.Fatalf("Chromium does not start: %v", err)
	}
	step := func(what string, actions ...chromedp.Action[chromedp.Void]) {
		t.Helper()
		if err := chromedp.Do(ctx, actions...); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	// until waits in the browser, frame by frame, until the expression is true there.
	until := func(expression string) chromedp.Action[chromedp.Void] {
		poll := chromedp.Poll[bool](expression, chromedp.WithPollingTimeout(time.Minute))
		return func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
			_, err := poll(ctx, target)
			return chromedp.Void{}, err
		}
	}
	state := func(want string) chromedp.Action[chromedp.Void] {
		return until(`!!document.querySelector('#jobs li:first-child .state')?.textContent.startsWith('` + want + `')`)
	}

	step("open", chromedp.Navigate(url))
	if title := value(t, ctx, chromedp.Title()); title != "Reports" {
		t.Errorf("title %q", title)
	}
	step("the latency is plotted", until(`+document.querySelector('#plot').dataset.points >= 3`))
	if latency := value(t, ctx, chromedp.Text("#latency")); !strings.HasSuffix(latency, " ms") {
		t.Errorf("latency %q", latency)
	}

	step("start one", chromedp.Click("#start"))
	step("its progress is live", until(`(v => v > 0 && v < 1)(document.querySelector('#jobs progress')?.position)`))
	step("it ends", state("succeeded"))
	bar := value(t, ctx, chromedp.Evaluate[float64](`document.querySelector('#jobs progress').value`))
	if digest := value(t, ctx, chromedp.Text("#jobs li:first-child .state")); bar != 1 || len(strings.Fields(digest)) != 2 {
		t.Errorf("bar at %v, %q", bar, digest)
	}

	step("start another and cancel it", chromedp.Click("#start"), state("running"), chromedp.Click("#jobs li:first-child .cancel"), state("cancelled"))
	run := func(script string) { value(t, ctx, chromedp.Evaluate[bool](script+"; true")) }
	run(`for (let i = 0; i < 20; i++) document.getElementById('start').click()`)
	step("with more than there are slots, some wait", until(`document.querySelectorAll('#jobs li').length === 22 && [...document.querySelectorAll('.state')].some(s => s.textContent === 'queued')`))
	step("each can be cancelled", until(`(() => { document.querySelectorAll('.cancel').forEach(c => c.click()); return document.querySelectorAll('.cancel').length === 0 })()`))
	step("without the pool it works as well", chromedp.Click("#pool"), chromedp.Click("#start"), state("succeeded"))
	// Another name than that of this machine, without TLS, is no secure context.
	step("from another machine it works as well", chromedp.Navigate(strings.Replace(url, "127.0.0.1", "reports.test", 1)),
		until(`!isSecureContext`), chromedp.Click("#start"), state("succeeded"))

	mu.Lock()
	defer mu.Unlock()
	if len(faults) > 0 {
		t.Errorf("the page threw: %s", strings.Join(faults, "\n"))
	}
}

// value runs an action that returns something.
func value[T any](t *testing.T, ctx context.Context, a chromedp.Action[T]) T {
	t.Helper()
	v, err := chromedp.Run(ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// start builds and starts the program and returns its address.
func start(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "reports")
	build := exec.Command("go", "build", "-o", binary, ".")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	cmd := exec.Command(binary, "-addr", "127.0.0.1:0", "-work", "2s")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the program ended with %v", err)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	_, url, ok := strings.Cut(strings.TrimSpace(line), "open ")
	if !ok {
		t.Fatalf("the program says %q", line)
	}
	return url
}
