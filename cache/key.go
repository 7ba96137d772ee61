package cache

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// maxKey is the longest key; requests with a longer one are passed to the handler.
const maxKey = 4 << 10

// target returns the path and query of a request as the client wrote them. The request line is
// asked before the URL, because a layer such as [http.StripPrefix] changes the URL, and two
// routes that are the same afterwards must not share entries.
func target(r *http.Request) (s string, ok bool) {
	s = r.RequestURI
	if s == "" {
		return "", false
	}
	if s[0] == '/' {
		return s, true
	}
	// absolute-form (RFC 9112, section 3.2.2). With a scheme that is not the connection's, or with a user, it is the target of another URI
	// (section 3.3), and the handler sees that in r.URL.
	if scheme, rest, ok := strings.Cut(s, "://"); ok && r.URL.Opaque == "" && strings.EqualFold(scheme, schemeOf(r)) {
		j := strings.IndexAny(rest, "/?")
		if at := strings.IndexByte(rest, '@'); at >= 0 && (j < 0 || at < j) {
			return s, true
		}
		switch {
		case j < 0:
			return "/", true // what a path that is empty stands for; the handler gets it empty, see extra
		case rest[j] == '?':
			return "/" + rest[j:], true
		}
		return rest[j:], true
	}
	return s, true // or "*", or "http:m/x", which net/http lets through
}

func schemeOf(r *http.Request) string {
	if r.TLS != nil {
		return "https"
	}
	return "http"
}

// appendKey appends the primary key (RFC 9111, section 2): the URL as the client wrote it, with
// scheme and host in canonical form. Path and query stay as they are: what looks equivalent is not
// to every handler, and a cache that guesses can be poisoned.
func (p *rules) appendKey(b []byte, r *http.Request) []byte {
	t, ok := target(r)
	if !ok {
		t = r.URL.RequestURI()
	}
	host := r.Host
	if host == "" {
		host = r.URL.Host
	}
	return p.appendURL(b, r.TLS != nil, host, t)
}

// withoutPort returns a host without the default port of its scheme.
func withoutPort(host string, tls bool) string {
	if tls {
		return strings.TrimSuffix(host, ":443")
	}
	return strings.TrimSuffix(host, ":80")
}

func (p *rules) appendURL(b []byte, tls bool, host, target string) []byte {
	if tls {
		b = append(b, "https://"...)
	} else {
		b = append(b, "http://"...)
	}
	host = withoutPort(host, tls)
	for i := 0; i < len(host); i++ {
		c := host[i]
		switch {
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		case c == '/':
			// net/http does not check the host of an HTTP/2 request: what is behind a slash in it
			// must not be taken for a path.
			c = '\\'
		}
		b = append(b, c)
	}
	if !strings.HasPrefix(target, "/") {
		// "*", or "m/x", which behind the host example.co must not become the path /x of example.com.
		b = append(b, "/ "...)
	}
	if p.query == nil {
		return append(b, target...)
	}
	path, query, _ := strings.Cut(target, "?")
	b = append(b, path...)
	return p.query.appendTo(b, query)
}

// queryRules say which parameters of a query are part of the key.
type queryRules struct {
	allow, deny []string
	only, sort  bool
}

func (q *queryRules) equal(o *queryRules) bool {
	return slices.Equal(q.allow, o.allow) && slices.Equal(q.deny, o.deny) && q.only == o.only && q.sort == o.sort
}

func (q *queryRules) appendTo(b []byte, query string) []byte {
	if len(query) > maxKey {
		return append(append(b, '?'), query...) // to take it apart could cost a second, and it is too long for a key
	}
	var kept []string
	sort := q.sort
	for pair := range strings.SplitSeq(query, "&") {
		name, plain := parameter(pair)
		sort = sort && plain
		if pair == "" || plain && (q.only && !slices.Contains(q.allow, name) || slices.Contains(q.deny, name)) {
			continue
		}
		kept = append(kept, pair)
	}
	if sort {
		slices.SortStableFunc(kept, func(a, b string) int {
			a, _ = parameter(a)
			b, _ = parameter(b)
			return strings.Compare(a, b)
		})
	}
	for i, pair := range kept {
		if i == 0 {
			b = append(b, '?')
		} else {
			b = append(b, '&')
		}
		b = append(b, pair...)
	}
	return b
}

// parameter is the name of a query parameter as a handler reads it: "%69d" is "id" as well, and if it were not
// taken for that, the response to it would be found under the key without it. It reports false for what
// one parser reads differently from another: such a pair stays in the key, and in its place.
func parameter(pair string) (name string, plain bool) {
	name, _, _ = strings.Cut(pair, "=")
	plain = strings.IndexByte(pair, ';') < 0
	if strings.ContainsAny(name, "%+") {
		decoded, err := url.QueryUnescape(name)
		return decoded, plain && err == nil
	}
	return name, plain
}

// extra is what tells requests for one URL apart besides Vary: the key headers, cookies and
// functions of the route, and the inner URL where a layer outside rewrote it. It is empty, and
// costs nothing, for most routes. Entries that differ in it are variants of one resource, so that
// a purge of the URL removes them all.
func (p *rules) extra(r *http.Request) string {
	rewritten := false
	if t, ok := target(r); ok {
		path, query := r.URL.EscapedPath(), r.URL.RawQuery
		rest, found := strings.CutPrefix(t, path)
		switch {
		case !found:
			rewritten = true
		case rest == "":
			rewritten = query != ""
		default:
			rewritten = rest[0] != '?' || rest[1:] != query
		}
	}
	if !rewritten && len(p.keyHeaders) == 0 && len(p.keyCookies) == 0 && p.keyFunc == nil {
		return ""
	}
	var b strings.Builder
	switch {
	case rewritten && p.query != nil:
		b.WriteString(r.URL.EscapedPath())
		b.Write(p.query.appendTo(nil, r.URL.RawQuery))
	case rewritten:
		b.WriteString(r.URL.RequestURI())
	}
	for _, name := range p.keyHeaders {
		b.WriteByte(0)
		if lines := r.Header[name]; len(lines) != 0 {
			b.WriteByte(1)
			b.WriteString(normalise(name, lines))
		}
	}
	for _, name := range p.keyCookies {
		b.WriteByte(0)
		// Each one of that name, as it was sent: which of them counts, and what of it, is for the handler to say.
		for _, line := range r.Header["Cookie"] {
			for pair := range strings.SplitSeq(line, ";") {
				if n, value, _ := strings.Cut(trimOWS(pair), "="); trimOWS(n) == name {
					b.WriteByte(1)
					b.WriteString(trimOWS(value))
				}
			}
		}
	}
	if p.keyFunc != nil {
		b.WriteByte(0)
		b.WriteString(p.keyFunc(r))
	}
	return b.String()
}
