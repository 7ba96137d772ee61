package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

func TestCDN(t *testing.T) {
	calls := 0
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		w.Header().Set("Cache-Control", "max-age=60")
		io.WriteString(w, "page")
	}))
	defer site.Close()
	target, err := url.Parse(site.URL)
	if err != nil {
		t.Fatal(err)
	}
	public, private := newCDN(target, 1<<20)
	cdn, admin := httptest.NewServer(public), httptest.NewServer(private)
	defer cdn.Close()
	defer admin.Close()

	status := func() string {
		res, err := http.Get(cdn.URL + "/x")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if b, _ := io.ReadAll(res.Body); string(b) != "page" {
			t.Errorf("body %q", b)
		}
		return res.Header.Get("Cache-Status")
	}
	for _, want := range []string{"cdn; fwd=uri-miss; fwd-status=200; stored", "cdn; hit; ttl="} {
		if got := status(); !strings.HasPrefix(got, want) {
			t.Errorf("Cache-Status %q, want %q", got, want)
		}
	}
	res, err := http.PostForm(admin.URL+"/purge", url.Values{"url": {cdn.URL + "/x"}})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); string(b) != "{\"purged\":1}\n" {
		t.Errorf("purge answered %q", b)
	}
	if got := status(); !strings.Contains(got, "uri-miss") || calls != 2 {
		t.Errorf("after the purge: %q, %d calls", got, calls)
	}
}
