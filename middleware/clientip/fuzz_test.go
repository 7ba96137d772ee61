package clientip_test

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/spillgate/spillgate/middleware/clientip"
)

// naive is the reference: join, split, walk, and net.ParseIP instead of netip.
// It knows nothing of limits.
func naive(remote string, lines []string, trusted []*net.IPNet) string {
	parse := func(s string) net.IP {
		if host, port, err := net.SplitHostPort(s); err == nil {
			for _, c := range port {
				if !strings.ContainsRune("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&'*+-.^_`|~", c) {
					return nil
				}
			}
			if port == "" || strings.HasPrefix(s, "[") != strings.Contains(host, ":") {
				return nil
			}
			s = host
		} else if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
			s = s[1 : len(s)-1]
			if !strings.Contains(s, ":") {
				return nil
			}
		}
		if host, zone, found := strings.Cut(s, "%"); found {
			if zone == "" || !strings.Contains(host, ":") || strings.Contains(strings.ToLower(host), "ffff:") && net.ParseIP(host).To4() != nil {
				return nil // netip: a zone cannot follow a mapped address
			}
			s = host
		}
		ip := net.ParseIP(s)
		if ip.IsUnspecified() {
			return nil
		}
		return ip
	}
	isTrusted := func(ip net.IP) bool {
		for _, n := range trusted {
			if n.Contains(ip) {
				return true
			}
		}
		return false
	}
	peer := parse(remote)
	if peer == nil {
		return ""
	}
	if !isTrusted(peer) || lines == nil {
		return peer.String()
	}
	var last net.IP
	entries := strings.Split(strings.Join(lines, ","), ",")
	for i := len(entries) - 1; i >= 0; i-- {
		last = parse(strings.Trim(entries[i], " \t"))
		if last == nil {
			return ""
		}
		if !isTrusted(last) {
			break
		}
	}
	return last.String()
}

func FuzzXForwardedFor(f *testing.F) {
	f.Add("192.0.2.1:1", "198.51.100.7", "")
	f.Add("10.0.0.1:1", "203.0.113.9, 198.51.100.7", "10.0.0.2")
	f.Add("10.0.0.1:1", "203.0.113.9,,10.0.0.2", "::ffff:10.0.0.1")
	f.Add("[::ffff:10.0.0.1]:1", "[2001:db8::1]:443, 2001:db8:ffff::2", "2001:db8:ffff::1%eth0")
	f.Add("10.0.0.1:1", "1.2.3.4:", "[1.2.3.4]")
	f.Add("10.0.0.1:1", "::", "0.0.0.0:80")
	f.Add("10.0.0.1:1", "::ffff:1.2.3.4%x", "fe80::1%")
	f.Add("@", "1.2.3.4", "x")
	f.Add("10.0.0.1:1", "64:ff9b::1.2.3.4", "10.0.0.2")
	for _, remote := range []string{"192.0.2.01:1", "192.0.2.256:1", "0192.0.2.1:1", "192.0.2:1", "192.0.2.1.5:1", "0.0.0.0:1", "0.0.0.1:1",
		"192.0.2.1:", "192.0.2.1:http", "192.0.2.1:1:2", "192.0.2.1", "192.0.2.:1", ".0.2.1:1", "255.255.255.255:65535"} {
		f.Add(remote, "", "")
	}
	s := clientip.FromXForwardedFor(proxies, clientip.WithMaxHops(1000))
	var nets []*net.IPNet
	for _, p := range proxies {
		_, n, err := net.ParseCIDR(p.String())
		if err != nil {
			f.Fatal(err)
		}
		nets = append(nets, n)
	}
	f.Fuzz(func(t *testing.T, remote, line1, line2 string) {
		if len(remote)+len(line1)+len(line2) > 500 {
			t.Skip("the reference knows no limits")
		}
		lines := []string{line1, line2}
		r := request(remote, "X-Forwarded-For", lines...)
		want := naive(remote, lines, nets)
		got, ok := s.Addr(r)
		switch {
		case ok != (want != ""), ok && got.String() != want:
			t.Fatalf("RemoteAddr %q, lines %q: Addr = %v, %v; reference %q", remote, lines, got, ok, want)
		case ok && (got.Zone() != "" || got.Is4In6() || got.IsUnspecified()):
			t.Fatalf("Addr = %v: zone, mapped or unspecified", got)
		}
		key := s.Key(r)
		if !ok {
			if key != clientip.Unknown {
				t.Fatalf("Key = %q without an address", key)
			}
			return
		}
		if got.Is4() && key != got.String() {
			t.Fatalf("Key = %q of %v", key, got)
		}
		if got.Is6() {
			p, _ := got.Prefix(64)
			want := p.String()
			if netip.MustParsePrefix("64:ff9b::/96").Contains(got) {
				want = got.String()
			}
			if key != want {
				t.Fatalf("Key = %q of %v", key, got)
			}
		}
	})
}

