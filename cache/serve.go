package cache

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"time"
)

// serveHit answers from the store with a fresh response. It builds no map and formats no number
// that another hit in the same second has formatted.
func (h *route) serveHit(w http.ResponseWriter, r *http.Request, e *entry, age time.Duration) {
	h.cache.count(w, r, Hit)
	s := e.stamped(h.cache, age)
	writeEntry(w, r, e, s.age, s.status)
}

// serve answers with a response that has just been made or validated.
func (h *route) serve(w http.ResponseWriter, r *http.Request, e *entry, age time.Duration, status string) {
	earlier, _ := e.values("Cache-Status")
	writeEntry(w, r, e, []string{strconv.FormatInt(int64(age/time.Second), 10)}, withStatus(earlier, status))
}

// serveStale answers with a stale response; how is "hit", or that the handler ran for it (RFC 9211, section 2.1).
func (h *route) serveStale(w http.ResponseWriter, r *http.Request, e *entry, now time.Time, how, detail string) {
	age := e.age(now)
	ttl := strconv.FormatInt(int64((e.ends()-age)/time.Second), 10)
	h.serve(w, r, e, age, h.cache.name+"; "+how+"; ttl="+ttl+"; detail="+detail)
}

// describesContent are the fields that a 304 leaves out (RFC 9110, section 15.4.5).
func describesContent(name string) bool {
	return name == "Content-Length" || name == "Content-Type" || name == "Content-Encoding" || digests(name)
}

// digests reports whether a field holds the digest of a message's content (RFC 9530, section 2), which is that of no other message: a
// part has another, and a 304 that of nothing.
func digests(name string) bool { return name == "Content-Digest" || name == "Content-Md5" }

func dropDigests(hd http.Header) {
	maps.DeleteFunc(hd, func(name string, _ []string) bool { return digests(http.CanonicalHeaderKey(name)) })
}

// encodesOutside reports whether a layer outside has said, before anything was written, that it encodes what is. Many a simple one leaves a
// Content-Length as it is, so where the handler has given none there must be none: net/http's ServeContent does the same.
func encodesOutside(hd http.Header) bool { return len(hd["Content-Encoding"]) != 0 }

func writeEntry(w http.ResponseWriter, r *http.Request, e *entry, age, status []string) {
	hd := w.Header()
	encoded := encodesOutside(hd)
	plain := e.status == http.StatusOK
	fresh304 := plain && conditional(r.Header) && e.notModified(r.Header)
	for i := range e.fields {
		f := &e.fields[i]
		if fresh304 && describesContent(f.name) {
			delete(hd, f.name) // where it is the handler that has just set it
			continue
		}
		f.put(hd)
	}
	hd["Age"] = age
	hd["Cache-Status"] = status
	if fresh304 {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	// Nothing has no part, and a range is of what is sent (RFC 9110, section 14.2): of what a layer outside encodes there is none here.
	if plain && !encoded && len(r.Header["Range"]) != 0 && r.Method == http.MethodGet && len(e.body) > 0 {
		if ranges := r.Header["Range"]; len(ranges) == 1 && strings.Count(ranges[0], ",") < maxRanges {
			if ifRange(r.Header, e) {
				if from, to, ok := parseRange(ranges, int64(len(e.body))); ok {
					hd["Accept-Ranges"] = acceptBytes
					dropDigests(hd)
					setRange(hd, from, to, int64(len(e.body)))
					w.WriteHeader(http.StatusPartialContent)
					w.Write(e.body[from:to])
					return
				}
			}
			writeRange(w, r, e)
			return
		}
	}
	if encoded {
		delete(hd, "Content-Length")
	}
	w.WriteHeader(e.status)
	if r.Method != http.MethodHead && len(e.body) > 0 {
		w.Write(e.body)
	}
}

// maxRanges is how many ranges one request may have; with more the whole body is sent, so that a
// small request cannot ask for a response of many overlapping parts.
const maxRanges = 4

var acceptBytes = []string{"bytes"}

// writeRange leaves the rarer ranges to net/http: an If-Range with a date or another tag, several ranges, 416.
func writeRange(w http.ResponseWriter, r *http.Request, e *entry) {
	hd := w.Header()
	delete(hd, "Content-Length")
	dropDigests(hd)
	if line, changed := withoutLastNone(r.Header["Range"][0], len(e.body)); changed {
		r = r.Clone(r.Context())
		r.Header["Range"] = []string{line}
	}
	http.ServeContent(unsatisfied{w}, r, "", e.modified, bytes.NewReader(e.body))
}

// withoutLastNone puts a range that begins at the end in place of the last 0 bytes. Nothing satisfies either (RFC 9110, section
// 14.1.2), but net/http takes the second for a part, with a Content-Range that is none.
func withoutLastNone(line string, size int) (out string, changed bool) {
	set, ok := strings.CutPrefix(line, "bytes=")
	if !ok {
		return line, false
	}
	specs := strings.Split(set, ",")
	for i, spec := range specs {
		last, ok := strings.CutPrefix(textproto.TrimString(spec), "-")
		last = textproto.TrimString(last)
		if n, err := strconv.ParseInt(last, 10, 64); ok && err == nil && n == 0 && last[0] != '-' { // as net/http reads it
			specs[i], changed = strconv.Itoa(size)+"-", true
		}
	}
	return "bytes=" + strings.Join(specs, ","), changed
}

// unsatisfied takes off a 416 for how long the stored response is fresh: net/http takes off Cache-Control and the validators alone.
type unsatisfied struct{ http.ResponseWriter }

func (w unsatisfied) WriteHeader(status int) {
	if status == http.StatusRequestedRangeNotSatisfiable {
		maps.DeleteFunc(w.Header(), func(name string, _ []string) bool {
			name = http.CanonicalHeaderKey(name)
			return name == "Expires" || name == "Surrogate-Control" || strings.HasSuffix(name, "-Cache-Control")
		})
	}
	w.ResponseWriter.WriteHeader(status)
}

// ReadFrom keeps the copy that the writer below can do better.
func (w unsatisfied) ReadFrom(src io.Reader) (int64, error) { return io.Copy(w.ResponseWriter, src) }
