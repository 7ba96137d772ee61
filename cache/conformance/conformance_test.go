package conformance_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spillgate/spillgate/cache"
)

// suiteDir finds the installed suite. Without node or the suite the test is skipped, but not
// where CI is set.
func suiteDir(t *testing.T) string {
	missing := t.Skip
	if os.Getenv("CI") != "" {
		missing = t.Fatal
	}
	if _, err := exec.LookPath("node"); err != nil {
		missing("node is not installed, so the conformance suite cannot run")
	}
	dir := os.Getenv("SPILLGATE_CONFORMANCE_DIR")
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(base, "spillgate", "http-cache-tests-0.4.5")
	}
	dir = filepath.Join(dir, "node_modules", "http-cache-tests")
	if _, err := os.Stat(filepath.Join(dir, "cli.mjs")); err != nil {
		missing("the conformance suite is not installed: run cache/conformance/install.sh")
	}
	return dir
}

type suiteTest struct {
	ID        string   `json:"id"`
	Kind      string   `json:"kind"`
	DependsOn []string `json:"depends_on"`
	Browser   bool     `json:"browser_only"`
	Surrogate bool     `json:"surrogate"`
}

// suiteTests asks the suite what its tests are.
func suiteTests(t *testing.T, dir string) map[string]suiteTest {
	const script = `
import tests from './tests/index.mjs'
import surrogate from './tests/surrogate-control.mjs'
const list = (suite, surrogate) => suite.tests.map(t => ({id: t.id, kind: t.kind || 'required',
	depends_on: t.depends_on || [], browser_only: !!t.browser_only, surrogate}))
console.log(JSON.stringify(tests.flatMap(s => list(s, false)).concat(list(surrogate, true))))`
	cmd := exec.Command("node", "--no-warnings", "--input-type=module", "-e", script)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("listing the suite: %v", err)
	}
	var list []suiteTest
	if err := json.Unmarshal(out, &list); err != nil {
		t.Fatalf("listing the suite: %v", err)
	}
	tests := make(map[string]suiteTest)
	for _, s := range list {
		if !s.Browser {
			tests[s.ID] = s
		}
	}
	return tests
}

// origin starts the suite's server on a port that it finds free itself, and returns its address.
func origin(t *testing.T, dir string) *url.URL {
	cmd := exec.Command("node", "--no-warnings", "server/server.mjs")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "npm_config_protocol=http", "npm_config_port=0",
		"npm_config_pidfile="+filepath.Join(t.TempDir(), "pid"))
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	lines := bufio.NewScanner(stdout)
	port := ""
	for port == "" {
		if !lines.Scan() {
			t.Fatalf("the suite's server ended before it said where it listens: %v", lines.Err())
		}
		if line := lines.Text(); strings.HasPrefix(line, "Listening") { // on http://[::]:port/
			port = strings.TrimSuffix(line[strings.LastIndexByte(line, ':')+1:], "/")
		}
	}
	go func() {
		for lines.Scan() {
		}
	}()
	return &url.URL{Scheme: "http", Host: net.JoinHostPort("127.0.0.1", port)}
}

// run runs the whole suite, or the one test named by SPILLGATE_CONFORMANCE_ID, through a handler.
func run(t *testing.T, dir, base string) map[string]json.RawMessage {
	id := os.Getenv("SPILLGATE_CONFORMANCE_ID")
	cmd := exec.Command("node", "--no-warnings", "cli.mjs")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "npm_config_base="+base, "npm_config_id="+id, "npm_package_config_id=")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("running the suite: %v\n%s", err, stderr.String())
	}
	if id != "" {
		t.Logf("%s", out)
		t.SkipNow()
	}
	results := make(map[string]json.RawMessage)
	if err := json.Unmarshal(out[bytes.IndexByte(out, '{'):], &results); err != nil {
		t.Fatalf("reading the results: %v", err)
	}
	return results
}

// known reads failing.txt: lines of profile, id and reason.
func known(t *testing.T, profile string) map[string]string {
	data, err := os.ReadFile("failing.txt")
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]string)
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Fields(line)
		if len(f) < 3 {
			t.Fatalf("failing.txt: %q: want profile, id and reason", line)
		}
		if f[0] == profile || f[0] == "both" && profile != "surrogate" {
			out[f[1]] = strings.Join(f[2:], " ")
		}
	}
	return out
}

func TestConformance(t *testing.T) {
	dir := suiteDir(t)
	tests := suiteTests(t, dir)
	for _, profile := range []struct {
		name              string
		opts              []cache.Option
		surrogate         bool // the tests of Surrogate-Control, a field that is off by default
		required, optimal int
	}{
		{"default", nil, false, 150, 80},
		{"set-cookie", []cache.Option{cache.WithStoreSetCookie()}, false, 152, 81},
		{"surrogate", []cache.Option{cache.WithSurrogate("spillgate")}, true, 8, 9},
	} {
		t.Run(profile.name, func(t *testing.T) {
			// Not in parallel: the suite's own clock is the real one, and runs 25 tests at once.
			target := origin(t, dir)
			proxy := &httputil.ReverseProxy{
				Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Host = r.In.Host },
				// Some answers of the suite's server are longer than they say. On a connection that is used again, what is
				// too much would fail a request of another test.
				Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true},
				ErrorLog:  log.New(io.Discard, "", 0), // the suite's server hangs up on purpose
			}
			srv := httptest.NewServer(cache.New(64<<20, profile.opts...).Handler(proxy))
			defer srv.Close()
			results := run(t, dir, srv.URL)

			var passes func(id string) bool
			passes = func(id string) bool {
				if string(results[id]) != "true" {
					return false
				}
				return !slices.ContainsFunc(tests[id].DependsOn, func(d string) bool { return !passes(d) })
			}
			got, all := map[string]int{}, map[string]int{}
			failing := known(t, profile.name)
			for _, id := range slices.Sorted(maps.Keys(tests)) {
				if tests[id].Surrogate != profile.surrogate {
					continue
				}
				kind := tests[id].Kind
				all[kind]++
				if passes(id) {
					got[kind]++
					if failing[id] != "" {
						t.Errorf("%s passes, but failing.txt lists it", id)
					}
				} else if kind != "check" && failing[id] == "" {
					t.Errorf("%s (%s) fails: %s", id, kind, results[id])
				}
			}
			t.Logf("profile %s: required %d of %d, optimal %d of %d, yes to %d of %d checks", profile.name,
				got["required"], all["required"], got["optimal"], all["optimal"], got["check"], all["check"])
			if got["required"] < profile.required || got["optimal"] < profile.optimal {
				t.Errorf("fewer than the %d required and %d optimal that the project promises", profile.required, profile.optimal)
			}
		})
	}
}
