package cache

import (
	"net/http"
	"strconv"
	"time"
)

// Result is how the cache answered a request.
type Result uint8

const (
	// Bypass: the cache had no part in it, for example because the handler took over the connection.
	Bypass Result = iota
	// Hit: from the store, and fresh.
	Hit
	// Stale: from the store, stale, within a window that allows it.
	Stale
	// Revalidated: from the store, after the handler said that it is still valid.
	Revalidated
	// Collapsed: from a run of the handler that another request had begun.
	Collapsed
	// Miss: from the handler, even if that panicked.
	Miss
	numResults
)

var resultNames = [numResults]string{"bypass", "hit", "stale", "revalidated", "collapsed", "miss"}

// String returns the name of the result in lower case.
func (r Result) String() string {
	if r < numResults {
		return resultNames[r]
	}
	return "Result(" + strconv.Itoa(int(r)) + ")"
}

// ResultMarker is a ResponseWriter that wants to know how the cache answered. [Cache.Handler] calls MarkCache before it
// writes, on the writer that it was given or on one below it that Unwrap leads to.
//
// If the writer also has a method MarkRun, without arguments or results, that is called after MarkCache if a response
// is [Stale] although the handler ran for the request, and failed.
//
// If it has a method MarkCalled, without arguments or results, that is called after MarkCache if the request is passed
// on and functions of the user's, such as those of [WithBypass], [WithKey] and [Trace], were called before: they may
// have taken any time. It is also called before the cache waits to know whether a request over HTTP/3 has a body.
type ResultMarker interface {
	MarkCache(r Result)
}

// ShedMarker is a ResponseWriter that wants to know that the response about to be written is a refusal by a protecting
// layer, such as a limiter that is full, and not an answer of the handler; err says why.
//
// The writer that [Cache.Handler] gives to the inner handler is a ShedMarker. A refusal is never stored. If a stale
// response may be served, the client gets that instead. Otherwise it gets the refusal, and the mark is handed on to the
// client's own writer.
//
// The writer that Cache.Handler gives to the inner handler also has a method MarkFallback, without arguments or
// results. It says that the response about to be written takes the place of a refusal, as an answer of the handler. If
// that response may not be stored, this says nothing about what is: stored responses stay, and others of the URL go on
// being stored.
type ShedMarker interface {
	MarkShed(err error)
}

// StatusReporter is a ResponseWriter that knows the status it has sent; Status returns 0 if it has sent none yet. If
// the writer given to [Cache.Handler] is a StatusReporter, requests with methods other than GET and HEAD reach the
// handler with that very writer. Otherwise it is wrapped, to learn whether they succeeded.
type StatusReporter interface {
	Status() int
}

// Clock is a ResponseWriter that knows the time. If the writer given to [Cache.Handler] is a Clock, the cache does not
// read the clock again.
type Clock interface {
	Now() time.Time
}

func clock(w http.ResponseWriter) time.Time {
	if c, ok := w.(Clock); ok {
		return c.Now()
	}
	return time.Now()
}

// calls notes that functions of the user's were called for a request that is passed on now, if there are any.
func (h *route) calls(w http.ResponseWriter) {
	if !h.rules.asks() && h.cache.trace.Served == nil {
		return
	}
	markCalled(w)
}

func markCalled(w http.ResponseWriter) {
	if m, ok := find[interface{ MarkCalled() }](w); ok {
		m.MarkCalled()
	}
}

// asks reports whether functions of the user's are called before it is known what is stored. They may take any time.
func (p *rules) asks() bool { return p.bypass != nil || p.keyFunc != nil }

// count notes how a request was answered.
func (c *Cache) count(w http.ResponseWriter, r *http.Request, res Result) {
	c.stats.results[res].Add(1)
	m, ok := w.(ResultMarker) // the usual case: an assertion is remembered where it stands, but not in a generic function
	if !ok {
		m, ok = find[ResultMarker](w)
	}
	if ok {
		m.MarkCache(res)
	}
	if c.trace.Served != nil {
		c.trace.Served(r, res)
	}
}
