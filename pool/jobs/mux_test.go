package jobs_test

import (
	"context"
	"slices"
	"testing"

	"github.com/spillgate/spillgate/pool/jobs"
)

func TestKinds(t *testing.T) {
	m := jobs.NewMux()
	if got := m.Kinds(); len(got) != 0 {
		t.Errorf("an empty mux has %q", got)
	}
	for _, kind := range []string{"report", "mail", "thumbnail"} {
		jobs.Register(m, kind, func(context.Context, struct{}) (int, error) { return 0, nil })
	}
	if got, want := m.Kinds(), []string{"mail", "report", "thumbnail"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
