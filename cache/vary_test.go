package cache_test

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/spillgate/spillgate/cache"
)

// A client that names no coding, as many a monitor, does not turn off for all others what a layer inside compresses, also where that leaves the
// entity tag as it was. What was not compressed for a client that named one is not compressed for others either.
func TestPlainVariantIsNotOfferedForACoding(t *testing.T) {
	for _, test := range []struct {
		name   string
		zip    bool // the layer compresses
		asks   []string
		coding []string // that each gets
		made   int      // in full
	}{
		{"a plain one first", true, []string{"", "gzip", "gzip", "", "br"}, []string{"", "gzip", "gzip", "", ""}, 3},
		{"identity first", true, []string{"identity", "gzip;q=0.5, br;q=0"}, []string{"", "gzip"}, 2},
		{"others that name it", true, []string{"gzip", "gzip, br", "deflate, gzip"}, []string{"gzip", "gzip", "gzip"}, 1},
		{"nothing is compressed", false, []string{"gzip", "gzip, br", "br"}, []string{"", "", ""}, 1},
		{"none of them is named", false, []string{"identity", "", "*", "gzip;q=0"}, []string{"", "", "", ""}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			made := 0
			h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				hd := w.Header()
				hd.Set("Cache-Control", "max-age=60")
				hd.Set("Vary", "Accept-Encoding")
				hd.Set("Etag", `"1"`)
				if r.Header.Get("If-None-Match") != "" {
					w.WriteHeader(http.StatusNotModified)
					return
				}
				made++
				if test.zip && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
					hd.Set("Content-Encoding", "gzip")
				}
				io.WriteString(w, "hello")
			}))
			for i, asks := range test.asks {
				var fields []string
				if asks != "" {
					fields = []string{"Accept-Encoding: " + asks}
				}
				want(t, "coding of request "+strconv.Itoa(i), get(h, "http://example.com/x", fields...).Header.Get("Content-Encoding"), test.coding[i])
			}
			want(t, "made", made, test.made)
		})
	}
}
