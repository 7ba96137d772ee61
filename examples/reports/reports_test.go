package main

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestReport(t *testing.T) {
	a, err := newApp(20*time.Millisecond, false)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	for _, path := range []string{"/reports", "/unprotected"} {
		r := httptest.NewRequest("POST", path, strings.NewReader(`{"parts":10}`))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Prefer", "wait=60")
		w := httptest.NewRecorder()
		a.ServeHTTP(w, r)
		var job struct {
			State  string `json:"state"`
			Result report `json:"result"`
		}
		if err := json.Unmarshal(w.Body.Bytes(), &job); err != nil || w.Code != 200 || job.State != "succeeded" || job.Result.Parts != 10 {
			t.Errorf("%s: %d %s, %v", path, w.Code, w.Body, err)
		}
	}
	w := httptest.NewRecorder()
	a.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if w.Code != 200 || !strings.Contains(w.Body.String(), `id="start"`) {
		t.Errorf("page: %d", w.Code)
	}
}

func TestWorkOutOfRange(t *testing.T) {
	for _, work := range []time.Duration{-time.Second, 0, 2 * time.Hour} {
		if a, err := newApp(work, false); err == nil || !strings.Contains(err.Error(), "-work is "+work.String()) {
			t.Errorf("%v: %v, %v", work, a, err)
		}
	}
}
