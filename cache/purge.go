package cache

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Purge removes every variant of a URL and returns how many there were. An absolute URL stands for http and https
// alike, with and without their default ports, since a server behind a proxy sees one scheme where the client sees the
// other. A path with an optional query is purged for every host. Anything else matches nothing. A fill that began
// before the purge is not stored after it.
//
// Purge works on this cache and its [Store]. Other servers hear of it through [WithRelay].
func (c *Cache) Purge(rawURL string) int { return c.purge(purge{what: aURL, names: []string{rawURL}}) }

// PurgeSoft makes every variant of a URL stale instead of removing it. A stale variant is validated at its next use,
// and served within the windows for stale responses, which begin with the purge unless the variant was stale before.
// Fills under way are not stored.
func (c *Cache) PurgeSoft(rawURL string) int {
	return c.purge(purge{what: aURL, soft: true, names: []string{rawURL}})
}

// subject is what kind of thing is purged. The numbers stand in messages to other servers.
type subject byte

const (
	everything subject = 1
	aURL       subject = 2 // or a path
	aPrefix    subject = 3
	aTag       subject = 4
	aTarget    subject = 5 // of an unsafe request: a URL, spelled as keys are
	someGroups subject = 6 // of an origin, which is the first name
)

// purge is what is to be removed, or made stale. It is what other servers are told as well, each of which finds what that is
// by the rules of its own routes.
type purge struct {
	what  subject
	soft  bool
	lost  bool // the Store could not be told
	names []string
}

// size is about what its names take.
func (p purge) size() (n int) {
	for _, name := range p.names {
		n += len(name) + queuedCost
	}
	return n
}

// selection is what a purge is about here: keys, or what matches; neither where it makes no sense.
func (c *Cache) selection(p purge) (keys []string, match func(*resource, *entry) bool) {
	switch p.what {
	case everything:
		return nil, func(*resource, *entry) bool { return true }
	case aURL:
		return c.selectURL(p.names[0])
	case aPrefix:
		return nil, selectPrefix(p.names[0])
	case aTag:
		tag := p.names[0]
		return nil, func(_ *resource, e *entry) bool { return e.tagged(func(t string) bool { return t == tag }) }
	case aTarget:
		return c.selectTarget(p.names[0]), nil
	case someGroups:
		origin, groups := p.names[0], p.names[1:]
		return nil, func(r *resource, e *entry) bool {
			return originOf(r.key) == origin && slices.ContainsFunc(e.groups, func(g string) bool { return slices.Contains(groups, g) })
		}
	}
	return nil, nil
}

// purge purges here, and has other servers told; see [WithRelay].
func (c *Cache) purge(p purge) (n int) {
	keys, match := c.selection(p)
	if match != nil {
		n, p.lost = c.purgeMany(p, match)
	} else if len(keys) == 0 {
		return 0
	}
	for _, key := range keys {
		m, lost := c.purgeOne([]byte(key), p.soft)
		n += m
		p.lost = p.lost || lost
	}
	if c.relayed != nil {
		c.relayed.queue.add(string(p.append(nil)))
	}
	return n
}

func (c *Cache) selectURL(rawURL string) (keys []string, match func(*resource, *entry) bool) {
	written, _, _ := strings.Cut(rawURL, "#")
	u, err := url.ParseRequestURI(written) // a path may begin with two slashes
	if err != nil || !located(written) {
		return nil, nil
	}
	if u.Host == "" {
		keys := c.keysFor(false, "", written, u)
		return nil, func(r *resource, _ *entry) bool {
			path := pathOf(r.key)
			return slices.ContainsFunc(keys, func(key string) bool { return key[len("http://"):] == path })
		}
	}
	for _, host := range hostsOf(u.Host) {
		for _, tls := range [...]bool{false, true} { // both schemes
			keys = append(keys, c.keysFor(tls, host, written, u)...)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys), nil
}

// hostsOf are the hosts that a host in a URL stands for: where it has no other port, with the default ports as well. Behind
// a proxy that ends TLS and sends Host with its port, ":443" is not the default port of what comes in.
func hostsOf(host string) []string {
	bare := strings.TrimSuffix(strings.TrimSuffix(host, ":80"), ":443")
	if strings.LastIndexByte(bare, ':') > strings.LastIndexByte(bare, ']') {
		return []string{host}
	}
	return []string{bare, bare + ":80", bare + ":443"}
}

// keysFor are the keys that a URL may be stored under: spelled as it is written and as package url would, under the
// rules for queries of each route.
func (c *Cache) keysFor(tls bool, host, written string, u *url.URL) (keys []string) {
	targets := []string{u.RequestURI()}
	if _, rest, ok := strings.Cut(written, "//"); ok && u.Host != "" {
		written = rest[max(0, strings.IndexAny(rest, "/?")):]
	}
	if strings.HasPrefix(written, "/") {
		targets = append(targets, written)
	}
	for _, q := range c.everyQuery() {
		for _, target := range targets {
			key := string((&rules{query: q}).appendURL(nil, tls, host, target))
			if !slices.Contains(keys, key) {
				keys = append(keys, key)
			}
		}
	}
	return keys
}

// pathOf is a key without scheme and host.
func pathOf(key string) string {
	_, rest, _ := strings.Cut(key, "://")
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		return rest[i:]
	}
	return ""
}

