package cache

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

// verdict is what the cache makes of a response when its header is known.
type verdict struct {
	store  bool
	share  bool   // a request that waits may have it as well
	reason string // why not stored, a token for Cache-Status
	byself bool   // the response alone is the reason: the next one will be the same
	cookie bool   // the cookie of the request is

	guessed              bool // how long it lasts is
	lifetime, initialAge time.Duration
	whileStale, ifError  time.Duration // noDelta if the response did not say
	mustValidate         bool          // must-revalidate and its like: never served stale
	noCache              bool          // validate before each use
	vary                 []string
	omit                 []string // fields not to store
}

// judge decides on storing a response to a GET (RFC 9111, section 3). It is a function of the
// request, the response header and the rules alone.
func (p *rules) judge(r *http.Request, status int, h http.Header, asked, received time.Time) verdict {
	h = canonicalFields(h)
	d, targeted := p.control(h)
	v := verdict{whileStale: d.whileStale, ifError: d.ifErring, omit: d.omit}
	no := func(reason string, byself bool) verdict {
		// A failure says nothing of the next response: to send all requests to a handler that is
		// overloaded because it said so would keep it there.
		v.reason, v.byself = reason, byself && !passing(status)
		return v
	}

	switch {
	case !storableStatus(status) || len(r.Header["Range"]) != 0 && status != http.StatusOK && status != http.StatusPartialContent:
		return no("status", false)
	case status == http.StatusPartialContent && !storablePart(r, h):
		return no("partial", false)
	case d.noStore && !(d.mustUnderstand && understood(status)):
		// must-understand takes the place of no-store for a cache that knows the status
		// (section 5.2.2.3).
		return no("no-store", true)
	case d.mustUnderstand && !understood(status):
		return no("must-understand", true)
	case d.private:
		return no("private", true)
	}
	if p.onlyExplicit && !d.public && d.sMaxAge == noDelta && !targeted {
		return no("not-addressed", true)
	}
	if len(h["Trailer"]) != 0 {
		return no("trailer", true)
	}
	if isEventStream(h["Content-Type"]) {
		return no("event-stream", true)
	}
	vary, any := varyNames(h["Vary"])
	if any {
		return no("vary", true)
	}
	v.vary = vary

	if len(h["Set-Cookie"]) != 0 && !p.storeSetCookie && !slices.Contains(d.omit, "Set-Cookie") {
		return no("set-cookie", true)
	}
	if len(r.Header["Authorization"]) != 0 && !d.open() {
		// Section 3.5, and a max-age says no more in a targeted field (RFC 9213, section 2.2).
		return no("authorization", false)
	}
	unkeyed := func(name string) bool { return len(r.Header[name]) != 0 && !slices.Contains(vary, name) }
	if slices.ContainsFunc(p.unkeyed, unkeyed) || status/100 == 3 && slices.ContainsFunc(p.unkeyedMoves, unkeyed) {
		return no("unkeyed-header", false)
	}

	if dropsFields(r.Header["Connection"]) {
		return no("connection", false)
	}

	life, explicit := p.lifetime(r, status, h, d, targeted, received)
	age, ok := initialAge(h, asked, received)
	if !ok {
		return no("age", true)
	}
	if status >= 500 && status != 501 || status == http.StatusBadRequest {
		// An error that something outside the key may have provoked would be handed to
		// everybody.
		if !(explicit || d.public) || !p.storeErrors && !ordinary(r) {
			return no("error", false)
		}
	}
	v.guessed, v.lifetime, v.initialAge = !explicit, life, age
	v.noCache = d.noCache
	v.mustValidate = d.mustRevalidate || d.proxyRevalidate || d.sMaxAge != noDelta || d.noCache
	usable := life > age && !d.noCache
	if !usable {
		// It may be validated, or served stale (RFC 5861): max-age=0 with stale-while-revalidate is to be of use all the same.
		later := len(h["Etag"]) != 0 || len(h["Last-Modified"]) != 0 || !v.mustValidate && max(d.whileStale, d.ifErring) > age-life
		if !(explicit || d.noCache) || !later {
			if v.cookie = !explicit && personal(r) && len(h["Last-Modified"]) != 0; v.cookie {
				return no("not-fresh", d.noCache)
			}
			// That the handler took longer than its response lasts is a matter of the moment as well.
			return no("not-fresh", d.noCache || life <= age-received.Sub(asked))
		}
	}
	v.store, v.share = true, usable
	return v
}

