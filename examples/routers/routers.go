// Package routers shows each layer in the routers that people use: a layer's
// Handler is a func(http.Handler) http.Handler, which all of them take as it is
// (echo through its own WrapMiddleware).
//
// Every function here serves the same two routes: GET /hello/{name}, which has a
// rate limit and a concurrency limit around it with everything else, and POST
// /report, which computes and runs in a pool.
package routers

import (
	"io"
	"net/http"

	"github.com/go-chi/chi/v5"
	"github.com/gorilla/mux"
	"github.com/justinas/alice"
	"github.com/labstack/echo/v4"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
)

// Limits are what the layers of one server hold on to.
type Limits struct {
	Rate        *limiter.Rate
	Concurrency *limiter.Concurrency
	Breakers    *breaker.Group
	Pool        *pool.Pool
}

// Std uses nothing but the standard library.
func Std(l Limits) http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /hello/{name}", func(w http.ResponseWriter, r *http.Request) { hello(w, r.PathValue("name")) })
	m.Handle("POST /report", middleware.Pool(l.Pool).Handler(http.HandlerFunc(report)))
	return middleware.Wrap(m, middleware.Rate(l.Rate), middleware.Concurrency(l.Concurrency), middleware.Breaker(l.Breakers))
}

// Chi uses go-chi/chi.
func Chi(l Limits) http.Handler {
	r := chi.NewRouter()
	r.Use(middleware.Rate(l.Rate).Handler)
	r.Use(middleware.Concurrency(l.Concurrency).Handler)
	r.Use(middleware.Breaker(l.Breakers).Handler)
	r.Get("/hello/{name}", func(w http.ResponseWriter, r *http.Request) { hello(w, chi.URLParam(r, "name")) })
	r.With(middleware.Pool(l.Pool).Handler).Post("/report", report)
	return r
}

// Gorilla uses gorilla/mux.
func Gorilla(l Limits) http.Handler {
	r := mux.NewRouter()
	r.Use(middleware.Rate(l.Rate).Handler, middleware.Concurrency(l.Concurrency).Handler, middleware.Breaker(l.Breakers).Handler)
	r.HandleFunc("/hello/{name}", func(w http.ResponseWriter, r *http.Request) { hello(w, mux.Vars(r)["name"]) }).Methods("GET")
	r.Handle("/report", middleware.Pool(l.Pool).Handler(http.HandlerFunc(report))).Methods("POST")
	return r
}

// Alice uses justinas/alice to chain, around the standard library's mux.
func Alice(l Limits) http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /hello/{name}", func(w http.ResponseWriter, r *http.Request) { hello(w, r.PathValue("name")) })
	m.Handle("POST /report", alice.New(middleware.Pool(l.Pool).Handler).ThenFunc(report))
	return alice.New(
		middleware.Rate(l.Rate).Handler,
		middleware.Concurrency(l.Concurrency).Handler,
		middleware.Breaker(l.Breakers).Handler,
	).Then(m)
}

// Echo uses labstack/echo.
func Echo(l Limits) http.Handler {
	e := echo.New()
	e.Use(
		echo.WrapMiddleware(middleware.Rate(l.Rate).Handler),
		echo.WrapMiddleware(middleware.Concurrency(l.Concurrency).Handler),
		echo.WrapMiddleware(middleware.Breaker(l.Breakers).Handler),
	)
	e.GET("/hello/:name", func(c echo.Context) error { hello(c.Response(), c.Param("name")); return nil })
	e.POST("/report", echo.WrapHandler(http.HandlerFunc(report)), echo.WrapMiddleware(middleware.Pool(l.Pool).Handler))
	return e
}

func hello(w http.ResponseWriter, name string) {
	_, _ = io.WriteString(w, "hello "+name+"\n")
}

func report(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.WriteString(w, "computed\n")
}
