package middleware

import (
	"fmt"
	"net/http"
)

// Func is what every router takes as middleware. It is an alias, so that a Func fits wherever func(http.Handler)
// http.Handler does.
type Func = func(http.Handler) http.Handler

// Chain joins middleware in the order given:
//
//	Chain(a, b, c)(h) == a(b(c(h)))
//
// The request meets a first. Chain() returns its handler unchanged. Unlike [Wrap], Chain does not reorder. Give it
// the Handler methods of layers, or any other middleware. It panics if one of f is nil. A nil handler means
// [http.DefaultServeMux], as in package net/http.
func Chain(f ...Func) Func {
	for i, m := range f {
		if m == nil {
			panic(fmt.Sprintf("middleware: Chain: argument %d is nil; leave it out", i))
		}
	}
	f = append([]Func(nil), f...)
	return func(h http.Handler) http.Handler {
		h = orDefaultMux(h)
		for i := len(f) - 1; i >= 0; i-- {
			h = f[i](h)
		}
		return h
	}
}

func orDefaultMux(h http.Handler) http.Handler {
	if h == nil {
		return http.DefaultServeMux
	}
	return h
}
