package riverjobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"

	"github.com/spillgate/spillgate/pool/internal/remote"
	"github.com/spillgate/spillgate/pool/jobs"
)

// Engine is a [jobs.Engine] on River. Create one with [New]. It has goroutines after [Engine.Start], or while somebody
// watches a job, until [Engine.Close]; it does not close what it did not make, such as the pool. An Engine is safe for
// concurrent use.
//
// Errors that are not refusals of package jobs begin with "riverjobs: " and wrap what pgx or River returned. After such
// an error of Submit during the commit, it is not known whether there is a job: submit again with the same Key.
type Engine struct {
	mux   *jobs.Mux
	pool  *pgxpool.Pool
	conf  config
	river *river.Client[pgx.Tx]
	name  string // by which other workers know this one
	works bool   // has workers, and kinds for them
	watch *remote.Notices
	mint  atomic.Pointer[remote.Mint] // nil until the database was asked for it

	mu      sync.Mutex
	running map[int64]string    // ids by those of River
	ended   map[int64]time.Time // when, of those whose end River may not have written yet
	sight   sight

	closed  atomic.Bool   // accepts nothing any more
	life    sync.Mutex    // of what follows
	stopped chan struct{} // closed when no job runs and none will; nil until started
	stop    sync.Once
	beats   sync.WaitGroup
	beating *pgx.Conn // of beat
}

var _ jobs.Engine = (*Engine)(nil)

// New returns an engine that takes the kinds of m and keeps their jobs in the database of pool, on which [Migrate] must
// have run. New does not contact the database. It panics if pool, m or an option is nil, or if River does not accept
// the name of the schema or of a kind: the name of a kind may have 100 bytes at most.
func New(pool *pgxpool.Pool, m *jobs.Mux, opts ...Option) *Engine {
	if pool == nil || m == nil {
		panic("riverjobs: New: it needs the pool of a database and a Mux with the handlers")
	}
	c := config{
		queue: "spillgate", unfinished: 10000, payload: 64 << 10, result: 1 << 20, shareBytes: 16 << 20,
		retain: time.Hour, poll: time.Second, lease: 30 * time.Second, idle: listenIdle,
		logger: slog.New(slog.DiscardHandler),
	}
	c.share = c.unfinished / 4
	for i, o := range opts {
		if o == nil {
			panic(fmt.Sprintf("riverjobs: New: option %d is nil; leave it out", i))
		}
		o.apply(&c)
	}
	for _, kind := range m.Kinds() {
		checkKind(kind)
	}
	e := &Engine{mux: m, pool: pool, conf: c, name: workerName(), running: make(map[int64]string), ended: make(map[int64]time.Time)}
	e.watch = remote.NewNotices(e.hear, askTold)
	rc := &river.Config{
		ID: e.name, Schema: c.schema, Logger: c.logger, PollOnly: c.pollOnly,
		FetchCooldown: min(fetchCooldown, c.poll), FetchPollInterval: c.poll,
		FetchOnlyKnownKinds: true, SkipUnknownJobCheck: true, ErrorHandler: errorHandler{},
		// How long an attempt may take and a job is kept is a matter of its kind, and whether a worker is lost of its lease.
		JobTimeout: -1, RescueStuckJobsAfter: 100 * 365 * 24 * time.Hour,
		CancelledJobRetentionPeriod: -1, CompletedJobRetentionPeriod: -1, DiscardedJobRetentionPeriod: -1,
	}
	if e.works = c.workers > 0 && len(m.Kinds()) > 0; e.works {
		rc.Queues = map[string]river.QueueConfig{c.queue: {MaxWorkers: c.workers}}
		rc.Workers = e.workers()
	}
	var err error
	if e.river, err = river.NewClient(riverpgxv5.New(pool), rc); err != nil {
		panic("riverjobs: New: " + err.Error())
	}
	return e
}

// fetchCooldown is how long a worker waits between two looks for jobs. River's own, 100 ms, is also how long an insert is
// not told to workers after another was.
const fetchCooldown = 20 * time.Millisecond

func (e *Engine) sql(s string) string { return inSchema(s, e.conf.schema) }

// fault says what went wrong with the database, or that ctx has ended.
func (e *Engine) fault(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return fmt.Errorf("riverjobs: %w", err)
}

// ids returns what makes and recognises ids. It asks the database until that has answered once.
func (e *Engine) ids(ctx context.Context) (remote.Mint, error) {
	if m := e.mint.Load(); m != nil {
		return *m, nil
	}
	var key []byte
	err := e.pool.QueryRow(ctx, e.sql("SELECT key FROM {s}spillgate_key")).Scan(&key)
	switch {
	case missingTable(err), errors.Is(err, pgx.ErrNoRows):
		return "", fmt.Errorf("riverjobs: the database lacks the tables of this package: call Migrate first: %w", err)
	case err != nil:
		return "", e.fault(ctx, err)
	}
	m := remote.Mint(key)
	e.mint.Store(&m)
	return m, nil
}

// known reports whether id is one that was given out; else there has never been such a job.
func (e *Engine) known(ctx context.Context, id string) error {
	m, err := e.ids(ctx)
	if err == nil && !m.GaveOut(id) {
		err = jobs.ErrNotFound
	}
	return err
}

// riverKind is the kind that a job has in River, where some characters cannot be in one.
func riverKind(kind string) string {
	b := []byte("spillgate:")
	for _, c := range []byte(kind) {
		switch {
		case c >= '0' && c <= '9', c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', c == '_', c == '-', c == '.', c == '/', c == ':':
			b = append(b, c)
		default:
			b = fmt.Appendf(b, "+%02X", c)
		}
	}
	return string(b)
}

// checkKind panics if a kind cannot be one of River's: there it may have 127 bytes.
func checkKind(kind string) {
	if len(riverKind(kind)) > 110 || !utf8.ValidString(kind) || strings.Contains(kind, "\x00") {
		panic(fmt.Sprintf("riverjobs: New: kind %q: the name of a kind is UTF-8 without NUL of at most 100 bytes, of which each that is no letter, digit, or one of _-./: counts as three", kind))
	}
}
