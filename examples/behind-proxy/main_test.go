package main

import (
	"io"
	"strings"
	"testing"
)

func TestFlagOutOfRange(t *testing.T) {
	for _, name := range []string{"-drain-wait", "-work"} {
		if err := run([]string{"-addr", "127.0.0.1:0", name, "-1s"}, io.Discard); err == nil || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("%v; want an error that begins with the flag", err)
		}
	}
}

func TestNoFlag(t *testing.T) {
	if err := run([]string{"-addr", "127.0.0.1:0", "8082"}, io.Discard); err == nil || !strings.Contains(err.Error(), `"8082"`) {
		t.Errorf("%v; want an error that says what was given", err)
	}
}
