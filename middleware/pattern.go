package middleware

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// matcher tells whether a request matches one pattern of [http.ServeMux], alone: other
// patterns do not take part, so there is no precedence.
type matcher struct {
	pattern string
	method  string // "" is any; "GET" takes HEAD too
	host    string // "" is any
	path    string
	prefix  bool // the pattern ends in a slash
	simple  bool // no wildcard: the fields above decide for a plain path
	mux     *http.ServeMux
}

func newMatcher(fn, pattern string) *matcher {
	m := &matcher{pattern: pattern, mux: http.NewServeMux()}
	func() {
		defer func() {
			if e := recover(); e != nil {
				panic(fmt.Sprintf("middleware: %s: pattern %q: %v; give a pattern of http.ServeMux, such as %q", fn, pattern, e, "POST /report"))
			}
		}()
		m.mux.Handle(pattern, http.NotFoundHandler())
	}()
	rest := pattern
	if method, r, ok := strings.Cut(rest, " "); ok {
		m.method, rest = method, strings.TrimLeft(r, " \t")
	}
	i := strings.IndexByte(rest, '/')
	m.host, m.path = rest[:i], rest[i:]
	m.prefix = strings.HasSuffix(m.path, "/")
	m.simple = !strings.ContainsAny(pattern, "{%\t")
	return m
}

func (m *matcher) match(r *http.Request) bool {
	p := r.URL.Path
	if !m.simple || r.URL.RawPath != "" || r.Method == http.MethodConnect || !isClean(p) {
		// ServeMux knows best: wildcards, escapes, paths it would clean first.
		_, pattern := m.mux.Handler(r)
		return pattern != ""
	}
	if m.method != "" && m.method != r.Method && (m.method != http.MethodGet || r.Method != http.MethodHead) {
		return false
	}
	if m.prefix {
		if !strings.HasPrefix(p, m.path) && p+"/" != m.path { // ServeMux redirects from one to the other
			return false
		}
	} else if p != m.path {
		return false
	}
	return m.host == "" || m.host == stripPort(r.Host)
}

// withUnsafe returns a matcher of the same URLs whatever the method, if m is for GET: a cache has to see what makes invalid what it holds
// (RFC 9111, section 4.4).
func (m *matcher) withUnsafe() *matcher {
	if m.method != http.MethodGet {
		return m
	}
	return newMatcher("For", strings.TrimLeft(strings.TrimPrefix(m.pattern, m.method), " \t"))
}

// isClean says that a router would not change p before it looks it up. It may say no where
// the answer is yes.
func isClean(p string) bool {
	if p == "" || p[0] != '/' {
		return false
	}
	for i := 1; i < len(p); i++ {
		if p[i-1] == '/' && (p[i] == '/' || p[i] == '.') {
			return false
		}
	}
	return true
}

// stripPort takes the port off as ServeMux does: with it go the brackets of any host, and not only of an IPv6 address, so that
// nobody comes to a handler for a host past what stands before that.
func stripPort(host string) string {
	if strings.IndexByte(host, ':') < 0 {
		return host
	}
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return host
}

// routeOf returns the pattern that serves the request: that of the mux which the layer is around, if it is around
// one that knows; else that of the mux which passed the request on. Empty if neither can tell.
func (rec *recorder) routeOf(r *http.Request, mux *http.ServeMux) string {
	if r.Pattern != "" {
		if mux != nil {
			// A mux inside another, or the one that has set the pattern.
			if _, p := handlerOf(mux, r); p != "" {
				return p
			}
		}
		return r.Pattern
	}
	if !rec.hasRoute && mux != nil {
		var h http.Handler
		h, rec.route = handlerOf(mux, r)
		rec.hasRoute = true
		for out := rec.beyond(); out != nil; out = out.beyond() {
			out.route = rec.route
		}
		// Where there are no wildcards to set, and for all targets but "*", a mux does no more than to
		// set the pattern and call the handler: base.serve does that, and the mux is asked once.
		if r.RequestURI != "*" && strings.IndexByte(rec.route, '{') < 0 {
			rec.routed = h
		}
	}
	return rec.route
}

// handlerOf returns what mux.Handler does, and a pattern of the mux for any request. A CONNECT request that a mux redirects to
// its path with a slash is a case apart: mux.Handler returns that path, which the client chooses where the pattern has a
// wildcard. It has no handler here, so that the mux is called.
func handlerOf(mux *http.ServeMux, r *http.Request) (http.Handler, string) {
	h, p := mux.Handler(r)
	if r.Method == http.MethodConnect && strings.HasPrefix(p, "/") && strings.HasSuffix(p, "/") && !strings.HasSuffix(r.URL.Path, "/") {
		to := *r
		to.URL = &url.URL{Path: p}
		_, p = mux.Handler(&to)
		return nil, p
	}
	return h, p
}
