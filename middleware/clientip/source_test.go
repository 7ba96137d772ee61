package clientip_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spillgate/spillgate/middleware/clientip"
)

var proxies = clientip.Prefixes("10.0.0.0/8", "2001:db8:ffff::/48")

// request makes a request as a server sees it. Each line of the field is one
// string.
func request(remote, field string, lines ...string) *http.Request {
	r := &http.Request{Method: "GET", RemoteAddr: remote, Header: http.Header{}}
	if len(lines) > 0 {
		r.Header[field] = lines
	}
	return r
}

type rule struct {
	name   string
	remote string
	lines  []string
	want   string // the address, "" for none
	key    string // "" for the address itself
}

func check(t *testing.T, s *clientip.Source, field string, rules []rule) {
	t.Helper()
	for _, tt := range rules {
		t.Run(tt.name, func(t *testing.T) {
			r := request(tt.remote, field, tt.lines...)
			got, ok := s.Addr(r)
			if ok != (tt.want != "") {
				t.Fatalf("Addr = %v, %v; want %q", got, ok, tt.want)
			}
			key := tt.key
			if !ok {
				if got != (netip.Addr{}) {
					t.Errorf("Addr = %v without ok; want the zero Addr", got)
				}
				key = clientip.Unknown
			} else if got != netip.MustParseAddr(tt.want) {
				t.Errorf("Addr = %v; want %s", got, tt.want)
			}
			if key == "" {
				key = tt.want
			}
			if got := s.Key(r); got != key {
				t.Errorf("Key = %q; want %q", got, key)
			}
		})
	}
}

func TestPeer(t *testing.T) {
	rules := []rule{
		{name: "address and port", remote: "192.0.2.1:1234", want: "192.0.2.1"},
		{name: "no port", remote: "192.0.2.1", want: "192.0.2.1"},
		{name: "IPv6 by its /64", remote: "[2001:db8:1:2:3:4:5:6]:1234", want: "2001:db8:1:2:3:4:5:6", key: "2001:db8:1:2::/64"},
		{name: "IPv6 without port or brackets", remote: "2001:db8::1", want: "2001:db8::1", key: "2001:db8::/64"},
		{name: "IPv4 mapped into IPv6 is the IPv4 address", remote: "[::ffff:192.0.2.1]:1234", want: "192.0.2.1"},
		{name: "mapped in hexadecimal too", remote: "[::ffff:c000:201]:1234", want: "192.0.2.1"},
		{name: "zone dropped", remote: "[fe80::1%eth0]:1234", want: "fe80::1", key: "fe80::/64"},
		{name: "missing", remote: ""},
		{name: "unnamed unix socket", remote: "@"},
		{name: "path of a unix socket", remote: "/run/app.sock"},
		{name: "a host name is no address", remote: "localhost:80"},
		{name: "nothing but a port", remote: ":80"},
		{name: "leading zeros are ambiguous", remote: "192.0.02.1:80"},
		{name: "port that is none", remote: "192.0.2.1:80 "},
		{name: "a letter for a number", remote: "192.0.2.a:80"},
		{name: "a space for a number", remote: "192.0.2. :80"},
		{name: "no dots between the numbers", remote: "192,0,2,1:80"},
		{name: "six numbers", remote: "192.0.2.1.5.6:80"},
		{name: "port without a colon", remote: "192.0.2.1x80"},
		{name: "zone of 400 bytes", remote: "[fe80::1%" + strings.Repeat("z", 400) + "]:80", want: "fe80::1", key: "fe80::/64"},
		{name: "zone of 600 bytes", remote: "[fe80::1%" + strings.Repeat("z", 600) + "]:80"},
		{name: "unspecified IPv4", remote: "0.0.0.0:80"},
		{name: "unspecified IPv6", remote: "[::]:80"},
		{name: "open bracket", remote: "[2001:db8::1"},
		{name: "IPv4 in brackets", remote: "[192.0.2.1]:80"},
		{name: "too long", remote: strings.Repeat("1", 1<<20)},
	}
	var zero clientip.Source
	t.Run("zero Source", func(t *testing.T) { check(t, &zero, "", rules) })
	t.Run("FromPeer", func(t *testing.T) { check(t, clientip.FromPeer(), "", rules) })

	t.Run("headers are not looked at", func(t *testing.T) {
		for _, field := range []string{"X-Forwarded-For", "Forwarded", "X-Real-Ip", "Cf-Connecting-Ip", "True-Client-Ip"} {
			check(t, &zero, field, []rule{{name: field, remote: "10.0.0.1:1", lines: []string{"198.51.100.7"}, want: "10.0.0.1"}})
		}
	})
}

