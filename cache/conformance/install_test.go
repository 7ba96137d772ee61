//go:build unix

package conformance_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// fakeNpm puts the suite where npm would, and then what the suite needs, unless it is to be ended between the two.
const fakeNpm = `#!/bin/sh
mkdir -p node_modules/http-cache-tests node_modules/node-fetch
: >node_modules/http-cache-tests/cli.mjs
[ -z "$HALF_WAY" ] || kill -KILL $$
: >node_modules/node-fetch/package.json
`

func TestInstallationEndedHalfWay(t *testing.T) {
	dir, bin := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "npm"), []byte(fakeNpm), 0o755); err != nil {
		t.Fatal(err)
	}
	install := func(env string) (string, error) {
		cmd := exec.Command("sh", "install.sh")
		cmd.Env = append(os.Environ(), "SPILLGATE_CONFORMANCE_DIR="+dir, "PATH="+bin+":"+os.Getenv("PATH"), env)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		return strings.TrimSpace(string(out)), err
	}
	if out, err := install("HALF_WAY=1"); err == nil {
		t.Errorf("an installation that was ended half way printed %q and ended well", out)
	}
	suite, err := install("HALF_WAY=")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cli.mjs", "../node-fetch/package.json"} {
		if _, err := os.Stat(filepath.Join(suite, name)); err != nil {
			t.Errorf("after the next installation: %v", err)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "new.*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
