package cache

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Purge removes every variant of a URL and returns how many there were. The URL is absolute, and
// then it stands for http and https alike, with their default ports and without, since a server behind a proxy
// sees the one where the client sees the other; or it is a path with an optional query, and then it is purged for every
// host. What is neither is found nowhere. A fill that began before the purge is not stored after it.
func (c *Cache) Purge(rawURL string) int { return c.purgeURL(rawURL, false) }

// PurgeSoft makes every variant of a URL stale in place of removing it: it is validated at the
// next use, and served within the windows for stale responses, which begin with the purge unless it was stale before. Fills under
// way are not stored.
func (c *Cache) PurgeSoft(rawURL string) int { return c.purgeURL(rawURL, true) }

func (c *Cache) purgeURL(rawURL string, soft bool) int {
	written, _, _ := strings.Cut(rawURL, "#")
	u, err := url.ParseRequestURI(written) // a path may begin with two slashes
	if err != nil || !located(written) {
		return 0
	}
	if u.Host == "" {
		keys := c.keysFor(false, "", written, u)
		return c.purgeMany(soft, func(r *resource, _ *entry) bool {
			path := pathOf(r.key)
			return slices.ContainsFunc(keys, func(key string) bool { return key[len("http://"):] == path })
		})
	}
	var keys []string
	for _, host := range hostsOf(u.Host) {
		for _, tls := range [...]bool{false, true} { // both schemes
			keys = append(keys, c.keysFor(tls, host, written, u)...)
		}
	}
	slices.Sort(keys)
	n := 0
	for _, key := range slices.Compact(keys) {
		n += c.purgeOne([]byte(key), soft)
	}
	return n
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

// PurgePrefix removes everything whose URL begins with a prefix: an absolute URL, or a path for
// every host. It walks the whole store.
func (c *Cache) PurgePrefix(prefix string) int { return c.purgePrefix(prefix, false) }

// PurgePrefixSoft is [Cache.PurgePrefix], and [Cache.PurgeSoft].
func (c *Cache) PurgePrefixSoft(prefix string) int { return c.purgePrefix(prefix, true) }

func (c *Cache) purgePrefix(prefix string, soft bool) int {
	if strings.HasPrefix(prefix, "/") {
		return c.purgeMany(soft, func(r *resource, _ *entry) bool { return strings.HasPrefix(pathOf(r.key), prefix) })
	}
	if !located(prefix) {
		return 0
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
	return c.purgeMany(soft, func(r *resource, _ *entry) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(r.key, p) })
	})
}

// PurgeTag removes every response that carries a tag, in one of the fields of [WithTags] or in
// Cache-Groups. It walks the whole store.
func (c *Cache) PurgeTag(tag string) int { return c.purgeTag(tag, false) }

// PurgeTagSoft is [Cache.PurgeTag], and [Cache.PurgeSoft].
func (c *Cache) PurgeTagSoft(tag string) int { return c.purgeTag(tag, true) }

func (c *Cache) purgeTag(tag string, soft bool) int {
	return c.purgeMany(soft, func(_ *resource, e *entry) bool {
		return slices.Contains(e.tags, tag) || slices.Contains(e.groups, tag)
	})
}

// PurgeAll removes everything.
func (c *Cache) PurgeAll() int {
	return c.purgeMany(false, func(*resource, *entry) bool { return true })
}

// PurgeAllSoft makes everything stale; see [Cache.PurgeSoft].
func (c *Cache) PurgeAllSoft() int {
	return c.purgeMany(true, func(*resource, *entry) bool { return true })
}

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
// response names (RFC 9111, section 4.4).
func (h *route) serveOther(w http.ResponseWriter, r *http.Request) {
	h.cache.count(w, r, Bypass)
	switch r.Method {
	case http.MethodOptions, http.MethodTrace, http.MethodConnect, "PROPFIND", "REPORT", "SEARCH", "QUERY":
		h.next.ServeHTTP(w, r)
		return
	}
	asked := string(new(rules).appendKey(nil, r)) // a layer inside may change the request
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
		h.cache.invalidate(asked, status, w.Header()) // also where the body breaks off after a status of success
	}()
	h.next.ServeHTTP(inner, r)
	returned = true
}

// invalidate purges what a request to a URL has made invalid by succeeding.
func (c *Cache) invalidate(asked string, status int, hd http.Header) {
	if status < 200 || status > 399 {
		return
	}
	origin := originOf(asked)
	c.purgeTarget(asked)
	if base, err := url.Parse(asked); err == nil {
		for _, name := range [...]string{"Location", "Content-Location"} {
			for _, v := range hd[name] {
				u, err := base.Parse(v)
				if err != nil {
					continue
				}
				named := string(new(rules).appendURL(nil, u.Scheme == "https", u.Host, u.RequestURI()))
				if originOf(named) == origin {
					c.purgeTarget(named)
				}
			}
		}
	}
	if groups := parseStrings(hd["Cache-Group-Invalidation"]); len(groups) != 0 {
		c.purgeMany(false, func(res *resource, e *entry) bool {
			return originOf(res.key) == origin && slices.ContainsFunc(e.groups, func(g string) bool { return slices.Contains(groups, g) })
		})
	}
}

// purgeTarget purges a URL, spelled as keys are, under the rules for queries of each route.
func (c *Cache) purgeTarget(written string) {
	var keys []string
	for _, q := range c.everyQuery() {
		key := written
		if q != nil {
			path, query, _ := strings.Cut(written, "?")
			key = string(q.appendTo([]byte(path), query))
		}
		if !slices.Contains(keys, key) {
			keys = append(keys, key)
			c.purgeOne([]byte(key), false)
		}
	}
}

// everyQuery are the rules for queries of each route; nil are those that have none.
func (c *Cache) everyQuery() []*queryRules {
	c.queriesMu.Lock()
	defer c.queriesMu.Unlock()
	return append([]*queryRules{c.rules.query}, c.queries...)
}