func TestXForwardedFor(t *testing.T) {
	s := clientip.FromXForwardedFor(proxies)
	check(t, s, "X-Forwarded-For", []rule{
		{name: "peer not trusted: field ignored", remote: "192.0.2.1:1", lines: []string{"198.51.100.7"}, want: "192.0.2.1"},
		{name: "peer trusted: last entry", remote: "10.0.0.1:1", lines: []string{"198.51.100.7"}, want: "198.51.100.7"},
		{name: "what the client sent is left of it", remote: "10.0.0.1:1", lines: []string{"203.0.113.9, 198.51.100.7"}, want: "198.51.100.7"},
		{name: "trusted entries are stepped over", remote: "10.0.0.1:1", lines: []string{"203.0.113.9, 198.51.100.7, 10.0.0.3, 10.0.0.2"}, want: "198.51.100.7"},
		{name: "client claims to be a proxy", remote: "10.0.0.1:1", lines: []string{"10.9.9.9, 198.51.100.7"}, want: "198.51.100.7"},
		{name: "several lines are one list", remote: "10.0.0.1:1", lines: []string{"203.0.113.9", "198.51.100.7", "10.0.0.2"}, want: "198.51.100.7"},
		{name: "line of the client before the proxy's", remote: "10.0.0.1:1", lines: []string{"203.0.113.9, 203.0.113.10", "198.51.100.7"}, want: "198.51.100.7"},
		{name: "all trusted: leftmost", remote: "10.0.0.1:1", lines: []string{"10.0.0.4", "10.0.0.3,10.0.0.2"}, want: "10.0.0.4"},
		{name: "trusted peer without field is the client", remote: "10.0.0.1:1", want: "10.0.0.1"},
		{name: "mapped peer is trusted as IPv4", remote: "[::ffff:10.0.0.1]:1", lines: []string{"198.51.100.7"}, want: "198.51.100.7"},
		{name: "mapped entry is trusted as IPv4", remote: "10.0.0.1:1", lines: []string{"198.51.100.7, ::ffff:10.0.0.2"}, want: "198.51.100.7"},
		{name: "mapped client is the IPv4 client", remote: "10.0.0.1:1", lines: []string{"::ffff:198.51.100.7"}, want: "198.51.100.7"},
		{name: "IPv6 proxy and client", remote: "[2001:db8:ffff::1]:1", lines: []string{"2001:db8:a:b:c::1, 2001:db8:ffff::2"}, want: "2001:db8:a:b:c::1", key: "2001:db8:a:b::/64"},
		{name: "zone of a trusted peer", remote: "[2001:db8:ffff::1%eth0]:1", lines: []string{"198.51.100.7"}, want: "198.51.100.7"},
		{name: "zone of the client dropped", remote: "10.0.0.1:1", lines: []string{"fe80::7%en1"}, want: "fe80::7", key: "fe80::/64"},
		{name: "port", remote: "10.0.0.1:1", lines: []string{"198.51.100.7:4711"}, want: "198.51.100.7"},
		{name: "IPv6 in brackets", remote: "10.0.0.1:1", lines: []string{"[2001:db8::7]"}, want: "2001:db8::7", key: "2001:db8::/64"},
		{name: "IPv6 in brackets with port", remote: "10.0.0.1:1", lines: []string{"[2001:db8::7]:4711"}, want: "2001:db8::7", key: "2001:db8::/64"},
		{name: "text behind brackets", remote: "10.0.0.1:1", lines: []string{"[2001:db8::7]x"}},
		{name: "port behind brackets without a colon", remote: "10.0.0.1:1", lines: []string{"[2001:db8::7]4711"}},
		{name: "the client sent an empty field", remote: "10.0.0.1:1", lines: []string{",198.51.100.7"}, want: "198.51.100.7"},
		{name: "space and tab around", remote: "10.0.0.1:1", lines: []string{"203.0.113.9 ,\t198.51.100.7 \t"}, want: "198.51.100.7"},
		{name: "garbage left of the client is not looked at", remote: "10.0.0.1:1", lines: []string{"\x00%$,,,\", 198.51.100.7"}, want: "198.51.100.7"},
		{name: "garbage where an address is looked for", remote: "10.0.0.1:1", lines: []string{"203.0.113.9, unknown"}},
		{name: "empty entry where an address is looked for", remote: "10.0.0.1:1", lines: []string{"203.0.113.9, "}},
		{name: "empty line where an address is looked for", remote: "10.0.0.1:1", lines: []string{"203.0.113.9", ""}},
		{name: "garbage behind a trusted entry", remote: "10.0.0.1:1", lines: []string{"203.0.113.9, -, 10.0.0.2"}},
		{name: "unspecified address", remote: "10.0.0.1:1", lines: []string{"203.0.113.9, 0.0.0.0"}},
		{name: "peer unknown: field ignored", remote: "@", lines: []string{"198.51.100.7"}},
		{name: "translated client", remote: "10.0.0.1:1", lines: []string{"64:ff9b::198.51.100.7"}, want: "64:ff9b::c633:6407"},
		{name: "a translated address is not trusted as IPv4", remote: "[64:ff9b::10.0.0.1]:1", lines: []string{"198.51.100.7"}, want: "64:ff9b::a00:1"},
		{name: "16 trusted entries", remote: "10.0.0.1:1", lines: []string{strings.Repeat("10.0.0.2,", 15) + "10.0.0.3"}, want: "10.0.0.2"},
		{name: "client after 15 trusted entries", remote: "10.0.0.1:1", lines: []string{"198.51.100.7" + strings.Repeat(",10.0.0.2", 15)}, want: "198.51.100.7"},
		{name: "client after 16 trusted entries", remote: "10.0.0.1:1", lines: []string{"198.51.100.7" + strings.Repeat(",10.0.0.2", 16)}},
		{name: "17 trusted entries", remote: "10.0.0.1:1", lines: []string{strings.Repeat("10.0.0.2,", 16) + "10.0.0.3"}},
		{name: "17 lines", remote: "10.0.0.1:1", lines: strings.Split(strings.Repeat("10.0.0.2 ", 16)+"10.0.0.2", " ")},
		{name: "1 MiB of entries by the client", remote: "10.0.0.1:1", lines: []string{strings.Repeat("203.0.113.9,", 1<<20/12) + "198.51.100.7"}, want: "198.51.100.7"},
		{name: "1 MiB in one entry", remote: "10.0.0.1:1", lines: []string{strings.Repeat(" ", 1<<20) + "198.51.100.7"}},
		{name: "1 MiB of lines", remote: "10.0.0.1:1", lines: strings.Split(strings.Repeat("203.0.113.9,", 1<<20/12)+"198.51.100.7", ","), want: "198.51.100.7"},
	})
}

