// Package clientip says who the client of an HTTP request is, for limits that are counted by client.
//
// A header such as X-Forwarded-For is text that anyone may send. It says something about the client only in a request
// that comes from one of your own proxies, and then only in the part that this proxy wrote. So a [Source] believes
// nobody until it is told whom to believe: its zero value takes the address at the other end of the connection, and
// every constructor that reads a header takes the addresses of the proxies that may fill it.
//
// Which one to use:
//
//   - Clients connect directly: the zero [Source].
//   - nginx, HAProxy, Envoy, Traefik, an AWS or Google load balancer, or a chain of those: [FromXForwardedFor] with
//     the addresses of all of them.
//   - A proxy that sends the standard field: [FromForwarded].
//   - A proxy that overwrites one field with one address (nginx with "proxy_set_header X-Real-IP $remote_addr",
//     Cloudflare with CF-Connecting-IP, Akamai with True-Client-IP): [FromHeader].
//   - A proxy on the same machine that connects over a unix socket: any of the three with [WithTrustedUnixPeer].
//   - A load balancer that speaks the PROXY protocol: the zero [Source], on a listener that reads the protocol, and
//     only from that balancer.
//
// List the proxies, not networks in which clients live too: whoever has an address in a trusted prefix can claim to
// be any client.
//
// The package stands alone; it knows nothing of limits.
package clientip

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"strings"
	"sync/atomic"
)

// Unknown is the key of every request whose client cannot be told: there is no peer address, or a trusted proxy sent
// something that is not an address. All such requests share one bucket, so whoever finds a way to hide shares it with
// all others who hide. No address has this text.
const Unknown = "unknown"

// Limits and defaults. The number of entries can be changed by [WithMaxHops].
const (
	// defaultMaxHops is more proxies than anyone runs in a row.
	defaultMaxHops = 16

	// maxEntryLen bounds what is read of one entry of a list. An address with
	// zone and port stays below 100 bytes; a Forwarded element carries host,
	// proto and by as well.
	maxEntryLen = 512

	// maxPinned is the longest header line that a key may be a part of. A key
	// can outlive its request, and with it lives the line it was cut from.
	maxPinned = 64
)

// translated holds IPv4 addresses (RFC 6052, section 2.1).
var translated = netip.MustParsePrefix("64:ff9b::/96")

// A Source tells the address of the client that sent a request.
//
// The zero value is ready to use and takes the peer of the connection ([http.Request.RemoteAddr]), whatever the
// headers say. [FromXForwardedFor], [FromForwarded] and [FromHeader] make a Source that reads a header if, and only
// if, the request comes from a trusted proxy.
//
// Wherever an address comes from, an IPv4 address mapped into IPv6 (::ffff:192.0.2.1) counts as the IPv4 address, and
// a zone (fe80::1%eth0) is dropped.
//
// A Source is safe for concurrent use. It must not be copied after first use.
type Source struct {
	read      func(lines []string, t *trusted, hops int) (address, bool) // nil: the peer
	header    string                                                     // canonical
	trusted   atomic.Pointer[trusted]
	maxHops   int
	bits4     int // 0 means 32
	bits6     int // 0 means 64
	trustUnix bool
}

// An address is an address and, where that is the same without any work, its
// canonical text.
type address struct {
	ip   netip.Addr
	text string // "" if ip has to be printed
}

// FromPeer returns a Source that takes the peer of the connection. It differs from the zero Source only by its
// options.
func FromPeer(opts ...Option) *Source {
	return newSource("FromPeer", opts)
}

// FromXForwardedFor returns a Source that reads X-Forwarded-For in requests whose peer is in one of the trusted
// prefixes.
//
// The field is read from right to left, because every proxy appends the address of its own peer. As long as an
// address is trusted, the entry to its left was written by that proxy; the first address that is not trusted is the
// client. What is further left is the client's own invention and is never looked at. If all entries are trusted, the
// leftmost is the client. Several lines are one list, in their order.
//
// So each trusted proxy has to append. One that passes the field on as it came, such as HAProxy with "option
// forwardfor if-none", or an AWS load balancer whose mode for it is "preserve", lets any client choose its address.
//
// A trusted peer that sends no such field is itself the client (a health check). If an entry that is looked at is not
// an address, the client is [Unknown]: a proxy that does not know its client must not let the client choose. A client
// further left than the 16th entry is Unknown, too (see [WithMaxHops]). An entry may carry a port, and an IPv6
// address may be in brackets.
//
// It panics if trusted is empty (unless [WithTrustedUnixPeer] is given) or holds a prefix that is invalid or covers
// every address.
func FromXForwardedFor(trusted []netip.Prefix, opts ...Option) *Source {
	s := newSource("FromXForwardedFor", opts)
	s.header = "X-Forwarded-For"
	s.read = readXForwardedFor
	s.mustTrust("FromXForwardedFor", trusted)
	return s
}

// FromForwarded returns a Source that reads the "for" parameter of the Forwarded field (RFC 7239) in requests whose
// peer is in one of the trusted prefixes, by the rules of [FromXForwardedFor]. If an element that is looked at has no
// "for", or its "for" is "unknown" or an obfuscated name such as "_hidden", the client is [Unknown].
//
// Use it only if every proxy in the chain speaks Forwarded: one that does not passes on what the client sent. It
// panics as FromXForwardedFor does.
func FromForwarded(trusted []netip.Prefix, opts ...Option) *Source {
	s := newSource("FromForwarded", opts)
	s.header = "Forwarded"
	s.read = readForwarded
	s.mustTrust("FromForwarded", trusted)
	return s
}

