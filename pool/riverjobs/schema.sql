-- What River lacks. {s} is the schema. Everything here may be run again.

CREATE TABLE IF NOT EXISTS {s}spillgate_key (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    key bytea NOT NULL
);

CREATE TABLE IF NOT EXISTS {s}spillgate_worker (
    name    text PRIMARY KEY,
    seen    timestamptz NOT NULL,
    running bigint[] NOT NULL -- ids of River
);

-- Client and key are what a request brings, and so any bytes.
CREATE TABLE IF NOT EXISTS {s}spillgate_job (
    id       text PRIMARY KEY,
    river_id bigint NOT NULL UNIQUE REFERENCES {s}river_job (id) ON DELETE CASCADE,
    kind     text NOT NULL,
    client   bytea NOT NULL,
    key      bytea, -- NULL: none
    hash     bytea, -- of kind and payload, where there is a key
    size     integer NOT NULL,
    retain   interval NOT NULL,
    deadline timestamptz,
    version  bigint NOT NULL DEFAULT 1,
    done     bigint NOT NULL DEFAULT 0,
    total    bigint NOT NULL DEFAULT 0,
    note     text NOT NULL DEFAULT '',
    open     boolean NOT NULL DEFAULT true, -- not final
    expires  timestamptz                    -- final jobs only
);

CREATE UNIQUE INDEX IF NOT EXISTS spillgate_job_key ON {s}spillgate_job (client, key) WHERE key IS NOT NULL;
CREATE INDEX IF NOT EXISTS spillgate_job_open ON {s}spillgate_job (client) INCLUDE (size, deadline) WHERE open;
CREATE INDEX IF NOT EXISTS spillgate_job_deadline ON {s}spillgate_job (deadline) WHERE open AND deadline IS NOT NULL;
CREATE INDEX IF NOT EXISTS spillgate_job_expires ON {s}spillgate_job (expires) WHERE expires IS NOT NULL;

-- Whoever changes a job of River, a version more and those who watch are told in the same transaction. How long it is kept goes by the clock here:
-- finalized_at is by that of the worker.
CREATE OR REPLACE FUNCTION {s}spillgate_job_changed() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed text;
BEGIN
    UPDATE {s}spillgate_job SET
        version = version + 1,
        open = NEW.finalized_at IS NULL,
        expires = CASE WHEN NEW.finalized_at IS NULL THEN NULL WHEN OLD.finalized_at IS NULL THEN now() + retain ELSE expires END,
        done = CASE WHEN NEW.attempt > OLD.attempt THEN 0 ELSE done END,
        total = CASE WHEN NEW.attempt > OLD.attempt THEN 0 ELSE total END,
        note = CASE WHEN NEW.attempt > OLD.attempt THEN '' ELSE note END
    WHERE river_id = NEW.id
    RETURNING id INTO changed;
    IF FOUND THEN
        PERFORM pg_notify(TG_TABLE_SCHEMA || '.spillgate_job', changed);
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER spillgate_job_changed AFTER UPDATE ON {s}river_job FOR EACH ROW
    WHEN (OLD.state IS DISTINCT FROM NEW.state
        OR OLD.attempt IS DISTINCT FROM NEW.attempt
        OR OLD.max_attempts IS DISTINCT FROM NEW.max_attempts
        OR OLD.scheduled_at IS DISTINCT FROM NEW.scheduled_at
        OR OLD.metadata IS DISTINCT FROM NEW.metadata)
    EXECUTE FUNCTION {s}spillgate_job_changed();

-- A worker that was taken for lost may end a job that another has begun or ended since, and River does not tell them apart. Its result is as good as
-- the other's while there is none; what else it says is passed over. What goes back to the queue has an attempt less than it had, and a failure says
-- of which it is.
CREATE OR REPLACE FUNCTION {s}spillgate_job_late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER spillgate_job_late BEFORE UPDATE ON {s}river_job FOR EACH ROW
    WHEN (OLD.kind LIKE 'spillgate:%' AND (
        OLD.finalized_at IS NOT NULL AND NEW.finalized_at IS NOT NULL AND OLD.metadata->'output' IS DISTINCT FROM NEW.metadata->'output'
        OR OLD.state = 'running' AND NEW.state = 'available' AND NEW.attempt < OLD.attempt - 1
        OR OLD.state = 'running' AND cardinality(NEW.errors) > coalesce(cardinality(OLD.errors), 0)
            AND (NEW.errors[cardinality(NEW.errors)]->>'attempt')::int <> OLD.attempt))
    EXECUTE FUNCTION {s}spillgate_job_late();
