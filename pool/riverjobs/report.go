package riverjobs

import (
	"context"
	"time"

	"github.com/spillgate/spillgate/pool/internal/remote"
	"github.com/spillgate/spillgate/pool/jobs"
)

// reportTime is how long writing a job's progress may take.
const reportTime = 5 * time.Second

const writeProgress = `WITH changed AS (
		UPDATE {s}spillgate_job AS j SET version = j.version + 1, done = $3, total = $4, note = $5
		FROM {s}river_job AS r WHERE j.river_id = $1 AND r.id = $1 AND r.state = 'running' AND r.attempt = $2 RETURNING j.id)
	SELECT pg_notify(coalesce(nullif($6, ''), current_schema()) || '.spillgate_job', id) FROM changed`

func (e *Engine) reporter(riverID int64, attempt int) *remote.Reporter {
	return remote.NewReporter(func(p jobs.Progress) {
		ctx, cancel := context.WithTimeout(context.Background(), reportTime)
		defer cancel()
		_, _ = e.pool.Exec(ctx, e.sql(writeProgress), riverID, attempt, p.Done, p.Total, clip(p.Note, 256), e.conf.schema)
	})
}
