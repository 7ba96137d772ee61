package cache

import (
	"net/http"
	"strings"
)

// etagMatch reports whether an If-None-Match field lists an entity tag, by the weak comparison
// (RFC 9110, section 13.1.2).
func etagMatch(lines []string, etag string) bool {
	opaque := strings.TrimPrefix(etag, "W/")
	for _, line := range lines {
		for {
			line = strings.TrimLeft(line, " \t,")
			if line == "" {
				break
			}
			if line[0] == '*' {
				return true
			}
			tag := strings.TrimPrefix(line, "W/")
			end := -1
			if tag != "" && tag[0] == '"' {
				end = strings.IndexByte(tag[1:], '"') + 2
				if end < 2 {
					return false // a tag without an end
				}
			} else if end = strings.IndexByte(tag, ','); end < 0 {
				end = len(tag)
			}
			if etag != "" && trimOWS(tag[:end]) == opaque {
				return true
			}
			line = tag[end:]
		}
	}
	return false
}

// notModified evaluates a client's own conditions against a stored response (RFC 9111, section
// 4.3.2): If-None-Match alone if it is there, else If-Modified-Since against Last-Modified, or
// against Date where there is none.
func (e *entry) notModified(h http.Header) bool {
	if inm := h["If-None-Match"]; len(inm) != 0 {
		return etagMatch(inm, e.etag)
	}
	ims := h["If-Modified-Since"]
	if len(ims) == 0 {
		return false
	}
	s, ok := single(ims)
	if !ok {
		return false
	}
	since, ok := parseDate(s)
	if !ok {
		return false
	}
	when := e.modified
	if when.IsZero() {
		when = e.date
	}
	return !when.IsZero() && !when.After(since)
}

// confirmedBy reports whether a 304 is about the stored response (RFC 9111, section 4.3.4), and not about another one that was
// not modified since the Last-Modified of this one: a file that is older, as after a release was rolled back. Who was sent nothing but an
// entity tag can mean no other.
func (e *entry) confirmedBy(h http.Header) bool {
	if e.lastModified == "" {
		return true
	}
	h = canonicalFields(h)
	if tags := h["Etag"]; len(tags) != 0 && e.etag != "" {
		return etagMatch(tags, e.etag)
	}
	modified, ok := single(h["Last-Modified"])
	return !ok || modified == e.lastModified
}

// conditional reports whether a request has conditions that a cache may evaluate.
func conditional(h http.Header) bool {
	return len(h["If-None-Match"]) != 0 || len(h["If-Modified-Since"]) != 0
}

// originConditional reports whether a request has conditions that only the handler may evaluate
// (RFC 9111, section 4.3.2).
func originConditional(h http.Header) bool {
	return len(h["If-Match"]) != 0 || len(h["If-Unmodified-Since"]) != 0
}
