package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// What it prints can be opened, whatever port it was given, and nothing is printed where it cannot listen.
func TestSaysWhereItListens(t *testing.T) {
	ctx, end := context.WithCancel(t.Context())
	defer end()
	lines, out := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, "127.0.0.1:0", true, out) }()
	line, err := bufio.NewReader(lines).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Get(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || !strings.Contains(string(b), "spillgate_") {
		t.Errorf("%s: %s, %v, and no metrics of ours", line, res.Status, err)
	}
	http.DefaultClient.CloseIdleConnections()
	end()
	if err := <-ended; err != nil {
		t.Error(err)
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var said strings.Builder
	if err := run(t.Context(), l.Addr().String(), true, &said); err == nil || said.Len() > 0 {
		t.Errorf("a port in use: %v, and it said %q", err, said.String())
	}
}