func originOf(key string) string { return key[:len(key)-len(pathOf(key))] }

// PurgePrefix removes everything whose URL begins with a prefix: an absolute URL, or a path for every host. It walks
// the whole store.
func (c *Cache) PurgePrefix(prefix string) int {
	return c.purge(purge{what: aPrefix, names: []string{prefix}})
}

// PurgePrefixSoft is [Cache.PurgePrefix] with the effect of [Cache.PurgeSoft].
func (c *Cache) PurgePrefixSoft(prefix string) int {
	return c.purge(purge{what: aPrefix, soft: true, names: []string{prefix}})
}

func selectPrefix(prefix string) func(*resource, *entry) bool {
	if strings.HasPrefix(prefix, "/") {
		return func(r *resource, _ *entry) bool { return strings.HasPrefix(pathOf(r.key), prefix) }
	}
	if !located(prefix) {
		return nil
	}
	_, rest, _ := strings.Cut(prefix, "://")
	host, path := rest, "/"
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		host, path = rest[:i], rest[i:]
	}
	var prefixes []string
	for _, host := range hostsOf(host) {
		prefixes = append(prefixes, string((&rules{}).appendURL(nil, false, host, path)), string((&rules{}).appendURL(nil, true, host, path)))
	}
	return func(r *resource, _ *entry) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(r.key, p) })
	}
}

// PurgeTag removes every response that carries a tag, in one of the fields of [WithTags] or in
// Cache-Groups. It walks the whole store.
func (c *Cache) PurgeTag(tag string) int { return c.purge(purge{what: aTag, names: []string{tag}}) }

// PurgeTagSoft is [Cache.PurgeTag] with the effect of [Cache.PurgeSoft].
func (c *Cache) PurgeTagSoft(tag string) int {
	return c.purge(purge{what: aTag, soft: true, names: []string{tag}})
}

// tagged reports whether a response carries a tag, or is in a group of that name.
func (e *entry) tagged(is func(string) bool) bool {
	return slices.ContainsFunc(e.tags, is) || slices.ContainsFunc(e.groups, is)
}

// PurgeAll removes everything.
func (c *Cache) PurgeAll() int { return c.purge(purge{what: everything}) }

// PurgeAllSoft makes everything stale; see [Cache.PurgeSoft].
func (c *Cache) PurgeAllSoft() int { return c.purge(purge{what: everything, soft: true}) }

// tagsOf collects the tags of a response, and its groups (RFC 9875).
func (p *rules) tagsOf(h http.Header) (tags, groups []string) {
	h = canonicalFields(h)
	for _, name := range p.tagFields {
		for _, line := range h[name] {
			for tag := range strings.FieldsFuncSeq(line, func(c rune) bool { return c == ' ' || c == ',' || c == '\t' }) {
				tags = append(tags, strings.Clone(tag))
			}
		}
	}
	return tags, parseStrings(h["Cache-Groups"])
}

