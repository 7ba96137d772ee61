package cache

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Option changes a [Cache] at its construction. Constructors of options panic if a number or time is below 0; they also
// panic at 0 where 0 would mean nothing at all, as for the size of a body or a lifetime.
type Option interface{ applyCache(*config) }

// RouteOption changes the rules by which responses are stored and found. Given to [New], it holds for every route.
// Given to [Cache.Handler], it holds for that route and applies after those of New.
//
// Options that take the names of fields, cookies or hosts panic if a string is not such a name, as one that holds
// several names is not.
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
// The default is "spillgate". WithName panics at any other form.
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

// WithMaxObject sets the size in bytes of the largest body that is stored, up to a quarter of the budget. The default
// is a 64th of the budget, but at most 8 MiB.
func WithMaxObject(bytes int64) Option {
	atLeast("WithMaxObject", bytes, 1)
	return option(func(c *config) { c.maxObject = bytes })
}

// WithMaxEntries bounds the number of stored responses, in addition to the byte budget. The default, 0, sets no such
// bound.
func WithMaxEntries(n int) Option {
	atLeast("WithMaxEntries", n, 0)
	return option(func(c *config) { c.maxEntries = n })
}

// WithMaxVariants sets how many variants of one URL are stored; the newest are kept. The default is 16.
func WithMaxVariants(n int) Option {
	atLeast("WithMaxVariants", n, 1)
	return option(func(c *config) { c.maxVariants = n })
}

// WithCollapseWait sets how long requests wait for the response of another one. If that response takes longer, one of
// the waiting requests goes to the handler as well, and the others wait for either response. A request that has waited
// for twice as long goes to the handler itself. The default is 5 s; 0 turns collapsing off.
func WithCollapseWait(d time.Duration) Option {
	atLeast("WithCollapseWait", d, 0)
	return option(func(c *config) { c.collapseWait = d })
}

// WithAdmission stores a response only at the second miss for its key within a while. A scan over many URLs that are
// each requested once then does not push out the ones in use.
func WithAdmission() Option { return option(func(c *config) { c.admission = true }) }

// WithRevalidations sets three limits of background validations: n is how many may run at once, over all keys; timeout
// is how long each may take; backOff is how long a key is left alone after a validation failed. The back-off doubles
// with each failure, up to 32 times backOff. The defaults are 16, 30 s and 1 s. While no other validation may run, and
// so always if n is 0, a stale response is served without one, for as long as its window lasts.
func WithRevalidations(n int, timeout, backOff time.Duration) Option {
	atLeast("WithRevalidations", n, 0)
	atLeast("WithRevalidations", timeout, 1)
	atLeast("WithRevalidations", backOff, 0)
	return option(func(c *config) { c.revalidations, c.revalidateTimeout, c.backOff = n, timeout, backOff })
}

// WithTrace sets functions that are called as things happen.
func WithTrace(t Trace) Option { return option(func(c *config) { c.trace = t }) }

// WithOnlyExplicit stores only what the handler addresses to shared caches, by public, s-maxage or a targeted field
// such as CDN-Cache-Control. A response that says no more than max-age may be meant for the browser of one user.
// Responses that are not stored leave without a Cache-Status.
func WithOnlyExplicit() RouteOption {
	return routeOption(func(p *rules) { p.onlyExplicit = true })
}

// WithStoreSetCookie stores responses that set cookies. Every client then gets the cookies of the client whose request
// made the response, so use it only for handlers whose cookies identify nobody. Cookies that a layer outside the cache
// has set before are not part of the response: with or without this option, it is stored without them.
func WithStoreSetCookie() RouteOption {
	return routeOption(func(p *rules) { p.storeSetCookie = true })
}

// WithStoreErrors stores 400 and 5xx responses that have explicit freshness even if the request had fields of unusual
// size or with unusual characters, which may have provoked the error.
func WithStoreErrors() RouteOption { return routeOption(func(p *rules) { p.storeErrors = true }) }

// WithIgnoreClientControl ignores Cache-Control and Pragma in requests, so that a client cannot force a call of the
// handler.
func WithIgnoreClientControl() RouteOption {
	return routeOption(func(p *rules) { p.ignoreClient = true })
}

// WithTrustedHeaders names request fields that a proxy of yours sets, or that the handler does not look at. A handler
// may build its answer from X-Forwarded-Host, X-Forwarded-Scheme, X-Forwarded-Prefix, X-Host, X-Original-Url,
// X-Rewrite-Url, X-Http-Method-Override or Forwarded. The response to a request that carries one of these is therefore
// served but not stored, unless the field is named here, in Vary or in [WithKeyHeaders].
//
// The same holds for a redirect in answer to a request with X-Forwarded-Proto: many handlers redirect clients that came
// without TLS, and a client that came with TLS would be redirected in circles. Proxies set that field with each
// request, so other responses to such requests are stored. If they depend on the field too, name it in WithKeyHeaders.
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

// WithUnkeyedHeaders adds request fields to those that keep a response from being stored; [WithTrustedHeaders] has the
// list.
func WithUnkeyedHeaders(names ...string) RouteOption {
	names = canonical("WithUnkeyedHeaders", names)
	return routeOption(func(p *rules) { p.unkeyed = append(slices.Clip(p.unkeyed), names...) })
}

// WithTargets sets the targeted fields (RFC 9213) that the cache obeys. The first one present takes precedence over the
// others, and all of them over Cache-Control and Expires. The default is CDN-Cache-Control. A directive there means
// what it means in Cache-Control: the response to a request with credentials is stored for public, s-maxage and
// must-revalidate, but not for max-age alone.
func WithTargets(names ...string) RouteOption {
	names = canonical("WithTargets", names)
	return routeOption(func(p *rules) { p.targets = names })
}

