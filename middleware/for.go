package middleware

import (
	"fmt"
	"net/http"

	"github.com/spillgate/spillgate/cache"
)

// For is a layer that holds only for the requests that match pattern, a pattern of [http.ServeMux]: "POST /report",
// "/api/", "GET /item/{id}".
//
//	middleware.Wrap(mux,
//		middleware.Concurrency(limit),
//		middleware.For("POST /report", middleware.Pool(p)),
//	)
//
// Each of the layers takes the place of its kind in a stack, after those that hold for every request. Every For whose
// pattern matches applies, so a route may be charged to its own rate limit and to a general one. Cache layers are the
// exception: only one is used, the first For that matches, or else the general one. A cache layer whose pattern is
// for GET gets the requests with other methods, too: a successful PUT invalidates what is stored under its URL. An
// [Option] in For holds for the whole stack where a request matches. A For inside a For holds where both patterns
// match.
//
// The pattern is matched against the request as it arrives, so For works around any router; a path that ServeMux
// would clean or unescape is matched as ServeMux would match it.
//
// For panics if pattern is not valid, if no layer is given, or if one of them is nil or given twice.
func For(pattern string, layers ...Layer) Layer {
	if len(layers) == 0 {
		panic("middleware: For: no layers; give at least one")
	}
	checkLayers("For", layers)
	return &forLayer{m: newMatcher("For", pattern), layers: append([]Layer(nil), layers...)}
}

type forLayer struct {
	m      *matcher
	layers []Layer
}

func (f *forLayer) rank() rank { return rankFor }

// Handler implements [Layer].
func (f *forLayer) Handler(next http.Handler) http.Handler {
	return build(next, flatten(nil, []Layer{f}, nil), env{})
}

func checkLayers(fn string, layers []Layer) {
	for i, l := range layers {
		if l == nil {
			panic(fmt.Sprintf("middleware: %s: layer %d is nil; leave it out", fn, i))
		}
		for j := range i {
			// Options are functions, which do not compare.
			if l.rank() > rankSetting && layers[j] == l {
				panic(fmt.Sprintf("middleware: %s: layers %d and %d are the same value; give it once", fn, j, i))
			}
		}
	}
}

// condHandler chooses by pattern.
type condHandler struct {
	m       []*matcher
	yes, no http.Handler // both ours
}

func (h *condHandler) inner() http.Handler { return h.no }

func (h *condHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.choose(r).ServeHTTP(w, r)
}

// ServeFill implements [cache.Gate] for what is chosen.
func (h *condHandler) ServeFill(w http.ResponseWriter, r *http.Request, f cache.Fill) {
	serveFill(h.choose(r), w, r, f)
}

func (h *condHandler) choose(r *http.Request) http.Handler {
	for _, m := range h.m {
		if !m.match(r) {
			return h.no
		}
	}
	return h.yes
}
