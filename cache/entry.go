package cache

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// field is a stored response field. Its values are capped, so that an append by another layer
// copies them.
type field struct {
	name   string
	values []string
}

// put sets the field in a response. Cookies stand beside those that a layer outside has set for this client.
func (f *field) put(hd http.Header) {
	if f.name == "Set-Cookie" && len(hd[f.name]) != 0 {
		hd[f.name] = slices.Concat(hd[f.name], f.values)
		return
	}
	hd[f.name] = f.values
}

// entry is one stored response. All of it but the atomics is immutable.
type entry struct {
	status int
	fields []field
	body   []byte
	part   *span // of a 206

	stored                time.Time // with a monotonic reading
	date, modified        time.Time
	initialAge, lifetime  time.Duration
	whileStale, ifError   time.Duration // noDelta if the response did not say
	mustValidate, noCache bool
	etag, lastModified    string
	language              string // in lower case, if it is in one

	extra   string // rules.extra of the request
	vary    []string
	chosen  []selected
	tags    []string
	groups  []string
	counted int64 // cost in the ledger

	soft  atomic.Int64          // the age at which it was purged softly, in ns, and 1 more; 0 is that it was not
	retry atomic.Int64          // no background validation before this time, in ns since the cache began
	tries atomic.Int32          // failed background validations in a row
	busy  atomic.Bool           // there is one, until the handler has returned and retry is set
	stamp atomic.Pointer[stamp] // fields that change with the clock, for one second
}

// stamp is the rendered part of a hit: it is made once a second, not once a request.
type stamp struct {
	second int64
	age    []string
	status []string
}

// entryCost is what an entry costs besides its strings and body: the struct, its place in the
// store, and slack of the allocator. A field costs fieldCost with its first value, each other value valueCost, and a tag,
// whose string is one of its own, tagCost. Measured by TestAttack13Floods.
const entryCost, fieldCost, valueCost, tagCost = 900, 64, 16, 32

// newEntry copies a response header. The outer fields are the ones that were set before the
// handler ran: a layer outside will set them again, for its own request.
func newEntry(status int, h http.Header, outer headerSnapshot, v verdict, now time.Time) *entry {
	e := &entry{
		status: status, stored: now,
		initialAge: v.initialAge, lifetime: v.lifetime, whileStale: v.whileStale, ifError: v.ifError,
		mustValidate: v.mustValidate, noCache: v.noCache, vary: v.vary,
	}
	canonical := canonicalFields(h)
	var connection []string
	for _, line := range canonical["Connection"] {
		connection = appendFields(connection, line)
	}
	n, size := 0, 0
	keep := func(name string, values []string) ([]string, bool) {
		canonical := http.CanonicalHeaderKey(name)
		if hopByHop(canonical) || strings.HasPrefix(name, http.TrailerPrefix) || canonical == "Content-Length" ||
			slices.Contains(v.omit, canonical) || slices.Contains(connection, canonical) || outer.has(name, values) {
			return nil, false
		}
		if name == "Set-Cookie" {
			values = outer.without(name, values)
		}
		return values, true
	}
	for name, values := range h {
		if values, ok := keep(name, values); ok {
			n++
			for _, v := range values {
				size += len(v)
			}
		}
	}
	// The strings are copied into one: the handler's may be parts of something much larger.
	var text strings.Builder
	text.Grow(size)
	for name, values := range h {
		if values, ok := keep(name, values); ok {
			for _, v := range values {
				text.WriteString(v)
			}
			e.fields = append(slices.Grow(e.fields, n-len(e.fields)), field{name: name, values: values})
		}
	}
	rest := text.String()
	for i := range e.fields {
		f := &e.fields[i]
		if f.values != nil {
			copied := make([]string, len(f.values))
			for j, v := range f.values {
				copied[j], rest = rest[:len(v)], rest[len(v):]
			}
			f.values = copied
		}
	}
	if _, has := canonical["Date"]; !has {
		// Without one net/http would put the date of each hit.
		e.set("Date", now.UTC().Format(http.TimeFormat))
	}
	slices.SortFunc(e.fields, func(a, b field) int { return strings.Compare(a.name, b.name) })
	e.index()
	return e
}

// index fills in what is read from the fields again and again.
func (e *entry) index() {
	e.etag = e.get("Etag")
	e.lastModified = e.get("Last-Modified")
	e.modified, _ = parseDate(e.lastModified)
	e.date, _ = parseDate(e.get("Date"))
	e.language = strings.ToLower(trimOWS(e.get("Content-Language")))
}

// find returns the place of a field, however its name is spelled; -1 is that there is none.
func (e *entry) find(name string) int {
	for i := range e.fields {
		if f := e.fields[i].name; len(f) == len(name) && strings.EqualFold(f, name) {
			return i
		}
	}
	return -1
}

func (e *entry) values(name string) ([]string, bool) {
	if i := e.find(name); i >= 0 {
		return e.fields[i].values, true
	}
	return nil, false
}

func (e *entry) get(name string) string {
	if v, _ := e.values(name); len(v) == 1 {
		return v[0]
	}
	return ""
}

func (e *entry) set(name string, values ...string) {
	if i := e.find(name); i >= 0 {
		e.fields[i].values = values
		return
	}
	e.fields = append(e.fields, field{name, values})
}

