// Package remotetest has what the tests of the engines in Postgres and in Redis have in common.
package remotetest

import (
	"context"
	"testing"
	"time"

	"github.com/spillgate/spillgate/pool/jobs"
)

// Until looks again and again until something is as it should be.
func Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// Final waits for the end of a job.
func Final(t testing.TB, e jobs.Engine, id string) jobs.Job {
	t.Helper()
	return Seen(t, e, id, func(j jobs.Job) bool { return j.State.Final() })
}

// Seen watches a job until it is as it should be.
func Seen(t testing.TB, e jobs.Engine, id string, ok func(jobs.Job) bool) jobs.Job {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var last jobs.Job
	for j, err := range e.Watch(ctx, id) {
		if err != nil {
			t.Fatalf("Watch: %v after %+v", err, last)
		}
		if last = j; ok(j) {
			return j
		}
	}
	t.Fatalf("the job ended as %+v", last)
	return last
}

// Submit submits a job that is new.
func Submit(t testing.TB, e jobs.Engine, kind, payload string, o jobs.SubmitOptions) jobs.Job {
	t.Helper()
	j, created, err := e.Submit(t.Context(), kind, []byte(payload), o)
	if err != nil || !created {
		t.Fatalf("Submit: created %v, %v", created, err)
	}
	return j
}
