package spillgate_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// newConsumer makes a module outside this tree that uses it through a replace,
// with the given main.go.
func newConsumer(t *testing.T, main string) (dir string) {
	t.Helper()
	root, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	// A workspace of whoever runs the test, or flags, must not reach in.
	t.Setenv("GOWORK", "off")
	t.Setenv("GOFLAGS", "-mod=mod")
	goCommand(t, dir, "mod", "init", "example.com/consumer")
	goCommand(t, dir, "mod", "edit", "-go=1.26.0", "-require="+module+"@v0.0.0", "-replace="+module+"="+root)
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(main), 0o600); err != nil {
		t.Fatal(err)
	}
	// The sums are the root's: with them, and a filled module cache, nothing
	// is fetched.
	sums, err := os.ReadFile("go.sum")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "go.sum"), sums, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// The program on the first page builds in a module of its own, and brings in
// three modules besides this one.
func TestConsumerBuildsTheReadmeProgram(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a program")
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	program := regexp.MustCompile("(?s)```go\n(package main\n.*?)```").FindSubmatch(readme)
	if program == nil {
		t.Fatal("README.md holds no Go program")
	}
	if lines := strings.Count(string(program[1]), "\n"); lines > 25 {
		t.Errorf("the README's program has %d lines; more than 25 is no first program", lines)
	}
	dir := newConsumer(t, string(program[1]))
	goCommand(t, dir, "vet", "./...")
	goCommand(t, dir, "build", "-buildvcs=false", "-o", "consumer", ".")

	modules := strings.Fields(goCommand(t, dir, "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "."))
	slices.Sort(modules)
	modules = slices.Compact(modules)
	allowed := []string{"example.com/consumer", "github.com/hashicorp/golang-lru/v2", "github.com/sony/gobreaker/v2", module, "golang.org/x/time"}
	for _, m := range modules {
		if !slices.Contains(allowed, m) {
			t.Errorf("the program is built from %s too; allowed: %v", m, allowed)
		}
	}
}

// A module below the root is used in the same way, with a replace of its own.
func TestConsumerBuildsWithANestedModule(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a program")
	}
	for nested, program := range map[string]string{
		"limiter/redisstore": `package main

import (
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/limiter/redisstore"
)

func main() {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379"})
	fmt.Println(limiter.NewRate(10, 20, limiter.WithStore(redisstore.New(client))).Policies())
}
`,
		"pool/riverjobs": `package main

import (
	"context"
	"log"
	"net/http"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/riverjobs"
)

func main() {
	pool, err := pgxpool.New(context.Background(), "postgres://127.0.0.1/app")
	if err != nil {
		log.Fatal(err)
	}
	http.Handle("/reports/", middleware.Async(riverjobs.New(pool, jobs.NewMux()), "report"))
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}
`,
		"pool/redisjobs": `package main

import (
	"log"
	"net/http"

	"github.com/redis/go-redis/v9"

	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/redisjobs"
)

func main() {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379"})
	http.Handle("/reports/", middleware.Async(redisjobs.New(client, jobs.NewMux()), "report"))
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}
`,
	} {
		t.Run(nested, func(t *testing.T) {
			dir := newConsumer(t, program)
			path, err := filepath.Abs(nested)
			if err != nil {
				t.Fatal(err)
			}
			goCommand(t, dir, "mod", "edit", "-require="+module+"/"+nested+"@v0.0.0", "-replace="+module+"/"+nested+"="+path)
			sums, err := os.ReadFile(filepath.Join(nested, "go.sum"))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "go.sum"), sums, 0o600); err != nil {
				t.Fatal(err)
			}
			goCommand(t, dir, "vet", "./...")
		})
	}
}

// Importing every package does nothing: no goroutine, no handler, no flag, no
// output.
func TestConsumerImportsEverything(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a program")
	}
	var imports strings.Builder
	for name, p := range listPackages(t) {
		if !isExample(name) && !strings.Contains(name, "/internal/") { // which nobody else can import
			imports.WriteString("\t_ \"" + p.ImportPath + "\"\n")
		}
	}
	dir := newConsumer(t, `package main

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"runtime"

`+imports.String()+`)

func main() {
	if n := runtime.NumGoroutine(); n != 1 {
		fmt.Println(n, "goroutines")
	}
	flag.VisitAll(func(f *flag.Flag) { fmt.Println("flag", f.Name) })
	for _, path := range []string{"/", "/debug/vars", "/debug/pprof/", "/debug/stats", "/livez", "/readyz", "/metrics"} {
		r, _ := http.NewRequest("GET", path, nil)
		if _, pattern := http.DefaultServeMux.Handler(r); pattern != "" {
			fmt.Println("handler at", pattern)
		}
	}
	fmt.Fprintln(os.Stderr, "ran")
}
`)
	goCommand(t, dir, "build", "-buildvcs=false", "-o", "consumer", ".")
	cmd := exec.Command(filepath.Join(dir, "consumer"))
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	if stdout.String() != "" || stderr.String() != "ran\n" {
		t.Errorf("importing all packages has effects:\n%s%s", stdout.String(), stderr.String())
	}
}