// FromHeader returns a Source that reads one address from the named field, such as X-Real-IP or CF-Connecting-IP, in
// requests whose peer is in one of the trusted prefixes.
//
// The proxy must overwrite the field in every request; one that merely passes it on lets any client choose its
// address. If there are two lines of the field, or anything but one address in it, the client is [Unknown]. A trusted
// peer that sends no such field is itself the client.
//
// In a chain of proxies, the trusted peer is the last one. It must overwrite the field too, or accept requests only
// from the first one.
//
// It panics if name is not a field name or is that of a list (X-Forwarded-For, Forwarded: these have their own
// constructors), and as FromXForwardedFor does.
func FromHeader(name string, trusted []netip.Prefix, opts ...Option) *Source {
	s := newSource("FromHeader", opts)
	if !isToken(name) {
		panic(fmt.Sprintf("clientip: FromHeader: %q is not a header field name; give one such as X-Real-IP", name))
	}
	s.header = textproto.CanonicalMIMEHeaderKey(name)
	switch s.header {
	case "X-Forwarded-For":
		panic("clientip: FromHeader: X-Forwarded-For is a list whose left part the client writes; use FromXForwardedFor")
	case "Forwarded":
		panic("clientip: FromHeader: Forwarded is a list whose left part the client writes; use FromForwarded")
	}
	s.read = readSingle
	s.mustTrust("FromHeader", trusted)
	return s
}

func newSource(constructor string, opts []Option) *Source {
	s := &Source{maxHops: defaultMaxHops}
	for _, o := range opts {
		if o == nil {
			panic("clientip: " + constructor + ": nil Option; leave it out")
		}
		o.apply(s)
	}
	return s
}

func (s *Source) mustTrust(constructor string, prefixes []netip.Prefix) {
	if err := s.setTrusted(prefixes); err != nil {
		panic("clientip: " + constructor + ": " + err.Error())
	}
}

// SetTrusted replaces the trusted prefixes, for requests from now on. It returns an error and changes nothing if the
// Source reads no header, and in the cases in which the constructors panic.
func (s *Source) SetTrusted(prefixes []netip.Prefix) error {
	if s.read == nil {
		return fmt.Errorf("clientip: SetTrusted: this Source takes the peer address and trusts nobody; make one with FromXForwardedFor, FromForwarded or FromHeader")
	}
	if err := s.setTrusted(prefixes); err != nil {
		return fmt.Errorf("clientip: SetTrusted: %w", err)
	}
	return nil
}

func (s *Source) setTrusted(prefixes []netip.Prefix) error {
	if len(prefixes) == 0 && !s.trustUnix {
		return errNoPrefixes
	}
	t, err := newTrusted(prefixes)
	if err != nil {
		return err
	}
	s.trusted.Store(t)
	return nil
}

// Addr returns the address of the client that sent r, without zone and not mapped, and whether it could be told. If
// it could not, the address is the zero Addr. Addr reads only r.RemoteAddr, r.Header and, to recognize a unix socket,
// the value of [http.LocalAddrContextKey].
func (s *Source) Addr(r *http.Request) (netip.Addr, bool) {
	a, ok := s.find(r)
	return a.ip, ok
}

// Key returns the text by which a limit counts the client that sent r. That is an IPv4 address ("192.0.2.1"), the /64
// of an IPv6 address ("2001:db8:0:1::/64"), since a subscriber commands all of one, or [Unknown]. [WithIPv4Prefix]
// and [WithIPv6Prefix] set other prefix lengths.
//
// Behind a translator, to a server that has only IPv6 all IPv4 clients come from the /64 of 64:ff9b::/96 (RFC 6052).
// Such an address counts as finely as the IPv4 address in it ("64:ff9b::c000:201"). It has a bucket apart from that
// of the IPv4 address, so that nobody reaches an IPv4 client's bucket by sending from here.
//
// For a whole IPv4 address Key allocates nothing, unless the header line is longer than 64 bytes. Then, and for
// prefixes, it allocates the key.
func (s *Source) Key(r *http.Request) string {
	a, ok := s.find(r)
	if !ok {
		return Unknown
	}
	bits := s.bits6
	switch {
	case a.ip.Is4():
		bits = s.prefix4()
	case translated.Contains(a.ip):
		bits = translated.Bits() + s.prefix4()
	case bits == 0:
		bits = 64
	}
	if bits == a.ip.BitLen() {
		if a.text != "" {
			return a.text
		}
		return a.ip.String()
	}
	var buf [48]byte
	return string(netip.PrefixFrom(a.ip, bits).Masked().AppendTo(buf[:0]))
}

func (s *Source) prefix4() int {
	if s.bits4 == 0 {
		return 32
	}
	return s.bits4
}

func (s *Source) find(r *http.Request) (address, bool) {
	peer, ok := parsePeer(r.RemoteAddr)
	if s.read == nil {
		return peer, ok
	}
	t := s.trusted.Load()
	if ok {
		if !t.contains(peer.ip) {
			return peer, true
		}
	} else if !s.trustUnix || !overUnixSocket(r) {
		return address{}, false
	}
	lines := r.Header[s.header]
	if len(lines) == 0 {
		return peer, ok
	}
	return s.read(lines, t, s.maxHops)
}

// overUnixSocket tells whether the server accepted r's connection on a unix
// socket. RemoteAddr alone cannot: it is "@" or empty there, and may be so
// elsewhere.
func overUnixSocket(r *http.Request) bool {
	a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return ok && strings.HasPrefix(a.Network(), "unix")
}
