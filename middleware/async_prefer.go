package middleware

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// prefer is what this package honours of the Prefer field (RFC 7240).
type prefer struct {
	async   bool
	hasWait bool
	wait    time.Duration
}

// parsePrefer reads all Prefer fields. Of a preference that is stated twice the first counts,
// and what is malformed is as if it were not there (section 2).
func parsePrefer(h http.Header) prefer {
	var p prefer
	for _, field := range h.Values("Prefer") {
		for one := range splitQuoted(field, ',') {
			first := ""
			for part := range splitQuoted(one, ';') {
				first = part // what follows are parameters, of which these two have none
				break
			}
			name, value, _ := strings.Cut(first, "=")
			value = strings.Trim(strings.TrimSpace(value), `"`)
			switch strings.ToLower(strings.TrimSpace(name)) {
			case "respond-async":
				p.async = true
			case "wait":
				if n, err := strconv.ParseUint(value, 10, 31); err == nil && !p.hasWait {
					p.hasWait, p.wait = true, time.Duration(n)*time.Second
				}
			}
		}
	}
	return p
}

// splitQuoted yields the parts of s between separators that are not inside quotes.
func splitQuoted(s string, sep byte) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		quoted, from := false, 0
		for i := 0; i < len(s); i++ {
			switch c := s[i]; {
			case c == '\\' && quoted:
				i++
			case c == '"':
				quoted = !quoted
			case c == sep && !quoted:
				if !yield(s[from:i]) {
					return
				}
				from = i + 1
			}
		}
		yield(s[from:])
	}
}

// acceptedForm chooses how a job is shown by the Accept fields: what has the highest weight,
// and JSON where they are equal or nothing fits (RFC 9110, section 12.5.1, allows that). JSON also has the weight of */*
// if it is not named, where that is the highest.
func acceptedForm(fields []string) asyncForm {
	best, form := 0.0, formJSON
	rest, named := 0.0, false
	for _, field := range fields {
		for one := range splitQuoted(field, ',') {
			kind, params, _ := strings.Cut(one, ";")
			var f asyncForm
			switch strings.ToLower(strings.TrimSpace(kind)) {
			case "text/html", "application/xhtml+xml":
				f = formPage
			case "text/event-stream":
				f = formEvents
			case "application/json", "application/*":
				f, named = formJSON, true
			case "*/*":
			default:
				continue
			}
			q := 1.0
			for param := range splitQuoted(params, ';') {
				if name, value, ok := strings.Cut(param, "="); ok && strings.EqualFold(strings.TrimSpace(name), "q") {
					if x, err := strconv.ParseFloat(strings.TrimSpace(value), 64); err == nil && x >= 0 && x <= 1 {
						q = x
					}
				}
			}
			switch {
			case f == 0:
				rest = q
			case q > best || q == best && q > 0 && f == formJSON:
				best, form = q, f
			}
		}
	}
	if rest > best && !named {
		return formJSON
	}
	return form
}