func TestForwarded(t *testing.T) {
	s := clientip.FromForwarded(proxies)
	check(t, s, "Forwarded", []rule{
		{name: "peer not trusted: field ignored", remote: "192.0.2.1:1", lines: []string{"for=198.51.100.7"}, want: "192.0.2.1"},
		{name: "trusted peer without field is the client", remote: "10.0.0.1:1", want: "10.0.0.1"},
		{name: "one element", remote: "10.0.0.1:1", lines: []string{"for=198.51.100.7"}, want: "198.51.100.7"},
		{name: "names in any case", remote: "10.0.0.1:1", lines: []string{"FOR=198.51.100.7"}, want: "198.51.100.7"},
		{name: "other parameters", remote: "10.0.0.1:1", lines: []string{`proto=https;by="_a,b;c";For="198.51.100.7:4711";host=example.org`}, want: "198.51.100.7"},
		{name: "quoted IPv6", remote: "10.0.0.1:1", lines: []string{`for="[2001:db8:a:b::7]:_x"`}, want: "2001:db8:a:b::7", key: "2001:db8:a:b::/64"},
		{name: "unquoted IPv6", remote: "10.0.0.1:1", lines: []string{`for=[2001:db8:a:b::7]`}, want: "2001:db8:a:b::7", key: "2001:db8:a:b::/64"},
		{name: "trusted elements are stepped over", remote: "10.0.0.1:1", lines: []string{`for=203.0.113.9, for=198.51.100.7;by="x,\"y", for="10.0.0.2"`}, want: "198.51.100.7"},
		{name: "several lines are one list", remote: "10.0.0.1:1", lines: []string{`for=203.0.113.9`, `for=198.51.100.7`, `for=10.0.0.2`}, want: "198.51.100.7"},
		{name: "quote left open by the client", remote: "10.0.0.1:1", lines: []string{`for="203.0.113.9, for=198.51.100.7`}, want: "198.51.100.7"},
		{name: "quote left open, the proxy quotes", remote: "10.0.0.1:1", lines: []string{`for="203.0.113.9, for="198.51.100.7"`}, want: "198.51.100.7"},
		{name: "escape left open by the client", remote: "10.0.0.1:1", lines: []string{`for="a\, for="198.51.100.7"`}, want: "198.51.100.7"},
		{name: "all trusted: leftmost", remote: "10.0.0.1:1", lines: []string{`for=10.0.0.3, for=10.0.0.2`}, want: "10.0.0.3"},
		{name: "element without for", remote: "10.0.0.1:1", lines: []string{`for=203.0.113.9, proto=https`}},
		{name: "unknown", remote: "10.0.0.1:1", lines: []string{`for=203.0.113.9, for=unknown`}},
		{name: "obfuscated", remote: "10.0.0.1:1", lines: []string{`for=203.0.113.9, for=_hidden`}},
		{name: "two for in one element", remote: "10.0.0.1:1", lines: []string{`for=203.0.113.9;for=198.51.100.7`}},
		{name: "not a parameter", remote: "10.0.0.1:1", lines: []string{`for=203.0.113.9, 198.51.100.7`}},
		{name: "empty element", remote: "10.0.0.1:1", lines: []string{`for=203.0.113.9,`}},
		{name: "open quote in the proxy's element", remote: "10.0.0.1:1", lines: []string{`for=203.0.113.9, for="198.51.100.7`}},
		{name: "text behind a quoted value", remote: "10.0.0.1:1", lines: []string{`for="198.51.100.7"x`}},
		{name: "parameter behind a quoted value without a semicolon", remote: "10.0.0.1:1", lines: []string{`for="198.51.100.7"x=1`}},
		{name: "the closing quote is escaped", remote: "10.0.0.1:1", lines: []string{`for="198.51.100.7\"`}},
		{name: "escaped quote at the very beginning", remote: "10.0.0.1:1", lines: []string{`\"198.51.100.7"`}},
		{name: "one-sided quote behind the node", remote: "10.0.0.1:1", lines: []string{`for=198.51.100.7;by="_a`}},
		{name: "parameter that is a name alone", remote: "10.0.0.1:1", lines: []string{`for=198.51.100.7;secure`}},
		{name: "parameter whose name is no token", remote: "10.0.0.1:1", lines: []string{`for=198.51.100.7;b@d=1`}},
		{name: "quote in an unquoted value", remote: "10.0.0.1:1", lines: []string{`for=198.51.100.7;by=_a"b"`}},
		{name: "space in an unquoted value", remote: "10.0.0.1:1", lines: []string{`for=198.51.100.7;by=_a b`}},
		{name: "another parameter of three letters", remote: "10.0.0.1:1", lines: []string{`ext=203.0.113.9;for=198.51.100.7`}, want: "198.51.100.7"},
		{name: "empty parameters (section 4 of the RFC)", remote: "10.0.0.1:1", lines: []string{`;for=198.51.100.7;;proto=https;;`}, want: "198.51.100.7"},
		{name: "space and tab around", remote: "10.0.0.1:1", lines: []string{"for=203.0.113.9 ,\tfor=198.51.100.7 ; by=\"_a\"\t;proto=https "}, want: "198.51.100.7"},
		{name: "the client sent an empty field", remote: "10.0.0.1:1", lines: []string{",for=198.51.100.7"}, want: "198.51.100.7"},
		{name: "512 bytes in one element", remote: "10.0.0.1:1", lines: []string{"for=198.51.100.7;by=" + strings.Repeat("x", 512-20)}, want: "198.51.100.7"},
		{name: "513 bytes in one element", remote: "10.0.0.1:1", lines: []string{"for=198.51.100.7;by=" + strings.Repeat("x", 513-20)}},
		{name: "17 trusted elements", remote: "10.0.0.1:1", lines: []string{strings.Repeat("for=10.0.0.2,", 16) + "for=10.0.0.3"}},
		{name: "1 MiB of elements by the client", remote: "10.0.0.1:1", lines: []string{strings.Repeat("for=203.0.113.9,", 1<<16) + "for=198.51.100.7"}, want: "198.51.100.7"},
		{name: "1 MiB in one element", remote: "10.0.0.1:1", lines: []string{`for=198.51.100.7;by="` + strings.Repeat("x", 1<<20) + `"`}},
		{name: "1 MiB of quotes by the client", remote: "10.0.0.1:1", lines: []string{strings.Repeat(`"`, 1<<20+1) + ", for=198.51.100.7"}, want: "198.51.100.7"},
		{name: "1 MiB of escapes", remote: "10.0.0.1:1", lines: []string{strings.Repeat(`\`, 1<<20) + `"`}},
	})
}

func TestHeader(t *testing.T) {
	s := clientip.FromHeader("x-real-ip", proxies)
	check(t, s, "X-Real-Ip", []rule{
		{name: "peer not trusted: field ignored", remote: "192.0.2.1:1", lines: []string{"198.51.100.7"}, want: "192.0.2.1"},
		{name: "peer trusted", remote: "10.0.0.1:1", lines: []string{"198.51.100.7"}, want: "198.51.100.7"},
		{name: "trusted peer without field is the client", remote: "10.0.0.1:1", want: "10.0.0.1"},
		{name: "an address in a trusted prefix is a client too", remote: "10.0.0.1:1", lines: []string{"10.0.0.9"}, want: "10.0.0.9"},
		{name: "space around", remote: "10.0.0.1:1", lines: []string{" 2001:db8::7 "}, want: "2001:db8::7", key: "2001:db8::/64"},
		{name: "two lines: one is the client's", remote: "10.0.0.1:1", lines: []string{"203.0.113.9", "198.51.100.7"}},
		{name: "a list", remote: "10.0.0.1:1", lines: []string{"203.0.113.9, 198.51.100.7"}},
		{name: "empty", remote: "10.0.0.1:1", lines: []string{""}},
		{name: "no address", remote: "10.0.0.1:1", lines: []string{"unknown"}},
		{name: "1 MiB", remote: "10.0.0.1:1", lines: []string{strings.Repeat(" ", 1<<20) + "198.51.100.7"}},
	})
}

func TestUnixPeer(t *testing.T) {
	over := func(local net.Addr, remote string, lines ...string) *http.Request {
		r := request(remote, "X-Forwarded-For", lines...)
		return r.WithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, local))
	}
	overUnix := func(remote string, lines ...string) *http.Request {
		return over(&net.UnixAddr{Net: "unix", Name: "/run/app.sock"}, remote, lines...)
	}
	trusting := clientip.FromXForwardedFor(nil, clientip.WithTrustedUnixPeer())
	for _, tt := range []struct {
		name string
		s    *clientip.Source
		r    *http.Request
		want string
	}{
		{"trusted by option", trusting, overUnix("@", "203.0.113.9, 198.51.100.7"), "198.51.100.7"},
		{"trusted by option, no RemoteAddr", trusting, overUnix("", "198.51.100.7"), "198.51.100.7"},
		{"no field, no address", trusting, overUnix("@"), clientip.Unknown},
		{"not trusted without the option", clientip.FromXForwardedFor(proxies), overUnix("@", "198.51.100.7"), clientip.Unknown},
		{"RemoteAddr alone does not make a unix socket", trusting, request("@", "X-Forwarded-For", "198.51.100.7"), clientip.Unknown},
		{"nor does it on a TCP socket", trusting, over(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 9), Port: 80}, "@", "198.51.100.7"), clientip.Unknown},
		{"the option trusts no TCP peer", trusting, request("192.0.2.1:1", "X-Forwarded-For", "198.51.100.7"), "192.0.2.1"},
		{"the peer Source knows no unix peer", clientip.FromPeer(clientip.WithTrustedUnixPeer()), overUnix("@", "198.51.100.7"), clientip.Unknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.s.Key(tt.r); got != tt.want {
				t.Errorf("Key = %q; want %q", got, tt.want)
			}
		})
	}

	t.Run("real server on a unix socket", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Skip("no unix sockets here: ", err)
		}
		srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Client", trusting.Key(r))
		})}}
		srv.Start()
		defer srv.Close()
		tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}}
		defer tr.CloseIdleConnections()
		req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://app/", nil)
		req.Header.Set("X-Forwarded-For", "198.51.100.7")
		res, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if got := res.Header.Get("Client"); got != "198.51.100.7" {
			t.Errorf("client over the socket = %q; want 198.51.100.7", got)
		}
	})
}

