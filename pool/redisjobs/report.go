package redisjobs

import (
	"context"

	"github.com/spillgate/spillgate/pool/internal/remote"
	"github.com/spillgate/spillgate/pool/jobs"
)

func (e *Engine) reporter(a *attempt) *remote.Reporter {
	return remote.NewReporter(func(p jobs.Progress) {
		_ = e.timed(func(ctx context.Context) error {
			return e.run(ctx, progressScript, a.id, a.token, p.Done, p.Total, remote.Clip(p.Note, 256)).Err()
		})
	})
}
