//go:build unix

package spillgate_test

import (
	"bufio"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A shell looks for a folder in CDPATH first, and prints where it found one.
func TestScriptsFindTheirRoot(t *testing.T) {
	elsewhere := t.TempDir()
	if err := os.Mkdir(filepath.Join(elsewhere, "scripts"), 0o755); err != nil {
		t.Fatal(err)
	}
	modules := func(cdpath string) string {
		cmd := exec.Command("scripts/modules")
		cmd.Env = append(os.Environ(), "CDPATH="+cdpath)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("CDPATH=%s scripts/modules: %v", cdpath, err)
		}
		return string(out)
	}
	want := modules("")
	if !strings.HasPrefix(want, ".\n") {
		t.Fatalf("scripts/modules prints %q", want)
	}
	for _, cdpath := range []string{".", elsewhere} {
		if got := modules(cdpath); got != want {
			t.Errorf("with CDPATH=%s scripts/modules prints %q; want %q", cdpath, got, want)
		}
	}
}

// fakeGo is interrupted as the go command is: it ends with an error, and not by the signal.
const fakeGo = `#!/bin/sh
case $1 in
env) echo 1 ;;
list) echo example.com/p ;;
*)
	trap 'exit 1' INT
	echo "ran $*"
	while :; do sleep 1; done
	;;
esac
`

// Ctrl-C goes to all processes in the terminal. What goes on after a failure does not go on after that.
func TestScriptsEndWhenInterrupted(t *testing.T) {
	for _, script := range []string{"test", "lint"} {
		t.Run(script, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range map[string]string{"bin/go": fakeGo, "bin/gofmt": "#!/bin/sh\n", "go.mod": "", "nested/go.mod": "", "scripts/needs": "#!/bin/sh\n"} {
				write(t, filepath.Join(root, name), text)
			}
			for _, name := range []string{script, "modules"} {
				text, err := os.ReadFile("scripts/" + name)
				if err != nil {
					t.Fatal(err)
				}
				write(t, filepath.Join(root, "scripts", name), string(text))
			}
			interrupts := make(chan os.Signal, 1)
			signal.Notify(interrupts, os.Interrupt) // so that the script does not ignore it, whoever has started the test
			defer signal.Stop(interrupts)
			cmd := exec.Command(filepath.Join(root, "scripts", script))
			cmd.Env = append(os.Environ(), "PATH="+filepath.Join(root, "bin")+":"+os.Getenv("PATH"))
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
			ran := 0
			for lines := bufio.NewScanner(out); lines.Scan(); {
				if !strings.HasPrefix(lines.Text(), "ran ") {
					continue
				}
				if ran++; ran > 1 {
					t.Fatalf("after it was interrupted it goes on: %s", lines.Text())
				}
				if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
					t.Fatal(err)
				}
			}
			if ran != 1 {
				t.Error("the script did not run go")
			}
			if err := cmd.Wait(); err == nil {
				t.Error("the script ended well")
			}
		})
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}
