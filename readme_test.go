package spillgate_test

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Every Go snippet of the README that is no whole program stands, line for line, in a file that is
// compiled and tested.
func TestReadmeSnippetsAreCompiled(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var sources []string
	for _, pattern := range []string{"middleware/*_test.go", "examples/*/*.go"} {
		names, err := goFiles(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			sources = append(sources, trimLines(string(b)))
		}
	}
	n := 0
	for _, m := range regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(readme), -1) {
		if strings.HasPrefix(m[1], "package main\n") {
			continue // TestConsumerBuildsTheReadmeProgram builds it
		}
		n++
		found := false
		for _, s := range sources {
			found = found || strings.Contains(s, trimLines(m[1]))
		}
		if !found {
			t.Errorf("no compiled file holds the snippet:\n%s", m[1])
		}
	}
	if n == 0 {
		t.Error("README.md holds no snippet")
	}
}

// Whoever reads the first page finds each example.
func TestReadmeListsTheExamples(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(readme), "\n## Examples\n")
	list, _, _ = strings.Cut(list, "\n## ")
	entries, err := os.ReadDir("examples")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() && !strings.Contains(list, "](examples/"+e.Name()+")") {
			t.Errorf("examples/%s is not in the list of examples", e.Name())
		}
	}
}

// What the README calls by name is there: functions, types, options and methods of the packages, as in `limiter.NewRate(10, 20)`.
func TestReadmeNames(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	folders := map[string]string{"limiter": "limiter", "breaker": "breaker", "cache": "cache", "pool": "pool", "middleware": "middleware",
		"clientip": "middleware/clientip", "health": "middleware/health", "outbound": "middleware/outbound", "jobs": "pool/jobs"}
	declared := regexp.MustCompile(`(?m)^(?:func|type) (\w+)|^\t([A-Z]\w*) .*= `)
	names := map[string]map[string]bool{}
	var all strings.Builder
	for _, folder := range folders {
		files, err := goFiles(folder + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		names[folder] = map[string]bool{}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			all.Write(b)
			for _, m := range declared.FindAllSubmatch(b, -1) {
				names[folder][string(m[1])+string(m[2])] = true
			}
		}
	}
	n := 0
	for _, code := range regexp.MustCompile("(?s)```go.*?```|`[^`\n]+`").FindAllString(string(readme), -1) {
		for _, m := range regexp.MustCompile(`\b([a-z]+)\.([A-Z]\w*)`).FindAllStringSubmatch(code, -1) {
			folder, ours := folders[m[1]]
			if !ours {
				continue
			}
			n++
			if !names[folder][m[2]] {
				t.Errorf("%s: package %s has no %s", strings.TrimSpace(code), folder, m[2])
			}
		}
	}
	if n < 30 {
		t.Errorf("%d names found; there are more", n)
	}
	_, counts, _ := strings.Cut(string(readme), "\n| grows | then |\n")
	counts, _, _ = strings.Cut(counts, "\n\n")
	for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(counts, -1) {
		if !strings.Contains(all.String(), "`json:\""+m[1]+"\"`") {
			t.Errorf("no Stats have %s", m[0])
		}
	}
	for _, m := range regexp.MustCompile("`(Example_\\w+)`").FindAllStringSubmatch(string(readme), -1) {
		if !strings.Contains(all.String(), "func "+m[1]+"(") {
			t.Errorf("there is no %s", m[0])
		}
	}
}

// Every command in the documentation is there to be run: the folder, the tests or benchmarks, the flags, the
// targets of make.
func TestCommandsInTheDocumentation(t *testing.T) {
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob("examples/*/README.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, page := range append(pages, "README.md", "CONTRIBUTING.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		commands := regexp.MustCompile("(?m)`((?:cd [^` ]+ && )?(?:go test|go run|make) [^`]*)`|^(?:    )?(go (?:test|run) .*)$").FindAllStringSubmatch(string(text), -1)
		for _, m := range commands {
			n++
			command, _, _ := strings.Cut(m[1]+m[2], " #")
			folder := "."
			if m[2] == "" && page != "README.md" && page != "CONTRIBUTING.md" && !strings.Contains(command, " ./") && !strings.HasPrefix(command, "make") {
				folder = path.Dir(page) // "in this folder"
			}
			if problem := missing(folder, command, string(makefile)); problem != "" {
				t.Errorf("%s: %s: %s", page, command, problem)
			}
		}
	}
	if n < 50 {
		t.Errorf("%d commands found; there are more", n)
	}
}

// missing says what a command names that is not there.
func missing(folder, command, makefile string) string {
	words := strings.Fields(strings.NewReplacer("'", "", "$$", "$").Replace(command))
	if words[0] == "cd" {
		folder, words = words[1], words[3:]
	}
	if words[0] == "make" {
		if !strings.Contains(makefile, "\n"+words[1]+":") {
			return "no such target"
		}
		return ""
	}
	pattern, flags := ".", []string(nil)
	for i := 2; i < len(words); i++ {
		w := words[i]
		switch {
		case w == "-run" || w == "-bench":
			i++
			if words[i] != "^$" {
				pattern = words[i]
			}
		case strings.HasPrefix(w, "./"):
			folder = path.Join(folder, w)
		case strings.HasPrefix(w, "-") && !slices.Contains([]string{"-v", "-benchmem", "-count"}, w):
			flags = append(flags, w[1:])
		}
	}
	var source strings.Builder
	names, _ := goFiles(filepath.Join(folder, "*.go"))
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return err.Error()
		}
		source.Write(b)
	}
	if len(names) == 0 {
		return "no package in " + folder
	}
	for _, f := range flags {
		if !strings.Contains(source.String(), `"`+f+`"`) {
			return "no flag -" + f
		}
	}
	if words[1] == "run" {
		return ""
	}
	re, err := regexp.Compile(pattern)
	if err != nil {
		return err.Error()
	}
	for _, m := range regexp.MustCompile(`func ((?:Test|Benchmark)\w+)\(`).FindAllStringSubmatch(source.String(), -1) {
		if re.MatchString(m[1]) {
			return ""
		}
	}
	return "no test or benchmark of that name"
}

// goFiles returns the files of a pattern but for those that Go passes over, as the lock of an editor in which a file is open.
func goFiles(pattern string) ([]string, error) {
	names, err := filepath.Glob(pattern)
	return slices.DeleteFunc(names, func(name string) bool { return strings.HasPrefix(filepath.Base(name), ".") }), err
}

func TestGoFilesWhileOneIsEdited(t *testing.T) {
	dir := t.TempDir()
	open, lock := filepath.Join(dir, "a_test.go"), filepath.Join(dir, ".#a_test.go")
	if err := os.WriteFile(open, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("user@host.1:2", lock); err != nil { // leads nowhere
		t.Skip("no links here: ", err)
	}
	if names, err := goFiles(filepath.Join(dir, "*_test.go")); err != nil || !slices.Equal(names, []string{open}) {
		t.Errorf("%q, %v; want %q", names, err, open)
	}
}

func trimLines(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		b.WriteString(strings.TrimSpace(line))
		b.WriteByte('\n')
	}
	return b.String()
}
