package riverjobs

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// listenIdle is how long the connection is kept that nobody needs.
const listenIdle = time.Minute

// hear listens to the database: see remote.Hear.
func (e *Engine) hear(ctx context.Context, heard func(id string, began bool) bool) bool {
	pooled, err := e.pool.Acquire(ctx)
	if err != nil {
		return false
	}
	conn := pooled.Hijack() // since one that listens must not come back
	defer conn.Close(context.WithoutCancel(ctx))
	schema := e.conf.schema
	if schema == "" {
		if err := conn.QueryRow(ctx, "SELECT current_schema()").Scan(&schema); err != nil {
			return false
		}
	}
	if _, err := conn.Exec(ctx, "LISTEN "+pgx.Identifier{schema + ".spillgate_job"}.Sanitize()); err != nil {
		return false
	}
	heard("", true)
	for {
		waits, cancel := context.WithTimeout(ctx, listenIdle)
		said, err := conn.WaitForNotification(waits)
		idle := waits.Err() != nil
		cancel()
		switch {
		case err == nil:
			heard(said.Payload, false)
		case idle && ctx.Err() == nil && heard("", false):
			if conn.Ping(ctx) != nil {
				return true
			}
		default:
			return true
		}
	}
}