// retag gives a stored response the tags and groups that an answer which freshens it names. Where that names none they stay.
func (p *rules) retag(e *entry, h http.Header) {
	h = canonicalFields(h)
	tagged := slices.ContainsFunc(p.tagFields, func(name string) bool { return len(h[name]) != 0 })
	if !tagged && len(h["Cache-Groups"]) == 0 {
		return
	}
	all := e.header()
	maps.Copy(all, h)
	tags, groups := p.tagsOf(all)
	if tagged {
		e.tags = tags
	}
	if len(h["Cache-Groups"]) != 0 {
		e.groups = groups
	}
}

// strip takes the tag fields out of what is sent, and out of what is stored, if anything is.
func (p *rules) strip(e *entry, h http.Header) {
	tag := func(name string) bool { return slices.Contains(p.tagFields, http.CanonicalHeaderKey(name)) }
	maps.DeleteFunc(h, func(name string, _ []string) bool { return tag(name) })
	if e != nil {
		e.fields = slices.DeleteFunc(e.fields, func(f field) bool { return tag(f.name) })
	}
}

// serveOther serves methods other than GET and HEAD. One that is not known to be safe and succeeds
// makes what is stored under its URL invalid, and under the URLs of the same origin that the
// response names (RFC 9111, section 4.4), or the request, where it says where to copy or move something.
func (h *route) serveOther(w http.ResponseWriter, r *http.Request) {
	h.cache.count(w, r, Bypass)
	h.calls(w)
	switch r.Method {
	case http.MethodOptions, http.MethodTrace, http.MethodConnect, "PROPFIND", "REPORT", "SEARCH", "QUERY":
		h.next.ServeHTTP(w, r)
		return
	}
	asked := string(new(rules).appendKey(nil, r)) // a layer inside may change the request
	destination := ""
	if r.Method == "COPY" || r.Method == "MOVE" {
		destination = r.Header.Get("Destination") // RFC 4918, section 10.3
	}
	inner := w
	var final func() int
	if s, ok := find[StatusReporter](w); ok {
		final = s.Status
	} else {
		ww := &watch{ResponseWriter: w}
		inner, final = watchFor(ww), func() int { return ww.status }
	}
	returned := false
	defer func() {
		status := final()
		if status == 0 && returned {
			status = http.StatusOK
		}
		h.cache.invalidate(asked, destination, status, w.Header()) // also where the body breaks off after a status of success
	}()
	h.next.ServeHTTP(inner, r)
	returned = true
}

// invalidate purges what a request to a URL has made invalid by succeeding. destination is where it has put something.
func (c *Cache) invalidate(asked, destination string, status int, hd http.Header) {
	if status < 200 || status > 399 {
		return
	}
	origin := originOf(asked)
	c.purge(purge{what: aTarget, names: []string{asked}})
	if base, err := url.Parse(asked); err == nil {
		also := func(u *url.URL, scheme string) {
			named := string(new(rules).appendURL(nil, scheme == "https", withoutPort(u.Host, u.Scheme == "https"), u.RequestURI()))
			if originOf(named) == origin {
				c.purge(purge{what: aTarget, names: []string{named}})
			}
		}
		if u, err := base.Parse(destination); err == nil && destination != "" {
			also(u, base.Scheme) // the client says https where a proxy in front of us ends TLS, and we are asked by http
		}
		for _, name := range [...]string{"Location", "Content-Location"} {
			for _, v := range hd[name] {
				if u, err := base.Parse(v); err == nil {
					also(u, u.Scheme)
				}
			}
		}
	}
	if groups := parseStrings(hd["Cache-Group-Invalidation"]); len(groups) != 0 {
		c.purge(purge{what: someGroups, names: append([]string{origin}, groups...)})
	}
}

// selectTarget are the keys of a URL that is spelled as keys are, under the rules for queries of each route.
func (c *Cache) selectTarget(written string) (keys []string) {
	if len(written) > 2*maxKey {
		return nil // whichever parameters are left out of a key, nothing is stored under such a long one
	}
	for _, q := range c.everyQuery() {
		key := written
		if q != nil {
			path, query, _ := strings.Cut(written, "?")
			key = string(q.appendTo([]byte(path), query))
		}
		if !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	return keys
}

// everyQuery are the rules for queries of each route; nil are those that have none.
func (c *Cache) everyQuery() []*queryRules {
	c.queriesMu.Lock()
	defer c.queriesMu.Unlock()
	return append([]*queryRules{c.rules.query}, c.queries...)
}