// forAnybody reports whether a stored response is for requests with credentials as well by its own word (RFC 9111, section 3.5).
func (p *rules) forAnybody(e *entry) bool {
	d, _ := p.control(canonicalFields(e.header()))
	return d.open()
}

// canonicalFields returns a header with its fields under the names by which the rules know them. A handler may have put
// "set-cookie" or "CDN-Cache-Control" into the map itself, and net/http sends that as well. It returns h
// where all names are canonical, as nearly always.
func canonicalFields(h http.Header) http.Header {
	for name := range h {
		if http.CanonicalHeaderKey(name) == name {
			continue
		}
		all := make(http.Header, len(h))
		for name, values := range h {
			name = http.CanonicalHeaderKey(name)
			all[name] = append(slices.Clip(all[name]), values...)
		}
		return all
	}
	return h
}

// storableStatus leaves out the statuses that answer something else in a request than its key: its
// credentials, its conditions, a range that is not there, the size of its fields, how it came, how many came before it. Of
// some of them RFC 6585 says that no cache may store them.
func storableStatus(status int) bool {
	switch status {
	case http.StatusUnauthorized, http.StatusProxyAuthRequired, http.StatusNotModified, http.StatusPreconditionFailed, http.StatusRequestedRangeNotSatisfiable,
		http.StatusExpectationFailed, http.StatusRequestEntityTooLarge, http.StatusRequestHeaderFieldsTooLarge,
		http.StatusRequestTimeout, http.StatusTooEarly, http.StatusPreconditionRequired, http.StatusTooManyRequests,
		http.StatusNetworkAuthenticationRequired:
		return false
	}
	return status >= 200
}

// passing reports whether a status tells of the moment, and not of what is under the URL.
func passing(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	case http.StatusNotImplemented:
		return false
	}
	return status >= 500
}

// storablePart takes only parts that say what they are: one range, in answer to one.
func storablePart(r *http.Request, h http.Header) bool {
	_, _, _, ok := parseContentRange(h["Content-Range"])
	return ok && len(r.Header["Range"]) == 1 && r.Method == http.MethodGet
}

// understood lists the statuses whose caching rules this package knows.
func understood(status int) bool {
	switch status {
	case 200, 203, 204, 206, 300, 301, 302, 303, 307, 308, 404, 405, 410, 414, 501:
		return true
	}
	return false
}

// dropsFields reports whether a request lists fields in Connection that are not of a connection. A proxy inside takes
// them out, and is answered as if the client had not sent what the key and the variant go by.
func dropsFields(connection []string) bool {
	for _, line := range connection {
		for option := range strings.SplitSeq(line, ",") {
			switch strings.ToLower(trimOWS(option)) {
			case "", "close", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings":
			default:
				return true
			}
		}
	}
	return false
}

// isEventStream finds responses that do not end: they are never recorded.
func isEventStream(contentType []string) bool {
	const sse = "text/event-stream"
	return len(contentType) == 1 && len(contentType[0]) >= len(sse) && strings.EqualFold(contentType[0][:len(sse)], sse)
}

// ordinary reports whether a request is one that cannot have provoked an error by the size or the
// characters of its fields. Cache poisoning by denial of service needs one or the other, and both
// are outside the key.
func ordinary(r *http.Request) bool {
	const maxHeader = 8 << 10
	total := 0
	for name, values := range r.Header {
		total += len(name)
		for _, v := range values {
			total += len(v)
			for i := 0; i < len(v); i++ {
				if v[i] < ' ' || v[i] == 0x7f {
					return false
				}
			}
		}
	}
	return total <= maxHeader
}

// hopByHop are the fields that belong to one connection (RFC 9110, section 7.6.1; RFC 9111,
// section 3.1), and the ones that this cache writes itself.
func hopByHop(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authentication-Info", "Proxy-Authorization",
		"Proxy-Connection", "Te", "Transfer-Encoding", "Upgrade", "Trailer", "Age",
		// What a layer of ours says about one request is not part of the response.
		"Retry-After", "Ratelimit", "Ratelimit-Policy", "X-Ratelimit-Limit", "X-Ratelimit-Remaining", "X-Ratelimit-Reset":
		return true
	}
	return false
}
