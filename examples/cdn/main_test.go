package main

import (
	"bufio"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

func TestCDN(t *testing.T) {
	calls := 0
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		w.Header().Set("Cache-Control", "max-age=60")
		io.WriteString(w, "page")
	}))
	defer site.Close()
	target, err := url.Parse(site.URL)
	if err != nil {
		t.Fatal(err)
	}
	public, private := newCDN(target, 1<<20)
	cdn, admin := httptest.NewServer(public), httptest.NewServer(private)
	defer cdn.Close()
	defer admin.Close()

	status := func() string {
		res, err := http.Get(cdn.URL + "/x")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if b, _ := io.ReadAll(res.Body); string(b) != "page" {
			t.Errorf("body %q", b)
		}
		return res.Header.Get("Cache-Status")
	}
	for _, want := range []string{"cdn; fwd=uri-miss; fwd-status=200; stored", "cdn; hit; ttl="} {
		if got := status(); !strings.HasPrefix(got, want) {
			t.Errorf("Cache-Status %q, want %q", got, want)
		}
	}
	foreign, err := http.NewRequest(http.MethodPost, admin.URL+"/purge?all=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	foreign.Header.Set("Sec-Fetch-Site", "cross-site") // as browsers do for the form of another site
	refused, err := http.DefaultClient.Do(foreign)
	if err != nil {
		t.Fatal(err)
	}
	refused.Body.Close()
	if got := status(); refused.StatusCode != http.StatusForbidden || !strings.Contains(got, "cdn; hit") {
		t.Errorf("a purge by the page of another site: %s, and then %q", refused.Status, got)
	}
	res, err := http.PostForm(admin.URL+"/purge", url.Values{"url": {cdn.URL + "/x"}})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); string(b) != "{\"purged\":1}\n" {
		t.Errorf("purge answered %q", b)
	}
	if got := status(); !strings.Contains(got, "uri-miss") || calls != 2 {
		t.Errorf("after the purge: %q, %d calls", got, calls)
	}
}

// It says where it is once it is there, and leaves when it is told to.
func TestRunEndsWithASignal(t *testing.T) {
	said, says := io.Pipe()
	log.SetOutput(says)
	defer log.SetOutput(os.Stderr)
	target, err := parseOrigin("http://me:secret@127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- run("127.0.0.1:0", "127.0.0.1:0", target, 1<<20) }()
	line, err := bufio.NewReader(said).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(line, "secret") {
		t.Errorf("the log holds the password of the origin: %s", line)
	}
	_, admin, _ := strings.Cut(strings.TrimSpace(line), "statistics at http://")
	var out strings.Builder
	if err := purgeAt(admin, "http://example.com/x", &out); err != nil || out.String() != "{\"purged\":0}\n" {
		t.Errorf("purge: %v, %q", err, &out)
	}
	if err := purgeAt(admin, "", io.Discard); err == nil {
		t.Error("no error for a purge that was refused")
	}
	if err := run(admin, "127.0.0.1:0", target, 1<<20); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second one at the same address: %v", err)
	}
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := self.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestOrigin(t *testing.T) {
	for origin, ok := range map[string]bool{
		"https://example.com": true, "http://127.0.0.1:1/below": true,
		"example.com": false, "ftp://example.com": false, "https:///x": false, "": false, "http://a b": false,
		"ftp://me:secret@example.com": false, "http://me:secret@a b": false,
	} {
		if _, err := parseOrigin(origin); (err == nil) != ok {
			t.Errorf("%q: %v", origin, err)
		} else if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error holds the password: %v", origin, err)
		}
	}
}

// Whatever may stand in detail for an answer that is not kept is in the README.
func TestReadmeNamesEveryDetail(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for file, reason := range map[string]string{
		"storable.go": `return no\("([a-z-]+)"`,
		"fill.go":     `fl\.v\.reason.* = false, "([a-z-]+)"`,
	} {
		b, err := os.ReadFile(filepath.Join("../../cache", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(reason).FindAllSubmatch(b, -1) {
			n++
			if name := string(m[1]); name != "not-addressed" && !strings.Contains(string(readme), "`"+name+"`") { // of WithOnlyExplicit, which the cdn has not
				t.Errorf("README.md does not say what detail=%s is", name)
			}
		}
	}
	if n < 18 {
		t.Errorf("%d reasons found in the cache; there are more", n)
	}
}
