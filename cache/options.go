package cache

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Option changes a [Cache] at its construction. What makes one panics at a number or time below 0, and at 0 where that
// would be nothing at all, as the size of a body or a lifetime.
type Option interface{ applyCache(*config) }

// RouteOption changes the rules by which responses are stored and found. Given to [New] it holds
// for every route, given to [Cache.Handler] for that one, where it comes after those of New.
//
// Options that take the names of fields, cookies or hosts panic at one that is none, as several in one string are.
type RouteOption interface {
	Option
	applyRoute(*rules)
}

type config struct {
	rules                      rules
	name                       string
	maxObject                  int64
	maxEntries, maxVariants    int
	collapseWait               time.Duration
	admission                  bool
	revalidations              int
	revalidateTimeout, backOff time.Duration
	trace                      Trace
	backing                    Store
	backingTimeout             time.Duration
	relay                      Relay
	relayLimit                 time.Duration
	relayRemoves               bool
}

// rules are how one route stores and finds responses.
type rules struct {
	targets        []string
	surrogate      string
	onlyExplicit   bool
	storeSetCookie bool
	storeErrors    bool
	ignoreClient   bool
	unkeyed        []string
	unkeyedMoves   []string // what counts as unkeyed for redirects alone
	ttl            func(*http.Request, int, http.Header) time.Duration
	bypass         func(*http.Request) bool
	query          *queryRules
	keyHeaders     []string
	keyCookies     []string
	keyFunc        func(*http.Request) string
	hosts          []string // lower case, without the default port of http
	secureHosts    []string // the same, of https
	tagFields      []string
	stripTags      bool

	whileStale, ifError, ifUnreachable time.Duration
}

type option func(*config)

func (o option) applyCache(c *config) { o(c) }

type routeOption func(*rules)

func (o routeOption) applyCache(c *config) { o(&c.rules) }
func (o routeOption) applyRoute(p *rules)  { o(p) }

// canonical are the names of fields as a header has them. A name that none can have would be looked for in vain, and
// what it was to keep apart would be one.
func canonical(option string, names []string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = http.CanonicalHeaderKey(token(option, n))
	}
	return out
}

// token returns a name if it is a token (RFC 9110, section 5.6.2), as the names of fields and of cookies are.
func token(option, name string) string {
	for i := 0; i < len(name); i++ {
		if !tokenByte(name[i]) {
			panic(fmt.Sprintf("cache: %s(%q): not a name; give each name as an argument of its own", option, name))
		}
	}
	if name == "" {
		panic(fmt.Sprintf("cache: %s: a name is empty; leave it out", option))
	}
	return name
}

