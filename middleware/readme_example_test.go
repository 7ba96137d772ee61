package middleware_test

import (
	"fmt"
	"net/http"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
)

// router has the Use method of chi and gorilla/mux.
type router struct{ h http.Handler }

func (r *router) Use(f func(http.Handler) http.Handler) { r.h = f(r.h) }

// Each layer works alone, around a handler of the standard mux and in a router.
func ExampleLayer() {
	p := pool.New(pool.WithSlots(1))
	l := limiter.NewRate(10, 20)
	report := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "report") })

	mux := http.NewServeMux()
	mux.Handle("POST /report", middleware.Pool(p).Handler(report))

	r := &router{mux}
	r.Use(middleware.Rate(l).Handler)

	fmt.Println(get(r.h, "POST", "/report").Status)
	// Output: 200 OK
}
