package spillgate_test

import (
	"os"
	"path/filepath"
	"regexp"
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
		names, err := filepath.Glob(pattern)
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

func trimLines(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		b.WriteString(strings.TrimSpace(line))
		b.WriteByte('\n')
	}
	return b.String()
}