func TestKeyPrefixes(t *testing.T) {
	for _, tt := range []struct {
		name, remote, want string
		s                  *clientip.Source
	}{
		{"IPv6 /56", "[2001:db8:1:2ff::1]:1", "2001:db8:1:200::/56", clientip.FromPeer(clientip.WithIPv6Prefix(56))},
		{"IPv6 whole", "[2001:db8:1:2ff::1]:1", "2001:db8:1:2ff::1", clientip.FromPeer(clientip.WithIPv6Prefix(128))},
		{"IPv4 /24", "192.0.2.77:1", "192.0.2.0/24", clientip.FromPeer(clientip.WithIPv4Prefix(24))},
		{"IPv4 /1", "192.0.2.77:1", "128.0.0.0/1", clientip.FromPeer(clientip.WithIPv4Prefix(1))},
		{"IPv4 whole", "192.0.2.77:1", "192.0.2.77", clientip.FromPeer(clientip.WithIPv4Prefix(32))},
		{"IPv4 prefix of a mapped address", "[::ffff:192.0.2.77]:1", "192.0.2.0/24", clientip.FromPeer(clientip.WithIPv4Prefix(24))},
		{"translated IPv4 as finely as IPv4", "[64:ff9b::192.0.2.77]:1", "64:ff9b::c000:24d", new(clientip.Source)},
		{"translated IPv4 /24", "[64:ff9b::192.0.2.77]:1", "64:ff9b::c000:200/120", clientip.FromPeer(clientip.WithIPv4Prefix(24))},
		{"translated IPv4 untouched by the IPv6 prefix", "[64:ff9b::192.0.2.77]:1", "64:ff9b::c000:24d", clientip.FromPeer(clientip.WithIPv6Prefix(32))},
		{"outside of the translated /96", "[64:ff9b::1:c000:24d]:1", "64:ff9b::/64", new(clientip.Source)},
		{"IPv4 untouched by the IPv6 prefix", "192.0.2.77:1", "192.0.2.77", clientip.FromPeer(clientip.WithIPv6Prefix(1))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.s.Key(request(tt.remote, "")); got != tt.want {
				t.Errorf("Key = %q; want %q", got, tt.want)
			}
		})
	}
}

