package riverjobs

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// listenIdle is how long nothing may be heard until it is seen whether the connection is there, and how long one is kept that nobody needs.
const listenIdle = time.Minute

// answerTime is how long the database may take to answer where nobody has a deadline. If its machine is gone without a word, as in a failover, TCP does not
// know for a quarter of an hour.
const answerTime = 10 * time.Second

// hear listens to the database: see remote.Hear.
func (e *Engine) hear(ctx context.Context, heard func(id string, began bool) bool) bool {
	conn, err := e.listen(ctx)
	if err != nil {
		return false
	}
	defer conn.Close(context.WithoutCancel(ctx))
	heard("", true)
	for {
		waits, cancel := context.WithTimeout(ctx, e.conf.idle)
		said, err := conn.WaitForNotification(waits)
		idle := waits.Err() != nil
		cancel()
		switch {
		case err == nil:
			heard(said.Payload, false)
		case idle && ctx.Err() == nil && heard("", false):
			asks, cancel := context.WithTimeout(ctx, answerTime)
			err := conn.Ping(asks)
			cancel()
			if err != nil {
				return true
			}
		default:
			return true
		}
	}
}

// listen returns a connection that listens, and is none of the pool's any more: it must not come back.
func (e *Engine) listen(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	pooled, err := e.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	conn := pooled.Hijack()
	schema := e.conf.schema
	if schema == "" {
		err = conn.QueryRow(ctx, "SELECT current_schema()").Scan(&schema)
	}
	if err == nil {
		_, err = conn.Exec(ctx, "LISTEN "+pgx.Identifier{schema + ".spillgate_job"}.Sanitize())
	}
	if err != nil {
		conn.Close(ctx)
		return nil, err
	}
	return conn, nil
}
