//go:build unix

package riverjobs_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/jobs/jobstest"
	"github.com/spillgate/spillgate/pool/riverjobs"
)

// bouncer starts a PgBouncer before the shared server that gives connections to transactions, and returns its port.
func bouncer(t *testing.T) string {
	t.Helper()
	bin, err := exec.LookPath("pgbouncer")
	if err != nil {
		bin = "/usr/sbin/pgbouncer" // which is on the PATH of root only
	}
	if _, err := os.Stat(bin); err != nil {
		const missing = "the command pgbouncer is missing: install the Debian package pgbouncer"
		if os.Getenv("CI") != "" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	for range 5 { // somebody else may take the port meanwhile
		port, err := freePort()
		if err != nil {
			t.Fatal(err)
		}
		dir, err := os.MkdirTemp(shared.dir, "pgbouncer") // into which the user of the server may look
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{
			"users": `"test" ""`,
			"ini": fmt.Sprintf("[databases]\n* = host=127.0.0.1 port=%s\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %s\nunix_socket_dir =\n"+
				"auth_type = trust\nauth_file = %s\npool_mode = transaction\ndefault_pool_size = 4\n", shared.port, port, filepath.Join(dir, "users")),
		} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		cmd := shared.command("pgbouncer", "-q", filepath.Join(dir, "ini"))
		cmd.Path = bin
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { cmd.Wait(); close(ended) }()
		up := false
		until(t, "pgbouncer takes connections", func() bool {
			select {
			case <-ended:
				return true
			default:
			}
			c, err := pgx.Connect(t.Context(), "postgres://test@127.0.0.1:"+port+"/postgres?sslmode=disable&default_query_exec_mode=exec")
			if up = err == nil; up {
				c.Close(t.Context())
			}
			return up
		})
		if up {
			t.Cleanup(func() { cmd.Process.Kill(); <-ended })
			return port
		}
	}
	t.Fatal("pgbouncer ended five times before it took connections")
	return ""
}

// Connections that are another with each transaction, of which there are few.
func TestPgBouncer(t *testing.T) {
	t.Parallel()
	port := bouncer(t)
	through := func(url string) string { return strings.Replace(url, ":"+shared.port+"/", ":"+port+"/", 1) }
	for _, mode := range []string{"exec", "simple_protocol"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			jobstest.Suite{New: func(t *testing.T, m *jobs.Mux) jobs.Engine {
				url := through(shared.database(t)) + "&default_query_exec_mode=" + mode
				return engine(t, connect(t, url), m, riverjobs.WithWorkers(4), riverjobs.WithPollOnly())
			}}.Run(t)
		})
	}
	t.Run("Migrate", func(t *testing.T) {
		t.Parallel()
		url, err := shared.create("template0")
		if err != nil {
			t.Fatal(err)
		}
		ctx := t.Context()
		if err := riverjobs.Migrate(ctx, connect(t, through(url)+"&default_query_exec_mode=exec"), riverjobs.WithSchema("a")); err != nil {
			t.Fatal(err)
		}
		var locks int
		if err := connect(t, url).QueryRow(ctx, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").Scan(&locks); err != nil || locks != 0 {
			t.Errorf("%d locks stayed with the connections of the proxy, %v", locks, err)
		}
	})
}