// What a client writes is left of what the proxies append, in the same line or
// in lines before, and must never make a difference.
func FuzzClientCannotChooseItsAddress(f *testing.F) {
	f.Add("203.0.113.9", "10.0.0.2", uint64(1))
	f.Add(`for="203.0.113.9`, `by="\`, uint64(2))
	f.Add(`"\"\\"`, `,;,`, uint64(3))
	f.Add(strings.Repeat(`\`, 600), strings.Repeat(`"`, 600), uint64(4))
	xff, fwd := clientip.FromXForwardedFor(proxies), clientip.FromForwarded(proxies)
	f.Fuzz(func(t *testing.T, line, before string, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 0))
		client := netip.AddrFrom4([4]byte{198, 51, 100, byte(rng.Uint32())})
		if rng.IntN(2) == 0 {
			client = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: byte(rng.Uint32())})
		}
		honest := []netip.Addr{client}
		for range rng.IntN(4) {
			honest = append(honest, netip.AddrFrom4([4]byte{10, 0, 0, byte(rng.Uint32())}))
		}

		lines := []string{before, line}
		for _, a := range honest {
			text := a.String()
			if a.Is6() && rng.IntN(2) == 0 {
				text = "[" + text + "]:443"
			}
			lines = appendEntry(rng, lines, text)
		}
		r := request("10.0.0.1:1", "X-Forwarded-For", lines...)
		if got, ok := xff.Addr(r); !ok || got != client {
			t.Fatalf("X-Forwarded-For %q: Addr = %v, %v; want %v", lines, got, ok, client)
		}

		lines = []string{before, line}
		for _, a := range honest {
			lines = appendEntry(rng, lines, element(rng, a))
		}
		r = request("10.0.0.1:1", "Forwarded", lines...)
		if got, ok := fwd.Addr(r); !ok || got != client {
			t.Fatalf("Forwarded %q: Addr = %v, %v; want %v", lines, got, ok, client)
		}
	})
}

// appendEntry does as a proxy does: a new line, or more text in the last one.
func appendEntry(rng *rand.Rand, lines []string, entry string) []string {
	if rng.IntN(3) == 0 {
		return append(lines, entry)
	}
	lines[len(lines)-1] += [...]string{",", ", ", " ,\t"}[rng.IntN(3)] + entry
	return lines
}

// element prints a well-formed Forwarded element with parameters that a parser
// can trip over.
func element(rng *rand.Rand, a netip.Addr) string {
	node := a.String()
	if a.Is6() {
		node = "[" + node + "]"
	}
	if a.Is6() || rng.IntN(2) == 0 {
		node = `"` + node + `"`
	}
	params := []string{[...]string{"for=", "For=", "FOR="}[rng.IntN(3)] + node}
	for range rng.IntN(3) {
		params = append(params, [...]string{
			`proto=https`, `by=_proxy`, `host="a.example:80"`, `ext="x,for=203.0.113.9"`, `e1="a\"b"`, `e2="a\\"`, `e3="\\\","`, `e4=""`,
		}[rng.IntN(8)])
	}
	rng.Shuffle(len(params), func(i, j int) { params[i], params[j] = params[j], params[i] })
	return strings.Join(params, ";")
}

// No bytes whatever make a Source panic or answer with something that is not a
// plain address.
func FuzzForwardedGarbage(f *testing.F) {
	f.Add(`for="`)
	f.Add(`for="\`)
	f.Add(`for=;for=`)
	f.Add(`;;;=,`)
	f.Add("for=\x00\xff")
	s := clientip.FromForwarded(proxies)
	h := clientip.FromHeader("X-Real-IP", proxies)
	f.Fuzz(func(t *testing.T, line string) {
		got, ok := s.Addr(request("10.0.0.1:1", "Forwarded", line))
		if ok != got.IsValid() || got.Zone() != "" || got.Is4In6() {
			t.Fatalf("Forwarded %q: Addr = %v, %v", line, got, ok)
		}
		got, ok = h.Addr(request("10.0.0.1:1", "X-Real-Ip", line))
		if ok != got.IsValid() || got.Zone() != "" || got.Is4In6() {
			t.Fatalf("X-Real-IP %q: Addr = %v, %v", line, got, ok)
		}
	})
}