func TestMaxHops(t *testing.T) {
	s := clientip.FromXForwardedFor(proxies, clientip.WithMaxHops(2))
	check(t, s, "X-Forwarded-For", []rule{
		{name: "client in reach", remote: "10.0.0.1:1", lines: []string{"198.51.100.7, 10.0.0.2"}, want: "198.51.100.7"},
		{name: "client out of reach", remote: "10.0.0.1:1", lines: []string{"198.51.100.7, 10.0.0.3, 10.0.0.2"}},
	})
	check(t, clientip.FromXForwardedFor(proxies, clientip.WithMaxHops(1)), "X-Forwarded-For", []rule{
		{name: "one entry", remote: "10.0.0.1:1", lines: []string{"198.51.100.7"}, want: "198.51.100.7"},
		{name: "two entries", remote: "10.0.0.1:1", lines: []string{"198.51.100.7, 10.0.0.2"}},
	})
}

func TestSetTrusted(t *testing.T) {
	r := request("10.0.0.1:1", "X-Forwarded-For", "198.51.100.7")
	s := clientip.FromXForwardedFor(proxies)

	for _, bad := range [][]netip.Prefix{nil, {{}}, clientip.Prefixes("0.0.0.0/0"), clientip.Prefixes("::/0"), clientip.Prefixes("::ffff:0.0.0.0/96")} {
		err := s.SetTrusted(bad)
		if err == nil || !strings.HasPrefix(err.Error(), "clientip: SetTrusted: ") {
			t.Errorf("SetTrusted(%v) = %v; want an error", bad, err)
		}
		if got := s.Key(r); got != "198.51.100.7" {
			t.Errorf("after the error Key = %q; want the trust as it was", got)
		}
	}
	if err := s.SetTrusted(clientip.Prefixes("203.0.113.1")); err != nil {
		t.Fatal(err)
	}
	if got := s.Key(r); got != "10.0.0.1" {
		t.Errorf("Key = %q; want the peer, which is no longer trusted", got)
	}

	var zero clientip.Source
	if err := zero.SetTrusted(proxies); err == nil {
		t.Error("SetTrusted on the zero Source succeeded; it reads no header")
	}
}