// complete gives the entry its body and its price.
func (e *entry) complete(body []byte) {
	e.body = body
	if bodyAllowed(e.status) {
		e.set("Content-Length", strconv.Itoa(len(body)))
	}
	cost := entryCost + len(e.extra) + cap(body)
	if e.part != nil {
		cost += len(e.part.asked)
	}
	for i := range e.fields {
		f := &e.fields[i]
		f.values = f.values[:len(f.values):len(f.values)]
		cost += fieldCost + len(f.name) + valueCost*max(len(f.values)-1, 0)
		for _, v := range f.values {
			cost += len(v)
		}
	}
	for i, name := range e.vary {
		cost += fieldCost + len(name) + len(e.chosen[i].raw) + len(e.chosen[i].norm)
	}
	for _, t := range e.tags {
		cost += tagCost + len(t)
	}
	for _, t := range e.groups {
		cost += tagCost + len(t)
	}
	e.counted = int64(cost)
}

// age is the current age (RFC 9111, section 4.2.3). It has grown by what the monotonic clock has gone on, or the one on the wall if that is more: the
// first may stand still while the machine is suspended, and the second be set back.
func (e *entry) age(now time.Time) time.Duration {
	const most = maxDelta * time.Second
	return min(e.initialAge+min(max(0, now.Sub(e.stored), now.Round(0).Sub(e.stored.Round(0))), most), most)
}

func (e *entry) fresh(now time.Time) bool {
	return !e.noCache && !e.purged() && e.age(now) < e.lifetime
}

// expire makes it stale from now on, if it is not.
func (e *entry) expire(now time.Time) { e.soft.CompareAndSwap(0, int64(e.age(now))+1) }

// purged reports that it was purged softly.
func (e *entry) purged() bool { return e.soft.Load() != 0 }

// ends is the age from which on it is stale.
func (e *entry) ends() time.Duration {
	if at := e.soft.Load(); at != 0 {
		return min(e.lifetime, time.Duration(at-1))
	}
	return e.lifetime
}

// selects reports whether a request may be answered with this variant.
func (e *entry) selects(extra string, h http.Header) bool {
	return e.extra == extra && matches(e.vary, e.chosen, e.language, h)
}

// freshen makes the entry that a 304 turns this one into (RFC 9111, section 4.3.4): the fields of
// the 304 replace the stored ones, except those that describe the stored body. It is to be completed.
func (e *entry) freshen(h http.Header, outer headerSnapshot, v verdict, now time.Time) *entry {
	from := newEntry(e.status, h, outer, v, now)
	n := &entry{
		status: e.status, body: e.body, stored: now,
		initialAge: v.initialAge, lifetime: v.lifetime, whileStale: v.whileStale, ifError: v.ifError,
		mustValidate: v.mustValidate, noCache: v.noCache,
		extra: e.extra, vary: e.vary, chosen: e.chosen, tags: e.tags, groups: e.groups,
	}
	for _, f := range e.fields {
		if !slices.Contains(v.omit, http.CanonicalHeaderKey(f.name)) {
			n.fields = append(n.fields, f)
		}
	}
	for _, f := range from.fields {
		switch name := http.CanonicalHeaderKey(f.name); name {
		case "Content-Length", "Content-Encoding", "Content-Range", "Etag":
			continue
		case "Vary":
			continue // the variant was chosen by what is stored
		default:
			if digests(name) {
				continue
			}
		}
		n.set(f.name, f.values...)
	}
	n.index()
	return n
}

// clone copies an entry that readers hold already, for the body to be added.
func (e *entry) clone() *entry {
	n := &entry{
		status: e.status, stored: e.stored, date: e.date, modified: e.modified,
		initialAge: e.initialAge, lifetime: e.lifetime, whileStale: e.whileStale, ifError: e.ifError,
		mustValidate: e.mustValidate, noCache: e.noCache, etag: e.etag, lastModified: e.lastModified, language: e.language,
		extra: e.extra, vary: e.vary, chosen: e.chosen, tags: e.tags, groups: e.groups,
	}
	n.fields = slices.Clone(e.fields)
	return n
}

// header returns the stored fields as a map, to judge them again together with newer ones.
func (e *entry) header() http.Header {
	h := make(http.Header, len(e.fields))
	for _, f := range e.fields {
		h[f.name] = f.values
	}
	return h
}

// stamped returns the Age and Cache-Status of a hit.
func (e *entry) stamped(c *Cache, age time.Duration) *stamp {
	second := int64(age / time.Second)
	if s := e.stamp.Load(); s != nil && s.second == second {
		return s
	}
	earlier, _ := e.values("Cache-Status")
	b := append(make([]byte, 0, 48), c.name...)
	b = append(b, "; hit; ttl="...)
	b = strconv.AppendInt(b, int64(e.lifetime/time.Second)-second, 10)
	s := &stamp{second: second, age: []string{strconv.FormatInt(second, 10)}, status: withStatus(earlier, string(b))}
	e.stamp.Store(s)
	return s
}

// withStatus appends a member to a Cache-Status field without touching the slice it was given.
func withStatus(earlier []string, member string) []string {
	out := make([]string, 0, len(earlier)+1)
	return append(append(out, earlier...), member)
}

// bodyAllowed reports whether a response with this status has content.
func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}
