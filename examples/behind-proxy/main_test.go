package main

import (
	"io"
	"strings"
	"testing"
)

func TestFlagOutOfRange(t *testing.T) {
	if err := run([]string{"-addr", "127.0.0.1:0", "-drain-wait", "-1s"}, io.Discard); err == nil || !strings.HasPrefix(err.Error(), "-drain-wait") {
		t.Errorf("%v; want an error that begins with the flag", err)
	}
}