func TestTrustedPrefixes(t *testing.T) {
	trusts := func(prefixes []netip.Prefix, addrs map[string]bool) {
		s := clientip.FromXForwardedFor(prefixes)
		for addr, want := range addrs {
			r := request(net.JoinHostPort(addr, "1"), "X-Forwarded-For", "203.0.113.9")
			got, _ := s.Addr(r)
			if trusted := got == netip.MustParseAddr("203.0.113.9"); trusted != want {
				t.Errorf("%v: %s trusted = %v; want %v", prefixes, addr, trusted, want)
			}
		}
	}
	trusts(clientip.Prefixes(
		"10.1.0.0/16", "10.1.2.0/24", "10.1.2.3", "10.0.0.0/15", "10.0.0.0/16", "192.0.2.77/24", "::ffff:198.51.100.0/120", "2001:db8::/32", "::1",
		" 203.0.113.128/25\t", "172.16.0.1 "), map[string]bool{
		"9.255.255.255": false, "10.0.0.0": true, "10.1.2.3": true, "10.1.255.255": true, "10.2.0.0": false,
		"192.0.2.0": true, "192.0.2.255": true, "192.0.3.0": false,
		"198.51.100.9": true, "198.51.101.0": false,
		"203.0.113.127": false, "203.0.113.200": true, "172.16.0.1": true, "172.16.0.2": false,
		"2001:db7:ffff::": false, "2001:db8::": true, "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff": true, "2001:db9::": false,
		"::1": true, "::2": false, "0.0.0.1": false,
	})
	// Too short for an IPv4 address, and so of IPv6: ::/33.
	trusts(clientip.Prefixes("::ffff:198.18.0.1/33"), map[string]bool{
		"::2": true, "0:0:8000::": false, "198.18.0.1": false, "0.0.0.1": false,
	})
}

