package middleware_test

import (
	"net/http"
	"testing"

	"github.com/spillgate/spillgate/middleware"
)

// Two requests have the same joined key only if all their parts are the same.
func FuzzKeyJoin(f *testing.F) {
	f.Add("a", "bc", "ab", "c")
	f.Add("", "1:", "1:", "")
	f.Add("2:ab", "", "2", ":ab")
	key := middleware.KeyJoin(middleware.KeyHeader("A"), middleware.KeyHeader("B"))
	join := func(t *testing.T, a, b string) string {
		k, err := key(&http.Request{Header: http.Header{"A": {a}, "B": {b}}})
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	f.Fuzz(func(t *testing.T, a1, b1, a2, b2 string) {
		same := a1 == a2 && b1 == b2
		if got := join(t, a1, b1) == join(t, a2, b2); got != same {
			t.Errorf("(%q, %q) and (%q, %q): same key %v, want %v", a1, b1, a2, b2, got, same)
		}
	})
}
