package riverjobs

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"fmt"
	"log/slog"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/spillgate/spillgate/pool/internal/remote"
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

// Migrate brings the database to what this version of the package needs: the tables of River, and its own. If they are
// already there, it changes nothing and does not wait for anybody who uses them. Several processes may call it at once.
// The only option is the schema, which Migrate creates. The user of the pool must be allowed to do all of that; an
// engine only needs USAGE on the schema and on its sequences, and SELECT, INSERT, UPDATE and DELETE on its tables.
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
	// One of the pool's connections may be the only one, and that is River's.
	conn, err := dial(ctx, pool)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if c.schema == "" {
		// A trigger runs with whatever search_path the connection has that fires it.
		err = conn.QueryRow(ctx, "SELECT current_schema()").Scan(&c.schema)
	} else {
		err = alone(ctx, conn, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "CREATE SCHEMA IF NOT EXISTS "+pgx.Identifier{c.schema}.Sanitize())
			return err
		})
	}
	if err != nil {
		return err
	}
	m, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Schema: c.schema, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	return alone(ctx, conn, func(tx pgx.Tx) error {
		if _, err := m.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
			return err
		}
		return ours(ctx, tx, c.schema)
	})
}

// dial makes a connection as the pool makes its own.
func dial(ctx context.Context, pool *pgxpool.Pool) (*pgx.Conn, error) {
	c := pool.Config()
	if c.BeforeConnect != nil {
		if err := c.BeforeConnect(ctx, c.ConnConfig); err != nil {
			return nil, err
		}
	}
	conn, err := pgx.ConnectConfig(ctx, c.ConnConfig)
	if err == nil && c.AfterConnect != nil {
		if err = c.AfterConnect(ctx, conn); err != nil {
			conn.Close(ctx)
		}
	}
	return conn, err
}

// alone runs f in a transaction that no other Migrate has at the same time. A lock of the connection's would stay behind a proxy that gives
// connections to transactions. What another has done before is to be seen, also where SERIALIZABLE is the default.
func alone(ctx context.Context, conn *pgx.Conn, f func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(migrating)); err != nil {
			return err
		}
		return f(tx)
	})
}

// ours makes what River lacks. Statements that find everything there would still wait for all who have written a job in an open transaction, and
// whoever wants to write one for them: so the comment of a table says that it has been done.
func ours(ctx context.Context, tx pgx.Tx, schema string) error {
	version := fmt.Sprintf("%x", sha256.Sum256([]byte(schemaSource)))
	var done bool
	err := tx.QueryRow(ctx, "SELECT coalesce(obj_description(to_regclass($1), 'pg_class'), '') = $2", inSchema("{s}spillgate_key", schema), version).Scan(&done)
	if err != nil || done {
		return err
	}
	if _, err := tx.Exec(ctx, inSchema(schemaSource+"\nCOMMENT ON TABLE {s}spillgate_key IS '"+version+"'", schema)); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, inSchema("INSERT INTO {s}spillgate_key (key) VALUES ($1) ON CONFLICT DO NOTHING", schema), []byte(remote.NewMint()))
	return err
}