func TestMisuse(t *testing.T) {
	for _, tt := range []struct {
		name string
		want string
		f    func()
	}{
		{"no prefix", "clientip: FromXForwardedFor: no trusted prefix", func() { clientip.FromXForwardedFor(nil) }},
		{"no prefix, Forwarded", "clientip: FromForwarded: no trusted prefix", func() { clientip.FromForwarded(nil) }},
		{"no prefix, header", "clientip: FromHeader: no trusted prefix", func() { clientip.FromHeader("X-Real-IP", nil) }},
		{"zero prefix", "clientip: FromForwarded: a trusted prefix is the zero Prefix", func() { clientip.FromForwarded([]netip.Prefix{{}}) }},
		{"everybody trusted", "covers every address", func() { clientip.FromXForwardedFor(clientip.Prefixes("10.0.0.0/8", "::/0")) }},
		{"X-Forwarded-For as a single field", "use FromXForwardedFor", func() { clientip.FromHeader("x-forwarded-for", proxies) }},
		{"Forwarded as a single field", "use FromForwarded", func() { clientip.FromHeader("forwarded", proxies) }},
		{"no field name", "not a header field name", func() { clientip.FromHeader("", proxies) }},
		{"bad field name", "not a header field name", func() { clientip.FromHeader("X Real IP", proxies) }},
		{"bad prefix text", `clientip: ParsePrefixes: "10.0.0.0/33" is neither`, func() { clientip.Prefixes("10.0.0.0/33") }},
		{"address with zone as prefix", "is neither", func() { clientip.Prefixes("fe80::1%eth0") }},
		{"IPv6 bits", "clientip: WithIPv6Prefix: 129 bits", func() { clientip.WithIPv6Prefix(129) }},
		{"no IPv6 bits", "clientip: WithIPv6Prefix: 0 bits", func() { clientip.WithIPv6Prefix(0) }},
		{"IPv4 bits", "clientip: WithIPv4Prefix: 33 bits", func() { clientip.WithIPv4Prefix(33) }},
		{"no IPv4 bits", "clientip: WithIPv4Prefix: 0 bits", func() { clientip.WithIPv4Prefix(0) }},
		{"hops", "clientip: WithMaxHops: 0", func() { clientip.WithMaxHops(0) }},
		{"nil option", "clientip: FromPeer: nil Option", func() { clientip.FromPeer(nil) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			defer func() {
				msg, _ := recover().(string)
				if !strings.HasPrefix(msg, "clientip: ") || !strings.Contains(msg, tt.want) {
					t.Errorf("panic %q; want one that says %q", msg, tt.want)
				}
			}()
			tt.f()
		})
	}
}