func tokenByte(c byte) bool {
	return alpha(c) || digit(c) || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

func atLeast[T int | int64 | time.Duration](option string, n, least T) {
	if n < least {
		panic(fmt.Sprintf("cache: %s(%v): must be at least %v", option, n, least))
	}
}

// WithName sets the name of the cache in Cache-Status (RFC 9211): a letter, and then letters, digits, '-', '.' and '_'.
// The default is "spillgate". It panics at another one.
func WithName(name string) Option {
	for i := 0; i < len(name); i++ {
		if !alpha(name[i]) && (i == 0 || !digit(name[i]) && strings.IndexByte("-._", name[i]) < 0) {
			panic(fmt.Sprintf("cache: WithName(%q): must be a token of letters, digits, '-', '.' and '_' that begins with a letter", name))
		}
	}
	if name == "" {
		panic("cache: WithName: must not be empty")
	}
	return option(func(c *config) { c.name = name })
}

// WithMaxObject sets the size in bytes of the largest body that is stored, up to a quarter of the
// budget. The default is a 64th of the budget, and at most 8 MiB.
func WithMaxObject(bytes int64) Option {
	atLeast("WithMaxObject", bytes, 1)
	return option(func(c *config) { c.maxObject = bytes })
}

// WithMaxEntries bounds the number of stored responses, besides the budget of bytes. 0, the
// default, is no bound of its own.
func WithMaxEntries(n int) Option {
	atLeast("WithMaxEntries", n, 0)
	return option(func(c *config) { c.maxEntries = n })
}

// WithMaxVariants sets how many variants of one URL are stored; the newest stay. The default is 16.
func WithMaxVariants(n int) Option {
	atLeast("WithMaxVariants", n, 1)
	return option(func(c *config) { c.maxVariants = n })
}

// WithCollapseWait sets how long requests wait for another one's response. If it takes longer, one of those who wait goes to the handler as
// well, and the others wait for either response; who has waited for twice as long goes to the handler itself. The default is 5 s; 0 turns
// collapsing off.
func WithCollapseWait(d time.Duration) Option {
	atLeast("WithCollapseWait", d, 0)
	return option(func(c *config) { c.collapseWait = d })
}

// WithAdmission stores a response only at the second miss for its key within a while, so that a
// scan over many URLs that are asked for once does not push out the ones that are in use.
func WithAdmission() Option { return option(func(c *config) { c.admission = true }) }

// WithRevalidations sets how many background validations may run at once, over all keys, how long
// each may take, and how long a key is left alone after one failed, which doubles with each
// failure up to 32 times as much. The defaults are 16, 30 s and 1 s. While no other may run, and so with an n of 0
// always, a stale response is served without, for as long as its window lasts.
func WithRevalidations(n int, timeout, backOff time.Duration) Option {
	atLeast("WithRevalidations", n, 0)
	atLeast("WithRevalidations", timeout, 1)
	atLeast("WithRevalidations", backOff, 0)
	return option(func(c *config) { c.revalidations, c.revalidateTimeout, c.backOff = n, timeout, backOff })
}

// WithTrace has functions called as things happen.
func WithTrace(t Trace) Option { return option(func(c *config) { c.trace = t }) }

// WithOnlyExplicit stores only what the handler addresses to shared caches: public, s-maxage or a
// targeted field such as CDN-Cache-Control. A response that says no more than max-age may be meant
// for the browser of one user. Responses that are not stored leave without a Cache-Status.
func WithOnlyExplicit() RouteOption {
	return routeOption(func(p *rules) { p.onlyExplicit = true })
}

// WithStoreSetCookie stores responses that set cookies. Every client then gets the cookies of the
// one whose request made the response: for handlers that set only cookies that are nobody's. The cookies that a
// layer outside the cache has set before are none of the response: it is stored without them, with this option or not.
func WithStoreSetCookie() RouteOption {
	return routeOption(func(p *rules) { p.storeSetCookie = true })
}

// WithStoreErrors stores 400 and 5xx responses with explicit freshness even where the request had
// fields of unusual size or characters, which may be what provoked the error.
func WithStoreErrors() RouteOption { return routeOption(func(p *rules) { p.storeErrors = true }) }

// WithIgnoreClientControl ignores Cache-Control and Pragma of requests, so that a client cannot
// have the handler asked.
func WithIgnoreClientControl() RouteOption {
	return routeOption(func(p *rules) { p.ignoreClient = true })
}

// WithTrustedHeaders names request fields that are set by a proxy of yours, or that the handler
// does not look at. A response to a request that carries one of X-Forwarded-Host,
// X-Forwarded-Scheme, X-Forwarded-Prefix, X-Host, X-Original-Url, X-Rewrite-Url,
// X-Http-Method-Override and Forwarded is else served, but not stored unless Vary or
// [WithKeyHeaders] names the field: the handler may have built its answer from it. So is a redirect in answer to
// one that carries X-Forwarded-Proto, since many redirect who has come without TLS, and who has come with it would go round in circles. Proxies set that
// field with each request, so other responses are stored: where they depend on it too, name it in WithKeyHeaders.
func WithTrustedHeaders(names ...string) RouteOption {
	names = canonical("WithTrustedHeaders", names)
	return routeOption(func(p *rules) { p.settled(names) })
}

// settled takes request fields out of those that keep a response from being stored.
func (p *rules) settled(names []string) {
	named := func(n string) bool { return slices.Contains(names, n) }
	p.unkeyed = slices.DeleteFunc(slices.Clone(p.unkeyed), named)
	p.unkeyedMoves = slices.DeleteFunc(slices.Clone(p.unkeyedMoves), named)
}

// WithUnkeyedHeaders adds request fields to the list of [WithTrustedHeaders].
func WithUnkeyedHeaders(names ...string) RouteOption {
	names = canonical("WithUnkeyedHeaders", names)
	return routeOption(func(p *rules) { p.unkeyed = append(slices.Clip(p.unkeyed), names...) })
}

// WithTargets sets the targeted fields (RFC 9213) that are obeyed, the first one present before the
// others and all before Cache-Control and Expires. The default is CDN-Cache-Control. What is said there means what it means in
// Cache-Control: the response to a request with credentials is stored for public, s-maxage and must-revalidate, and not for max-age alone.
func WithTargets(names ...string) RouteOption {
	names = canonical("WithTargets", names)
	return routeOption(func(p *rules) { p.targets = names })
}

// WithSurrogate obeys Surrogate-Control, after the targeted fields and before Cache-Control, and
// announces the cache to the handler under a name in Surrogate-Capability. It is off by default:
// a handler that writes Surrogate-Control today means the CDN in front, and purges it there. Responses to requests with
// credentials are not stored for it. The name is a token
// (RFC 9110, section 5.6.2), and WithSurrogate panics at another one; an empty one ends what [New] was given.
func WithSurrogate(name string) RouteOption {
	if name != "" {
		token("WithSurrogate", name)
	}
	return routeOption(func(p *rules) { p.surrogate = name })
}

// WithTTL gives a lifetime to 200 responses that state none. They are stored for every user alike:
// for routes whose responses depend on nothing but the key. It addresses nobody: under [WithOnlyExplicit], which the cache of
// middleware.Defaults has, those that do not say public themselves are not stored all the same. Nor does it give one where a handler has written
// nothing at all, not even a status: that may be an error, which is answered when the handler has returned, as by echo.
func WithTTL(d time.Duration) RouteOption {
	atLeast("WithTTL", d, 1)
	return WithTTLFunc(func(_ *http.Request, status int, _ http.Header) time.Duration {
		if status == http.StatusOK {
			return d
		}
		return 0
	})
}

// WithTTLFunc asks f for the lifetime of responses that state none, of whatever status: with a lifetime an error
// is stored like any other, unless it answers one request alone, as 401, 412 and 429 do. 0 leaves it at that. What is said of [WithOnlyExplicit] at [WithTTL] holds here too. f may be
// called by many goroutines at once and must not change the header. A nil f ends what [New] was given.
func WithTTLFunc(f func(r *http.Request, status int, header http.Header) time.Duration) RouteOption {
	return routeOption(func(p *rules) { p.ttl = f })
}

// WithBypass passes the requests for which f is true to the handler, and stores nothing of them. A nil f
// ends what [New] was given.
func WithBypass(f func(*http.Request) bool) RouteOption {
	return routeOption(func(p *rules) { p.bypass = f })
}

// WithHosts caches only requests for these hosts; others are passed on. The default port of a request's scheme, given here
// or in its Host, is as good as none. No hosts are all hosts.
func WithHosts(hosts ...string) RouteOption {
	var plain, secure []string
	for _, h := range hosts {
		if u, err := url.Parse("//" + h); err != nil || u.Host != h || h == "" || strings.HasSuffix(h, ":") || strings.ContainsAny(h, ",*") {
			panic(fmt.Sprintf("cache: WithHosts(%q): not a host; give each as Host has it, such as example.com or example.com:8080", h))
		}
		h = strings.ToLower(h)
		plain = append(plain, withoutPort(h, false))
		secure = append(secure, withoutPort(h, true))
	}
	return routeOption(func(p *rules) { p.hosts, p.secureHosts = plain, secure })
}

func (p *rules) setQuery(f func(*queryRules)) {
	q := queryRules{}
	if p.query != nil {
		q = *p.query
	}
	f(&q)
	p.query = &q
}

// WithQuery makes only these query parameters part of the key, by their names as a handler reads
// them, whatever of it is percent-encoded in the URL. The handler still gets the whole query: it must
// not let the others change the response.
func WithQuery(params ...string) RouteOption {
	return routeOption(func(p *rules) { p.setQuery(func(q *queryRules) { q.only, q.allow = true, params }) })
}

// WithoutQuery leaves these query parameters, such as utm_source, out of the key.
func WithoutQuery(params ...string) RouteOption {
	return routeOption(func(p *rules) { p.setQuery(func(q *queryRules) { q.deny = append(slices.Clip(q.deny), params...) }) })
}

// WithSortedQuery makes the order of differently named query parameters mean nothing.
func WithSortedQuery() RouteOption {
	return routeOption(func(p *rules) { p.setQuery(func(q *queryRules) { q.sort = true }) })
}

// WithKeyHeaders makes request fields part of the key, as if every response named them in Vary.
func WithKeyHeaders(names ...string) RouteOption {
	names = canonical("WithKeyHeaders", names)
	return routeOption(func(p *rules) {
		p.keyHeaders = append(slices.Clip(p.keyHeaders), names...)
		p.settled(names)
	})
}

// WithKeyCookies makes the values of cookies part of the key.
func WithKeyCookies(names ...string) RouteOption {
	for _, n := range names {
		token("WithKeyCookies", n)
	}
	return routeOption(func(p *rules) { p.keyCookies = append(slices.Clip(p.keyCookies), names...) })
}

// WithKey makes what f returns part of the key: a device class, a country, a tenant. f must return
// few different values; each is a variant (see [WithMaxVariants]). A nil f ends what [New] was given.
func WithKey(f func(*http.Request) string) RouteOption {
	return routeOption(func(p *rules) { p.keyFunc = f })
}

// WithTags sets the response fields that carry tags for [Cache.PurgeTag], separated by spaces or
// commas. The default is Cache-Tag and Surrogate-Key. With strip the client does not see them, but for
// responses that the cache has no part in (see [Bypass]).
// Cache-Groups (RFC 9875) are tags in any case, and stay.
func WithTags(strip bool, fields ...string) RouteOption {
	fields = canonical("WithTags", fields)
	return routeOption(func(p *rules) { p.tagFields, p.stripTags = fields, strip })
}

// WithStaleWhileRevalidate sets how long a stale response is served while it is validated in the
// background, where the response does not say (RFC 5861, section 3). The default is 0.
//
// In the background the handler runs when the request that began it has ended. A router that gives what it keeps of a request to the next one
// then, as chi, echo, gin and fiber do, is to be inside of the cache, with all that it calls: put the cache around the router, and not among its
// middlewares, where parameters and answers of two requests would be mixed up. Within chi, echo and gin, which are known by what
// they leave in a request, requests wait for the validation instead.
func WithStaleWhileRevalidate(d time.Duration) RouteOption {
	atLeast("WithStaleWhileRevalidate", d, 0)
	return routeOption(func(p *rules) { p.whileStale = d })
}

// WithStaleIfError sets how long a stale response is served in place of a 500 or 503 of the
// handler, where the response does not say (RFC 5861, section 4). The default is 0.
func WithStaleIfError(d time.Duration) RouteOption {
	atLeast("WithStaleIfError", d, 0)
	return routeOption(func(p *rules) { p.ifError = d })
}

// WithStaleIfUnreachable sets how long a stale response is served where the handler could not be
// asked at all (RFC 9111, section 4.2.4) and the response says nothing of stale-if-error: a
// protecting layer refused, the handler panicked, or answered 502 or 504. The default is 60 s.
func WithStaleIfUnreachable(d time.Duration) RouteOption {
	atLeast("WithStaleIfUnreachable", d, 0)
	return routeOption(func(p *rules) { p.ifUnreachable = d })
}