// WithSurrogate makes the cache obey Surrogate-Control, after the targeted fields and before Cache-Control, and
// announce itself to the handler under a name in Surrogate-Capability. It is off by default: a handler that writes
// Surrogate-Control today means the CDN in front, and purges it there. Surrogate-Control does not make responses to
// requests with credentials storable. The name must be a token (RFC 9110, section 5.6.2); WithSurrogate panics at any
// other. An empty name cancels what was given to [New].
func WithSurrogate(name string) RouteOption {
	if name != "" {
		token("WithSurrogate", name)
	}
	return routeOption(func(p *rules) { p.surrogate = name })
}

// WithTTL gives a lifetime to 200 responses that state none. The cache serves them to all users alike, so use it for
// routes whose responses depend on nothing but the key. It addresses no response to shared caches: under
// [WithOnlyExplicit], which the cache of middleware.Defaults has, responses that do not say public themselves are still
// not stored. Nor does it give a lifetime where a handler has written nothing at all, not even a status: that may be an
// error that is answered after the handler has returned, as echo does.
func WithTTL(d time.Duration) RouteOption {
	atLeast("WithTTL", d, 1)
	return WithTTLFunc(func(_ *http.Request, status int, _ http.Header) time.Duration {
		if status == http.StatusOK {
			return d
		}
		return 0
	})
}

// WithTTLFunc asks f for the lifetime of responses that state none, whatever their status. With a lifetime, an error is
// stored like any other response, unless it answers one request alone, as 401, 412 and 429 do. If f returns 0, the
// response is given no lifetime. What [WithTTL] says of [WithOnlyExplicit] holds here too. Many goroutines may call f
// at once, and f must not change the header. A nil f cancels what was given to [New].
func WithTTLFunc(f func(r *http.Request, status int, header http.Header) time.Duration) RouteOption {
	return routeOption(func(p *rules) { p.ttl = f })
}

// WithBypass passes the requests for which f returns true to the handler, and stores nothing of their responses. A nil
// f cancels what was given to [New].
func WithBypass(f func(*http.Request) bool) RouteOption {
	return routeOption(func(p *rules) { p.bypass = f })
}

// WithHosts caches only requests for these hosts; others are passed on. The default port of the request's scheme,
// whether given here or in the Host of the request, counts as no port. No hosts means all hosts.
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

// WithQuery makes only these query parameters part of the key, by the names that a handler reads, however they are
// percent-encoded in the URL. The handler still gets the whole query; it must not let other parameters change the
// response.
func WithQuery(params ...string) RouteOption {
	return routeOption(func(p *rules) { p.setQuery(func(q *queryRules) { q.only, q.allow = true, params }) })
}

// WithoutQuery leaves these query parameters, such as utm_source, out of the key.
func WithoutQuery(params ...string) RouteOption {
	return routeOption(func(p *rules) { p.setQuery(func(q *queryRules) { q.deny = append(slices.Clip(q.deny), params...) }) })
}

// WithSortedQuery makes the key independent of the order of query parameters with different names.
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

// WithKey makes what f returns part of the key: a device class, a country, a tenant. f must return few different
// values; each is a variant (see [WithMaxVariants]). A nil f cancels what was given to [New].
func WithKey(f func(*http.Request) string) RouteOption {
	return routeOption(func(p *rules) { p.keyFunc = f })
}

// WithTags sets the response fields that carry tags for [Cache.PurgeTag], separated by spaces or commas. The default is
// Cache-Tag and Surrogate-Key. With strip, these fields are removed from what the client gets, except in responses that
// the cache has no part in (see [Bypass]). Cache-Groups (RFC 9875) always holds tags, and is never removed.
func WithTags(strip bool, fields ...string) RouteOption {
	fields = canonical("WithTags", fields)
	return routeOption(func(p *rules) { p.tagFields, p.stripTags = fields, strip })
}

// WithStaleWhileRevalidate sets how long a stale response is served while it is validated in the background, if the
// response does not say so itself (RFC 5861, section 3). The default is 0.
//
// In the background, the handler runs after the request that began the validation has ended. Some routers, such as chi,
// echo, gin and fiber, reuse the state of an ended request for the next one. Such a router, with everything that it
// calls, must be inside the cache: put the cache around the router and not among its middlewares, where parameters and
// answers of two requests would be mixed up. Within chi, echo and gin, which the cache recognises by what they leave in
// a request, and where a context of another type than those of package context hides what is there, requests wait for
// the validation instead.
func WithStaleWhileRevalidate(d time.Duration) RouteOption {
	atLeast("WithStaleWhileRevalidate", d, 0)
	return routeOption(func(p *rules) { p.whileStale = d })
}

// WithStaleIfError sets how long a stale response is served in place of a 500 or 503 of the handler, if the response
// does not say so itself (RFC 5861, section 4). The default is 0.
func WithStaleIfError(d time.Duration) RouteOption {
	atLeast("WithStaleIfError", d, 0)
	return routeOption(func(p *rules) { p.ifError = d })
}

// WithStaleIfUnreachable sets how long a stale response is served if the handler could not be asked at all (RFC 9111,
// section 4.2.4) and the response says nothing of stale-if-error. The handler could not be asked if a protecting layer
// refused, if the handler panicked, or if it answered 502 or 504. The default is 60 s.
func WithStaleIfUnreachable(d time.Duration) RouteOption {
	atLeast("WithStaleIfUnreachable", d, 0)
	return routeOption(func(p *rules) { p.ifUnreachable = d })
}
