// Package routers shows each layer in the routers that people use. A layer's Handler is a func(http.Handler)
// http.Handler, which all of them accept as it is (echo through its own WrapMiddleware).
//
// Every function here serves the same two routes: GET /hello/{name}, and POST /report, which computes and runs in a
// pool. A rate limit and a concurrency limit are around these and everything else. Each route has a breaker of its own,
// so that a failing route does not close the other. A breaker knows the route by the mux of the standard library inside
// it, or by [http.Request.Pattern], which chi sets for what is in a Group; for the other routers a middleware here sets
// it. A whole stack goes in the same place, r.Use(stack.Handler), so that a Trace and metrics know the route as well.
package routers

import (
	"errors"
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

// Limits are what the layers of one server use.
type Limits struct {
	Rate        *limiter.Rate
	Concurrency *limiter.Concurrency
	Breakers    *breaker.Group
	Pool        *pool.Pool
}

// Std uses nothing but the standard library.
func Std(l Limits) http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /hello/{name}", greet(func(r *http.Request) string { return r.PathValue("name") }))
	m.Handle("POST /report", middleware.Pool(l.Pool).Handler(http.HandlerFunc(report)))
	return middleware.Wrap(m, middleware.Rate(l.Rate), middleware.Concurrency(l.Concurrency), middleware.Breaker(l.Breakers))
}

// Chi uses go-chi/chi. Its middlewares run before it has found the route, except those of a Group.
func Chi(l Limits) http.Handler {
	r := chi.NewRouter()
	r.Use(middleware.Rate(l.Rate).Handler)
	r.Use(middleware.Concurrency(l.Concurrency).Handler)
	r.Group(func(r chi.Router) {
		r.Use(middleware.Breaker(l.Breakers).Handler)
		r.Get("/hello/{name}", greet(func(r *http.Request) string { return chi.URLParam(r, "name") }))
		r.With(middleware.Pool(l.Pool).Handler).Post("/report", report)
	})
	return r
}

// Gorilla uses gorilla/mux. Its middlewares run after it has found the route, but have to be told which it is.
func Gorilla(l Limits) http.Handler {
	r := mux.NewRouter()
	r.Use(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Pattern, _ = mux.CurrentRoute(r).GetPathTemplate() // "" for a route without a path
			next.ServeHTTP(w, r)
		})
	})
	r.Use(middleware.Rate(l.Rate).Handler, middleware.Concurrency(l.Concurrency).Handler, middleware.Breaker(l.Breakers).Handler)
	r.HandleFunc("/hello/{name}", greet(func(r *http.Request) string { return mux.Vars(r)["name"] })).Methods("GET")
	r.Handle("/report", middleware.Pool(l.Pool).Handler(http.HandlerFunc(report))).Methods("POST")
	return r
}

// Alice uses justinas/alice to chain, around the standard library's mux.
func Alice(l Limits) http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /hello/{name}", greet(func(r *http.Request) string { return r.PathValue("name") }))
	m.Handle("POST /report", alice.New(middleware.Pool(l.Pool).Handler).ThenFunc(report))
	return alice.New(
		middleware.Rate(l.Rate).Handler,
		middleware.Concurrency(l.Concurrency).Handler,
		middleware.Breaker(l.Breakers).Handler,
	).Then(m)
}

// Echo uses labstack/echo. Its middlewares run after it has found the route, but have to be told which it is. An error
// that a handler returns is answered outside all middlewares, where no breaker sees it, unless one inside the breaker
// answers it.
func Echo(l Limits) http.Handler {
	e := echo.New()
	e.Use(
		func(next echo.HandlerFunc) echo.HandlerFunc {
			return func(c echo.Context) error {
				c.Request().Pattern = c.Path()
				return next(c)
			}
		},
		echo.WrapMiddleware(middleware.Rate(l.Rate).Handler),
		echo.WrapMiddleware(middleware.Concurrency(l.Concurrency).Handler),
		echo.WrapMiddleware(middleware.Breaker(l.Breakers).Handler),
		func(next echo.HandlerFunc) echo.HandlerFunc {
			return func(c echo.Context) error {
				if err := next(c); err != nil {
					c.Error(err)
				}
				return nil
			}
		},
	)
	e.GET("/hello/:name", func(c echo.Context) error { return hello(c.Response(), c.Param("name")) })
	e.POST("/report", echo.WrapHandler(http.HandlerFunc(report)), echo.WrapMiddleware(middleware.Pool(l.Pool).Handler))
	return e
}

// hello fails for a name that nobody has.
func hello(w http.ResponseWriter, name string) error {
	if name == "nobody" {
		return errors.New("nobody is there")
	}
	_, err := io.WriteString(w, "hello "+name+"\n")
	return err
}

// greet is hello as a handler of net/http; each router has its own way to the name in the path.
func greet(name func(*http.Request) string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := hello(w, name(r)); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}
}

func report(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.WriteString(w, "computed\n")
}
