package cache

import (
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// span is the part of a representation that a stored 206 holds: from first on, as long as its body.
// The total is -1 where the handler did not know it.
type span struct {
	first, total int64
	asked        string // the Range that it answered
	whole        bool   // as long as its Content-Range said
}

func (s *span) end(body []byte) int64 { return s.first + int64(len(body)) }

// maxPartials is how many parts of one URL are stored.
const maxPartials = 4

// parseContentRange reads the Content-Range of a 206 (RFC 9110, section 14.4).
func parseContentRange(lines []string) (first, last, total int64, ok bool) {
	s, ok := single(lines)
	if !ok {
		return 0, 0, 0, false
	}
	s, ok = strings.CutPrefix(s, "bytes ")
	if !ok {
		return 0, 0, 0, false
	}
	r, t, ok := strings.Cut(s, "/")
	if !ok {
		return 0, 0, 0, false
	}
	a, b, ok := strings.Cut(r, "-")
	if !ok {
		return 0, 0, 0, false
	}
	first, okA := parsePosition(a)
	last, okB := parsePosition(b)
	total = -1
	okT := t == "*"
	if !okT {
		total, okT = parsePosition(t)
	}
	return first, last, total, okA && okB && okT && first <= last && (total < 0 || last < total)
}

// parsePosition reads a byte position; anything but digits, and more of them than fit, is none.
func parsePosition(s string) (int64, bool) {
	if s == "" || len(s) > 18 {
		return 0, false
	}
	var n int64
	for i := 0; i < len(s); i++ {
		if !digit(s[i]) {
			return 0, false
		}
		n = n*10 + int64(s[i]-'0')
	}
	return n, true
}

// parseFar is parsePosition for one that may be as far beyond the end as a client likes (RFC 9110, section 14.2).
func parseFar(s string) (int64, bool) {
	n, ok := parsePosition(s)
	if !ok && s != "" && strings.Trim(s, "0123456789") == "" {
		if n, ok = parsePosition("0" + strings.TrimLeft(s, "0")); !ok {
			return math.MaxInt64 - 1, true
		}
	}
	return n, ok
}

// parseRange reads a request for one range of a representation (RFC 9110, section 14.1.2) and
// returns the positions from and up to, but not including, to. It reports false for everything that
// is not one satisfiable range; net/http looks after those.
func parseRange(lines []string, total int64) (from, to int64, ok bool) {
	if len(lines) != 1 {
		return 0, 0, false
	}
	s, ok := strings.CutPrefix(lines[0], "bytes=")
	if !ok {
		return 0, 0, false
	}
	a, b, ok := strings.Cut(s, "-")
	if !ok {
		return 0, 0, false
	}
	if a == "" {
		n, ok := parseFar(b)
		if !ok || n == 0 || total <= 0 {
			return 0, 0, false
		}
		return max(0, total-n), total, true
	}
	from, ok = parsePosition(a)
	if !ok || total >= 0 && from >= total {
		return 0, 0, false
	}
	if b == "" {
		return from, total, total >= 0
	}
	last, ok := parseFar(b)
	if !ok || last < from {
		return 0, 0, false
	}
	to = last + 1
	if total >= 0 {
		to = min(to, total)
	}
	return from, to, true
}

// otherUnit reports whether a range is counted in something else than bytes, such as the items of a list, which the handler
// may know and a cache does not (RFC 9110, section 14.2).
func otherUnit(lines []string) bool {
	return len(lines) != 0 && !strings.HasPrefix(lines[0], "bytes=")
}

// strong reports whether an entity tag identifies bytes.
func strong(etag string) bool { return len(etag) > 2 && etag[0] == '"' }

// partial finds the stored part of a response that holds the range which a request asks for, or
// that answered the very same one.
func (r *resource) partial(extra string, h http.Header) *entry {
	if r == nil || len(h["Range"]) != 1 || conditional(h) {
		return nil
	}
	for _, e := range r.variants {
		if e.part == nil || !e.selects(extra, h) || !ifRange(h, e) {
			continue
		}
		if e.part.asked == h["Range"][0] {
			return e
		}
		from, to, ok := parseRange(h["Range"], e.part.total)
		if ok && from >= e.part.first && to <= e.part.end(e.body) {
			return e
		}
	}
	return nil
}

func (r *resource) onlyParts() bool {
	for _, e := range r.variants {
		if e.part == nil {
			return false
		}
	}
	return true
}

// ifRange reports whether the If-Range of a request, if it has one, names this representation: by
// the strong comparison (RFC 9110, section 13.1.5).
func ifRange(h http.Header, e *entry) bool {
	lines := h["If-Range"]
	return len(lines) == 0 || len(lines) == 1 && (strong(e.etag) && lines[0] == e.etag)
}

// writePartial answers a range from a stored part.
func writePartial(w http.ResponseWriter, r *http.Request, e *entry, age, status []string) {
	hd := w.Header()
	for i := range e.fields {
		e.fields[i].put(hd)
	}
	hd["Age"], hd["Cache-Status"] = age, status
	body := e.body
	if from, to, ok := parseRange(r.Header["Range"], e.part.total); ok && from >= e.part.first && to <= e.part.end(e.body) {
		if int(to-from) != len(body) {
			dropDigests(hd)
		}
		body = body[from-e.part.first : to-e.part.first]
		setRange(hd, from, to, e.part.total)
	}
	w.WriteHeader(http.StatusPartialContent)
	w.Write(body)
}

// setRange sets Content-Range and Content-Length.
func setRange(hd http.Header, from, to, total int64) {
	b := append(make([]byte, 0, 64), "bytes "...)
	b = strconv.AppendInt(b, from, 10)
	b = append(b, '-')
	b = strconv.AppendInt(b, to-1, 10)
	b = append(b, '/')
	if total < 0 {
		b = append(b, '*')
	} else {
		b = strconv.AppendInt(b, total, 10)
	}
	cut := len(b)
	b = strconv.AppendInt(b, to-from, 10)
	s := string(b)
	two := []string{s[:cut], s[cut:]}
	hd["Content-Range"], hd["Content-Length"] = two[:1:1], two[1:2:2]
}

// combine makes one part out of two that belong to the same representation and touch (RFC 9111,
// section 3.4), with the fields of the newer one. A part that turns out to be everything becomes a
// complete response. It returns nil where the two do not go together, or are more than most bytes.
func combine(e, old *entry, most int64) *entry {
	if old.part == nil || !strong(e.etag) || e.etag != old.etag || e.extra != old.extra || !sameChoice(e, old) ||
		e.part.total >= 0 && old.part.total >= 0 && e.part.total != old.part.total ||
		!e.part.whole || !old.part.whole {
		return nil
	}
	first, end := min(e.part.first, old.part.first), max(e.part.end(e.body), old.part.end(old.body))
	if e.part.first > old.part.end(old.body) || old.part.first > e.part.end(e.body) {
		return nil // a hole between them
	}
	if end-first > most {
		return nil
	}
	body := make([]byte, end-first)
	copy(body[old.part.first-first:], old.body)
	copy(body[e.part.first-first:], e.body)
	n := e.clone()
	n.fields = slices.DeleteFunc(n.fields, func(f field) bool { return digests(http.CanonicalHeaderKey(f.name)) })
	n.tags, n.groups = joined(e.tags, old.tags), joined(e.groups, old.groups)
	total := max(e.part.total, old.part.total)
	if first == 0 && end == total {
		n.status = http.StatusOK
		n.fields = slices.DeleteFunc(n.fields, func(f field) bool { return f.name == "Content-Range" })
	} else {
		n.part = &span{first: first, total: total, whole: true}
		h := make(http.Header)
		setRange(h, first, end, total)
		n.set("Content-Range", h["Content-Range"]...)
	}
	n.complete(body)
	return n
}

// joined are the names of two lists: what is made of two parts is purged as either.
func joined(a, b []string) []string {
	if slices.Equal(a, b) {
		return a
	}
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

func sameChoice(a, b *entry) bool {
	return len(a.vary) == len(b.vary) && a.chosenFor(b)
}
