package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/spillgate/spillgate/middleware/health"
)

// The numbers and paths of the manifest must fit the server.
func TestKubernetesManifest(t *testing.T) {
	b, err := os.ReadFile("kubernetes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	find := func(re string) string {
		m := regexp.MustCompile(re).FindSubmatch(b)
		if m == nil {
			t.Fatalf("the manifest holds nothing like %s", re)
		}
		return string(m[1])
	}
	number := func(re string) int {
		n, err := strconv.Atoi(find(re))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}

	h := health.New().Handler(http.NotFoundHandler())
	for _, probe := range []string{"startup", "readiness", "liveness"} {
		path := find(probe + `Probe:\s+httpGet: {path: (\S+), port: http}`)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != 200 {
			t.Errorf("%s probe: %s answers %d", probe, path, w.Code)
		}
	}

	wait, err := time.ParseDuration(find(`"-drain-wait", "([^"]+)"`))
	if err != nil {
		t.Fatal(err)
	}
	// The defaults of WithShutdownTimeout and WithReleaseTimeout, 1 s for requests
	// that are on their way, and something for the process to end.
	if grace := number(`terminationGracePeriodSeconds: (\d+)`); grace < int(wait/time.Second)+10+5+1+2 {
		t.Errorf("the pod is killed after %d s, in the middle of its drain", grace)
	}
	if n := number(`maxUnavailable: (\d+)`); n != 0 {
		t.Errorf("maxUnavailable %d", n)
	}
	if n := number(`minReadySeconds: (\d+)`); n < 1 {
		t.Errorf("minReadySeconds %d", n)
	}
	if port := find(`"-addr", ":(\d+)"`); port != fmt.Sprint(number(`containerPort: (\d+)`)) {
		t.Errorf("the server listens on %s", port)
	}
}