func TestFieldNameIsAToken(t *testing.T) {
	const token = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" // RFC 9110, section 5.6.2
	for c := range 256 {
		name := "x" + string([]byte{byte(c)})
		refused := func() (refused bool) {
			defer func() { refused = recover() != nil }()
			clientip.FromHeader(name, proxies)
			return
		}()
		if want := !strings.Contains(token, name[1:]); refused != want {
			t.Errorf("FromHeader(%q) refused = %v; want %v", name, refused, want)
		}
	}
}

func TestKeyAllocations(t *testing.T) {
	long := strings.Repeat("203.0.113.9, ", 100) + "198.51.100.7"
	for _, tt := range []struct {
		name string
		s    *clientip.Source
		r    *http.Request
		want float64
	}{
		{"IPv4 peer", new(clientip.Source), request("192.0.2.1:1234", ""), 0},
		{"IPv6 peer", new(clientip.Source), request("[2001:db8::1]:1234", ""), 1},
		{"X-Forwarded-For", clientip.FromXForwardedFor(proxies), request("10.0.0.1:1", "X-Forwarded-For", "203.0.113.9, 198.51.100.7"), 0},
		{"a key pins no long header", clientip.FromXForwardedFor(proxies), request("10.0.0.1:1", "X-Forwarded-For", long), 1},
		{"Forwarded", clientip.FromForwarded(proxies), request("10.0.0.1:1", "Forwarded", `for=198.51.100.7;proto=https`), 0},
		{"X-Real-IP", clientip.FromHeader("X-Real-IP", proxies), request("10.0.0.1:1", "X-Real-Ip", "198.51.100.7"), 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := testing.AllocsPerRun(100, func() { sink = tt.s.Key(tt.r) }); got != tt.want {
				t.Errorf("Key allocates %v times; want %v", got, tt.want)
			}
		})
	}
}

var sink string
