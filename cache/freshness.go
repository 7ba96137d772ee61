package cache

import (
	"net/http"
	"strings"
	"time"
)

// maxHeuristic is the longest a response is taken to be fresh without having said so.
const maxHeuristic = 24 * time.Hour

// parseDate reads an HTTP date in one of the three forms of RFC 9110, section 5.6.7, exactly as
// that section writes them. Go's parser alone would also take other cases of letters, other
// spacing and a wrong day of the week.
func parseDate(s string) (time.Time, bool) {
	if len(s) < 24 || len(s) > 40 {
		return time.Time{}, false
	}
	for _, layout := range [...]string{http.TimeFormat, "Monday, 02-Jan-06 15:04:05 GMT", time.ANSIC} {
		if t, err := time.Parse(layout, s); err == nil && t.Format(layout) == s {
			return t, true
		}
	}
	return time.Time{}, false
}

// single returns the only line of a field that must not be repeated.
func single(lines []string) (string, bool) {
	if len(lines) != 1 {
		return "", false
	}
	return trimOWS(lines[0]), true
}

// parseAge reads an Age field (RFC 9111, section 5.1). Of a list the first member counts, but
// two lines, or a list that says the same thing twice, are the fields of two messages run
// together, and nobody knows whose they are: like anything that is not a number they are not
// believed, and the response counts as stale.
func parseAge(lines []string) (age time.Duration, ok bool) {
	if len(lines) == 0 {
		return 0, true
	}
	s, ok := single(lines)
	if !ok {
		return 0, false
	}
	first, rest, list := strings.Cut(s, ",")
	first = trimOWS(first)
	if list {
		for m := range strings.SplitSeq(rest, ",") {
			if trimOWS(m) == first {
				return 0, false
			}
		}
	}
	return parseDelta(first)
}

// initialAge is the age of a response when it was received (RFC 9111, section 4.2.3): the
// larger of how old its Date makes it and what Age says, plus how long the exchange took.
func initialAge(h http.Header, asked, received time.Time) (time.Duration, bool) {
	age, ok := parseAge(h["Age"])
	if !ok {
		return 0, false
	}
	age += received.Sub(asked)
	if s, one := single(h["Date"]); one {
		if date, valid := parseDate(s); valid {
			age = max(age, received.Sub(date)) // negative for a clock ahead of ours
		}
	}
	return min(age, maxDelta*time.Second), true
}

// lifetime is how long a response may be used without asking again (RFC 9111, section 4.2.1),
// and whether the response said so itself.
func (p *rules) lifetime(r *http.Request, status int, h http.Header, d directives, targeted bool, now time.Time) (life time.Duration, explicit bool) {
	if d.sMaxAge != noDelta {
		return d.sMaxAge, true
	}
	if d.maxAge != noDelta {
		return d.maxAge, true
	}
	date := now
	if s, one := single(h["Date"]); one {
		if t, ok := parseDate(s); ok {
			date = t
		}
	}
	if lines := h["Expires"]; len(lines) != 0 && !targeted {
		s, one := single(lines)
		expires, ok := parseDate(s)
		if !one || !ok {
			return 0, true // "0" and everything else that is no date: expired (section 5.3)
		}
		return clampLife(expires.Sub(date)), true
	}
	if p.ttl != nil {
		if d := p.ttl(r, status, h); d > 0 {
			return min(d, maxDelta*time.Second), true
		}
	}
	return heuristic(r, status, h, d, date), false
}

func clampLife(d time.Duration) time.Duration {
	return min(max(d, 0), maxDelta*time.Second)
}

// heuristic guesses a lifetime for a response that gives none: a tenth of the time since it was
// last modified (RFC 9111, section 4.2.2). It guesses nothing for a response that may be one
// user's: where the request carried a cookie or credentials.
func heuristic(r *http.Request, status int, h http.Header, d directives, date time.Time) time.Duration {
	if !heuristicStatus(status) && !d.public {
		return 0
	}
	if personal(r) {
		return 0
	}
	s, ok := single(h["Last-Modified"])
	if !ok {
		return 0
	}
	modified, ok := parseDate(s)
	if !ok || !modified.Before(date) {
		return 0
	}
	return min(date.Sub(modified)/10, maxHeuristic)
}

// personal reports whether the response to a request may be one user's.
func personal(r *http.Request) bool {
	return len(r.Header["Cookie"]) != 0 || len(r.Header["Authorization"]) != 0
}

// heuristicStatus lists the statuses that are heuristically cacheable (RFC 9110, section 15.1).
func heuristicStatus(status int) bool {
	switch status {
	case 200, 203, 204, 206, 300, 301, 308, 404, 405, 410, 414, 501:
		return true
	}
	return false
}
