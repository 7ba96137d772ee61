package riverjobs

import (
	"context"
	"crypto/rand"
	_ "embed"
	"fmt"
	"log/slog"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

//go:embed schema.sql
var schemaSource string

// inSchema puts a schema in the place of each {s} in a statement; "" is the first in the search_path.
func inSchema(sql, schema string) string {
	if schema != "" {
		schema = pgx.Identifier{schema}.Sanitize() + "."
	}
	return strings.ReplaceAll(sql, "{s}", schema)
}

// migrating is the number of the lock that [Migrate] holds.
const migrating = 0x7370696c6c676174

// Migrate brings the database to what this version of the package needs: the tables of River, and its own. It
// changes nothing where they are there, and may be called by several processes at once. The only option is the schema, which it creates. The user
// of the pool has to be allowed all of that; an engine needs no more than to read and write the tables.
func Migrate(ctx context.Context, pool *pgxpool.Pool, opts ...SchemaOption) error {
	if err := migrate(ctx, pool, opts...); err != nil {
		return fmt.Errorf("riverjobs: Migrate: %w", err)
	}
	return nil
}

func migrate(ctx context.Context, pool *pgxpool.Pool, opts ...SchemaOption) error {
	var c config
	for _, o := range opts {
		o.apply(&c)
	}
	// The lock is a connection's, and one of the pool's may be the only one.
	lock, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig)
	if err != nil {
		return err
	}
	defer lock.Close(context.WithoutCancel(ctx))
	if _, err := lock.Exec(ctx, "SELECT pg_advisory_lock($1)", int64(migrating)); err != nil {
		return err
	}
	if c.schema == "" {
		// A trigger runs with whatever search_path the connection has that fires it.
		if err := lock.QueryRow(ctx, "SELECT current_schema()").Scan(&c.schema); err != nil {
			return err
		}
	} else if _, err := lock.Exec(ctx, "CREATE SCHEMA IF NOT EXISTS "+pgx.Identifier{c.schema}.Sanitize()); err != nil {
		return err
	}
	m, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Schema: c.schema, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	if _, err := m.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, lock, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, inSchema(schemaSource, c.schema)); err != nil {
			return err
		}
		key := make([]byte, keySize)
		rand.Read(key)
		_, err := tx.Exec(ctx, inSchema("INSERT INTO {s}spillgate_key (key) VALUES ($1) ON CONFLICT DO NOTHING", c.schema), key)
		return err
	})
}
