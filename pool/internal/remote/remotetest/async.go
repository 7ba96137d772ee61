package remotetest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/spillgate/spillgate/pool/jobs"
)

// Async tests two web servers and a worker behind middleware.Async: a job that one has accepted, the other answers for. The kinds of m have one
// that waits for the end of its context, "wait". open makes a handler for a kind, with X-User as the owner; web makes an engine
// with no more than two unfinished jobs for each client, and worker one that runs four at a time.
func Async(t *testing.T, m *jobs.Mux, web, worker func() jobs.Engine, open func(e jobs.Engine, kind string) http.Handler) {
	jobs.Register(m, "report", func(context.Context, int) (string, error) { return "the year", nil })
	jobs.Register(m, "brief", func(context.Context, int) (int, error) { return 1, nil }, jobs.WithRetain(100*time.Millisecond))
	jobs.Register(m, "fail", func(context.Context, int) (int, error) { panic("hunter2") })
	var servers []*httptest.Server
	for range 2 {
		e := web()
		mux := http.NewServeMux()
		for _, kind := range []string{"report", "brief", "fail", "wait"} {
			h := open(e, kind)
			mux.Handle("POST /"+kind, h)
			mux.Handle("GET /"+kind+"/{id}", h)
			mux.Handle("DELETE /"+kind+"/{id}", h)
		}
		s := httptest.NewServer(mux)
		t.Cleanup(s.Close)
		servers = append(servers, s)
	}
	runs := worker()

	type answer struct {
		http.Header
		Status int
		Body   string
		Job    jobs.Job
	}
	n := 0
	ask := func(method, path, body string, headers ...string) (a answer) {
		t.Helper()
		n++ // each request goes to the other server than the one before
		req, err := http.NewRequestWithContext(t.Context(), method, servers[n%2].URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-User", "alice")
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		for _, h := range headers {
			name, value, _ := strings.Cut(h, ": ")
			req.Header.Set(name, value)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		a = answer{Header: res.Header, Status: res.StatusCode, Body: string(b)}
		if strings.HasPrefix(a.Get("Content-Type"), "application/json") {
			if err := json.Unmarshal(b, &a.Job); err != nil {
				t.Fatal(err)
			}
		}
		return a
	}
	want := func(what string, a answer, status int) {
		t.Helper()
		if a.Status != status {
			t.Errorf("%s: %d %s; want %d", what, a.Status, a.Body, status)
		}
	}

	a := ask("POST", "/report", "2026", "Idempotency-Key: one")
	want("submit", a, http.StatusAccepted)
	location := a.Get("Location")
	if location != "/report/"+a.Job.ID || a.Get("Retry-After") == "" {
		t.Errorf("submit: %v", a.Header)
	}
	again := ask("POST", "/report", "2026", "Idempotency-Key: one")
	want("the same again", again, http.StatusAccepted)
	if again.Get("Location") != location {
		t.Errorf("the same again: %v", again.Header)
	}
	want("the same key for another", ask("POST", "/report", "2027", "Idempotency-Key: one"), http.StatusUnprocessableEntity)
	var done answer
	Until(t, "the job has ended", func() bool { done = ask("GET", location, ""); return done.Job.State.Final() })
	if done.Status != http.StatusOK || string(done.Job.Result) != `"the year"` {
		t.Errorf("ended as %d %s", done.Status, done.Body)
	}
	brief := ask("POST", "/brief", "1")
	want("submit", brief, http.StatusAccepted)
	Until(t, "it is forgotten", func() bool { return ask("GET", brief.Get("Location"), "").Status == http.StatusGone })
	want("never was", ask("GET", "/report/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", ""), http.StatusNotFound)
	want("malformed", ask("POST", "/report", `"x"`), http.StatusBadRequest)

	waited := ask("POST", "/report", "1", "Prefer: wait=30")
	want("wait", waited, http.StatusOK)
	if waited.Job.State != jobs.Succeeded || waited.Get("Preference-Applied") != "wait=30" {
		t.Errorf("wait: %+v, %v", waited.Job, waited.Header)
	}
	failed := ask("POST", "/fail", "1", "Prefer: wait=30")
	want("fail", failed, http.StatusOK)
	if failed.Job.State != jobs.Failed || strings.Contains(failed.Body, "hunter2") {
		t.Errorf("fail: %s", failed.Body)
	}

	// One that waits for its time is gone at once, one that runs is asked to stop, and one that has ended is not touched.
	running := ask("POST", "/wait", "1")
	want("submit", running, http.StatusAccepted)
	at := running.Get("Location")
	Seen(t, runs, running.Job.ID, func(j jobs.Job) bool { return j.State == jobs.Running })
	want("of somebody else", ask("DELETE", at, "", "X-User: bob"), http.StatusNotFound)
	want("cancel", ask("DELETE", at, ""), http.StatusAccepted)
	if end := Final(t, runs, running.Job.ID); end.State != jobs.Cancelled {
		t.Errorf("ended as %+v", end)
	}
	want("cancel again", ask("DELETE", at, ""), http.StatusConflict)
	waiting := Submit(t, runs, "wait", "1", jobs.SubmitOptions{Client: "alice", NotBefore: time.Now().Add(time.Hour)})
	want("cancel what waits", ask("DELETE", "/wait/"+waiting.ID, ""), http.StatusNoContent)

	for range 2 {
		want("within the share", ask("POST", "/wait", "1"), http.StatusAccepted)
	}
	over := ask("POST", "/wait", "1")
	want("beyond the share", over, http.StatusTooManyRequests)
	if over.Get("Retry-After") == "" {
		t.Errorf("beyond the share: %v", over.Header)
	}
}

// AsyncStream tests that a stream of events over HTTP tells of a job that runs elsewhere. web makes an engine that runs none, worker
// one that does, and open a handler for a kind.
func AsyncStream(t *testing.T, web, worker func(m *jobs.Mux) jobs.Engine, open func(e jobs.Engine, kind string) http.Handler) {
	seen := make(chan struct{})
	m := jobs.NewMux()
	jobs.Register(m, "report", func(ctx context.Context, _ int) (int, error) {
		jobs.Report(ctx, jobs.Progress{Done: 1, Total: 2, Note: "half"})
		select {
		case <-seen:
			return 7, nil
		case <-ctx.Done():
			return 0, errors.New("nobody has seen it")
		}
	})
	e := web(m)
	s := httptest.NewServer(open(e, "report"))
	t.Cleanup(s.Close)
	worker(m)
	j := Submit(t, e, "report", "1", jobs.SubmitOptions{})
	req, err := http.NewRequestWithContext(t.Context(), "GET", s.URL+"/"+j.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var all strings.Builder
	b := make([]byte, 4096)
	told := false
	for {
		n, err := res.Body.Read(b)
		all.Write(b[:n])
		if !told && strings.Contains(all.String(), `"half"`) {
			told = true
			close(seen)
		}
		if err != nil {
			break
		}
	}
	if !told || !strings.Contains(all.String(), `"succeeded"`) || !strings.Contains(all.String(), `"result":7`) {
		t.Errorf("told %v: %s", told, all.String())
	}
}
