package cache

import (
	"net/http"
	"strings"
	"time"
)

// maxDelta is where delta-seconds saturate (RFC 9111, section 1.2.2).
const maxDelta = 1 << 31

// noDelta marks a directive that was not given.
const noDelta = time.Duration(-1)

// directives are the parts of a response's Cache-Control, or of a targeted field that takes
// its place, which mean something to a shared cache.
type directives struct {
	noStore, noCache, private, public     bool
	mustRevalidate, proxyRevalidate       bool
	mustUnderstand                        bool
	maxAge, sMaxAge, whileStale, ifErring time.Duration // noDelta if absent
	omit                                  []string      // fields named by no-cache="…" and private="…"
}

func noDirectives() directives {
	return directives{maxAge: noDelta, sMaxAge: noDelta, whileStale: noDelta, ifErring: noDelta}
}

// open reports whether a response to a request with credentials is for others, too (RFC 9111, section 3.5).
func (d *directives) open() bool { return d.public || d.mustRevalidate || d.sMaxAge != noDelta }

// requestDirectives are the same for a request.
type requestDirectives struct {
	noStore, noCache, onlyIfCached, anyStale bool
	maxAge, minFresh, maxStale               time.Duration // noDelta if absent
}

var plainRequest = requestDirectives{maxAge: noDelta, minFresh: noDelta, maxStale: noDelta}

// cutMember cuts the first member off a list. A comma inside a quoted string separates nothing.
func cutMember(list string) (member, rest string, more bool) {
	quoted := false
	for i := 0; i < len(list); i++ {
		switch c := list[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			i++
		case c == ',' && !quoted:
			return list[:i], list[i+1:], true
		}
	}
	return list, "", false
}

// nextDirective cuts the first directive off s. A quoted argument is returned without its quotes (RFC 9111, section 5.2).
func nextDirective(s string) (name, arg string, hasArg bool, rest string) {
	d, rest, _ := cutMember(s)
	d = trimOWS(d)
	name, arg, hasArg = strings.Cut(d, "=")
	if len(arg) >= 2 && arg[0] == '"' && arg[len(arg)-1] == '"' {
		arg = arg[1 : len(arg)-1]
		if strings.IndexByte(arg, '\\') >= 0 {
			arg = unescape(arg)
		}
	}
	return name, arg, hasArg, rest
}

func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func trimOWS(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// parseDelta reads delta-seconds, saturating. Whatever is not digits alone is not a delta.
func parseDelta(s string) (time.Duration, bool) {
	if s == "" {
		return 0, false
	}
	var n int64
	for i := 0; i < len(s); i++ {
		c := s[i] - '0'
		if c > 9 {
			return 0, false
		}
		if n < maxDelta {
			n = n*10 + int64(c)
		}
	}
	return time.Duration(min(n, maxDelta)) * time.Second, true
}

// lower keeps the smaller of two answers to the same directive: of two that contradict each
// other the less permissive one is believed. An argument that cannot be read counts as 0, so
// that it makes a response stale and never fresh (RFC 9111, section 4.2.1).
func lower(have time.Duration, arg string) time.Duration {
	d, _ := parseDelta(arg)
	if have == noDelta {
		return d
	}
	return min(have, d)
}

// parseDirectives reads the lines of a Cache-Control response field.
func parseDirectives(lines []string) directives {
	d := noDirectives()
	for _, line := range lines {
		for line != "" {
			name, arg, hasArg, rest := nextDirective(line)
			d.set(name, arg, hasArg)
			d.heed(line[:len(line)-len(rest)])
			line = rest
		}
	}
	return d
}

// heed looks into what is written like no directive, as "private; max-age=60" or "no-store no-cache", for what would keep the response from
// being stored or used: whoever wrote it meant that, and many a cache looks for the words alone. A lifetime in it cannot be read, and is none
// (RFC 9111, section 4.2.1).
func (d *directives) heed(written string) {
	if strings.IndexByte(written, '"') >= 0 || strings.IndexFunc(trimOWS(strings.TrimSuffix(written, ",")), notDirective) < 0 {
		return
	}
	for word := range strings.FieldsFuncSeq(strings.ToLower(written), notDirective) {
		switch name, _, _ := strings.Cut(word, "="); name {
		case "no-store":
			d.noStore = true
		case "no-cache":
			d.noCache = true
		case "private":
			d.private = true
		case "max-age", "s-maxage":
			d.maxAge = 0
		}
	}
}

// notDirective reports whether a directive without quotes cannot have c.
func notDirective(c rune) bool {
	return c >= 0x80 || c != '=' && !tokenByte(byte(c))
}

// set takes in one directive; names are compared without regard to case.
func (d *directives) set(name, arg string, hasArg bool) {
	switch strings.ToLower(name) {
	case "no-store":
		d.noStore = true
	case "no-cache":
		if hasArg && arg != "" {
			d.omit = appendFields(d.omit, arg)
		} else {
			d.noCache = true
		}
	case "private":
		if hasArg && arg != "" {
			d.omit = appendFields(d.omit, arg)
		} else {
			d.private = true
		}
	case "public":
		d.public = true
	case "must-revalidate":
		d.mustRevalidate = true
	case "proxy-revalidate":
		d.proxyRevalidate = true
	case "must-understand":
		d.mustUnderstand = true
	case "max-age":
		d.maxAge = lower(d.maxAge, arg)
	case "s-maxage":
		d.sMaxAge = lower(d.sMaxAge, arg)
	case "stale-while-revalidate":
		d.whileStale = lower(d.whileStale, arg)
	case "stale-if-error":
		d.ifErring = lower(d.ifErring, arg)
	}
}

// appendFields adds the field names of a comma-separated list, in canonical form.
func appendFields(to []string, list string) []string {
	for name := range strings.SplitSeq(list, ",") {
		if name = trimOWS(name); name != "" {
			to = append(to, http.CanonicalHeaderKey(name))
		}
	}
	return to
}

// parseRequest reads what a client asks of caches (RFC 9111, section 5.2.1). Pragma counts
// only where Cache-Control is absent (section 5.4).
func parseRequest(h http.Header) requestDirectives {
	lines := h["Cache-Control"]
	if len(lines) == 0 {
		if pragma := h["Pragma"]; len(pragma) == 0 || !hasToken(pragma, "no-cache") {
			return plainRequest
		}
		r := plainRequest
		r.noCache = true
		return r
	}
	r := plainRequest
	for _, line := range lines {
		for line != "" {
			var name, arg string
			var hasArg bool
			name, arg, hasArg, line = nextDirective(line)
			switch {
			case strings.EqualFold(name, "no-store"):
				r.noStore = true
			case strings.EqualFold(name, "no-cache"):
				r.noCache = true
			case strings.EqualFold(name, "only-if-cached"):
				r.onlyIfCached = true
			case strings.EqualFold(name, "max-age"):
				r.maxAge = lower(r.maxAge, arg)
			case strings.EqualFold(name, "min-fresh"):
				if n, ok := parseDelta(arg); ok {
					r.minFresh = max(r.minFresh, n)
				}
			case strings.EqualFold(name, "max-stale"):
				if !hasArg {
					r.anyStale = true
				} else if n, ok := parseDelta(arg); ok {
					r.maxStale = max(r.maxStale, n)
				}
			}
		}
	}
	return r
}

// hasToken reports whether a list field has a member, without regard to case.
func hasToken(lines []string, token string) bool {
	for _, line := range lines {
		for part := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(trimOWS(part), token) {
				return true
			}
		}
	}
	return false
}
