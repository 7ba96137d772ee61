package spillgate_test

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// This file holds what a linter cannot know: the rules of the house as a whole.

const module = "github.com/spillgate/spillgate"

func goCommand(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

func TestThreeRequires(t *testing.T) {
	var mod struct {
		Module  struct{ Path string }
		Go      string
		Require []struct{ Path string }
		Replace []struct{}
		Tool    []struct{}
	}
	if err := json.Unmarshal([]byte(goCommand(t, ".", "mod", "edit", "-json")), &mod); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range mod.Require {
		got = append(got, r.Path)
	}
	slices.Sort(got)
	want := []string{"github.com/hashicorp/golang-lru/v2", "github.com/sony/gobreaker/v2", "golang.org/x/time"}
	if !slices.Equal(got, want) {
		t.Errorf("go.mod requires %v; want exactly %v: anything else belongs in a nested module", got, want)
	}
	if mod.Module.Path != module || mod.Go != "1.26.0" || len(mod.Replace) > 0 || len(mod.Tool) > 0 {
		t.Errorf("go.mod: module %s, go %s, %d replaces, %d tools; want %s, 1.26.0, none, none",
			mod.Module.Path, mod.Go, len(mod.Replace), len(mod.Tool), module)
	}
}

// Packages and what each may import of the module, besides its own subfolders'
// needs. The arrows go one way.
var arrows = map[string][]string{
	".":                           {},
	"limiter":                     {},
	"limiter/limitersim":          {},
	"breaker":                     {},
	"cache":                       {},
	"cache/conformance":           {},
	"pool":                        {"limiter", "pool/internal/waiting"},
	"pool/internal/waiting":       {},
	"pool/jobs":                   {"pool", "pool/internal/waiting", "limiter"},
	"pool/internal/remote":        {"pool", "pool/jobs", "limiter"},
	"middleware":                  {"limiter", "breaker", "cache", "pool", "pool/jobs", "middleware/clientip"},
	"middleware/clientip":         {},
	"middleware/health":           {"limiter", "breaker", "cache", "pool", "middleware"},
	"middleware/outbound":         {"limiter", "breaker", "cache", "pool", "middleware"},
	"middleware/internal/metrics": {"limiter", "breaker", "cache", "pool", "pool/jobs", "middleware", "middleware/health", "middleware/outbound"},
}

// decides are the packages that know nothing of HTTP.
var decides = []string{"limiter", "breaker", "pool", "pool/jobs"}

type listedPackage struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
	Deps       []string
}

// listPackages lists the packages of the root module, by their path in it.
func listPackages(t *testing.T) map[string]listedPackage {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(goCommand(t, ".", "list", "-json=ImportPath,Dir,GoFiles,Imports,Deps", "./...")))
	out := map[string]listedPackage{}
	for dec.More() {
		var p listedPackage
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		out[inModule(p.ImportPath)] = p
	}
	return out
}

func inModule(importPath string) string {
	if importPath == module {
		return "."
	}
	return strings.TrimPrefix(importPath, module+"/")
}

func isExample(name string) bool { return name == "examples" || strings.HasPrefix(name, "examples/") }

func TestArrows(t *testing.T) {
	for name, p := range listPackages(t) {
		may, known := arrows[name]
		if parent, ok := strings.CutSuffix(path.Base(name), "test"); ok && path.Base(path.Dir(name)) == parent {
			// limiter/limitertest is to limiter what httptest is to http.
			may, known = append(arrows[path.Dir(name)], path.Dir(name)), true
		}
		switch {
		case isExample(name):
			continue // the examples may import everything; below, nothing may import them
		case !known:
			t.Errorf("package %s has no line in the table of arrows; say what it may import", name)
			continue
		}
		for _, imp := range p.Imports {
			if strings.HasPrefix(imp, module) && !slices.Contains(may, inModule(imp)) {
				t.Errorf("%s imports %s; it may import %v", name, inModule(imp), may)
			}
			switch imp {
			case "github.com/hashicorp/golang-lru/v2/expirable":
				t.Errorf("%s imports golang-lru's expirable, which starts a goroutine that nobody can stop", name)
			case "log", "log/slog", "expvar", "net/http/pprof", "unsafe", "reflect":
				t.Errorf("%s imports %s: the library logs nothing, registers nothing and keeps to its types", name, imp)
			}
		}
		if slices.Contains(decides, name) && slices.Contains(p.Deps, "net/http") {
			t.Errorf("%s depends on net/http; it decides, and serves a queue worker as well", name)
		}
	}
}

func TestNoFoldersWithoutAConcept(t *testing.T) {
	for name := range listPackages(t) {
		for _, part := range strings.Split(name, "/") {
			switch part {
			case "util", "utils", "common", "helper", "helpers", "types", "misc", "shared":
				t.Errorf("package %s: %q names no concept", name, part)
			}
		}
		if name == "internal" || strings.HasPrefix(name, "internal/") {
			t.Errorf("package %s: no internal folder in the root", name)
		}
	}
}

// Importing a package must do nothing.
func TestNoInit(t *testing.T) {
	for name, p := range listPackages(t) {
		if isExample(name) {
			continue
		}
		for _, file := range p.GoFiles {
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, file), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
					t.Errorf("%s: func init", path.Join(name, file))
				}
			}
		}
	}
}

// Words are put together here so that this file holds none of them.
var forbidden = []struct {
	what string
	re   *regexp.Regexp
}{
	{"a note to finish something later, instead of an issue or an error", regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b[^(]`)},
	{"a path of somebody's machine", regexp.MustCompile(`(^|[\s"'=:(])/(home/|Users/|ro` + `ot/|tm` + `p/w|wo` + `rk/(main|shared|\.))`)},
	{"the host of a package registry", regexp.MustCompile(`proxy\.gol` + `ang\.org|sum\.gol` + `ang\.org|registry\.np` + `mjs\.org|(deb|security)\.deb` + `ian\.org`)},
	{"a merge conflict", regexp.MustCompile(`(?m)^(<<<<` + `<<< |>>>>` + `>>> )`)},
}

func TestTrackedFiles(t *testing.T) {
	cmd := exec.Command("git", "-c", "safe.directory=*", "ls-files", "-z")
	out, err := cmd.Output()
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("git ls-files: %v", err)
		}
		t.Skip("not a git checkout: ", err)
	}
	for name := range strings.SplitSeq(strings.Trim(string(out), "\x00"), "\x00") {
		info, err := os.Lstat(name)
		if err != nil || !info.Mode().IsRegular() {
			continue // deleted and not committed yet, or a link
		}
		if info.Size() > 1<<20 {
			t.Errorf("%s has %d bytes; data goes into a release or is made by a test", name, info.Size())
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range forbidden {
			if m := f.re.FindIndex(text); m != nil {
				line := 1 + strings.Count(string(text[:m[0]]), "\n")
				t.Errorf("%s:%d: %q is %s", name, line, text[m[0]:m[1]], f.what)
			}
		}
	}
}
