package cache_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/spillgate/spillgate/cache"
)

func ExampleNew() {
	c := cache.New(64 << 20) // bytes
	h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Println("the handler runs")
		w.Header().Set("Cache-Control", "public, max-age=60")
		io.WriteString(w, "hello")
	}))

	for range 2 {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest("GET", "http://example.com/", nil))
		fmt.Println(rec.Body, "|", rec.Header().Get("Cache-Status"))
	}
	// Output:
	// the handler runs
	// hello | spillgate; fwd=uri-miss; fwd-status=200; stored
	// hello | spillgate; hit; ttl=60
}

// A route may have rules of its own, over those of the cache.
func ExampleCache_Handler() {
	c := cache.New(64 << 20)
	report := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Println("making the report for", r.URL.Query().Get("year"))
		io.WriteString(w, "report")
	})
	mux := http.NewServeMux()
	mux.Handle("GET /report", c.Handler(report,
		cache.WithTTL(time.Hour), // where the handler says nothing
		cache.WithQuery("year"),  // and nothing else in the query changes the report
	))

	for _, url := range []string{"/report?year=2026", "/report?utm_source=mail&year=2026", "/report?year=2025"} {
		mux.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", url, nil))
	}
	// Output:
	// making the report for 2026
	// making the report for 2025
}

func ExampleCache_PurgeTag() {
	c := cache.New(64 << 20)
	h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=3600")
		w.Header().Set("Cache-Tag", "product-7, catalogue")
	}))
	for _, path := range []string{"/product/7", "/product/7/reviews"} {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", path, nil))
	}
	fmt.Println("removed", c.PurgeTag("product-7"))
	// Output: removed 2
}

func ExampleCache_PurgeHandler() {
	c := cache.New(64 << 20)
	admin := c.PurgeHandler(func(r *http.Request) bool {
		user, password, _ := r.BasicAuth()
		return user == "ops" && password == "secret" // compare in constant time in earnest
	})
	rec := httptest.NewRecorder()
	admin.ServeHTTP(rec, httptest.NewRequest("POST", "/purge?prefix=/blog/", nil))
	fmt.Println(rec.Code)

	req := httptest.NewRequest("POST", "/purge?prefix=/blog/", nil)
	req.SetBasicAuth("ops", "secret")
	rec = httptest.NewRecorder()
	admin.ServeHTTP(rec, req)
	fmt.Print(rec.Code, " ", rec.Body)
	// Output:
	// 403
	// 200 {"purged":0}
}
