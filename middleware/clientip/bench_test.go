package clientip_test

import (
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/spillgate/spillgate/middleware/clientip"
)

// BenchmarkKey stands beside what most servers do by hand, and beside the
// longest header that net/http accepts by default.
func BenchmarkKey(b *testing.B) {
	cloud := []string{"173.245.48.0/20", "103.21.244.0/22", "103.22.200.0/22", "103.31.4.0/22", "141.101.64.0/18",
		"108.162.192.0/18", "190.93.240.0/20", "188.114.96.0/20", "197.234.240.0/22", "198.41.128.0/17", "162.158.0.0/15",
		"104.16.0.0/13", "104.24.0.0/14", "172.64.0.0/13", "131.0.72.0/22", "2400:cb00::/32", "2606:4700::/32",
		"2803:f800::/32", "2405:b500::/32", "2405:8100::/32", "2a06:98c0::/29", "2c0f:f248::/32", "10.0.0.0/8"}
	xff := clientip.FromXForwardedFor(clientip.Prefixes(cloud...))
	fwd := clientip.FromForwarded(clientip.Prefixes(cloud...))
	one := clientip.FromHeader("CF-Connecting-IP", clientip.Prefixes(cloud...))
	peer := clientip.FromPeer()
	mib := strings.Repeat("203.0.113.9, ", 1<<20/13)

	for _, bb := range []struct {
		name string
		key  func(*http.Request) string
		r    *http.Request
	}{
		{"baseline=SplitHostPort", func(r *http.Request) string { h, _, _ := net.SplitHostPort(r.RemoteAddr); return h }, request("192.0.2.1:40000", "")},
		{"peer/ipv4", peer.Key, request("192.0.2.1:40000", "")},
		{"peer/ipv6", peer.Key, request("[2001:db8:1:2:3:4:5:6]:40000", "")},
		{"peer/unknown", peer.Key, request("@", "")},
		{"baseline=XFFSplit", func(r *http.Request) string {
			parts := strings.Split(r.Header.Get("X-Forwarded-For"), ",")
			return strings.TrimSpace(parts[len(parts)-1])
		}, request("10.0.0.1:1", "X-Forwarded-For", "203.0.113.9, 198.51.100.7")},
		{"xff/hops=1", xff.Key, request("10.0.0.1:1", "X-Forwarded-For", "203.0.113.9, 198.51.100.7")},
		{"xff/hops=2", xff.Key, request("10.0.0.1:1", "X-Forwarded-For", "203.0.113.9, 198.51.100.7, 172.64.0.9")},
		{"xff/untrusted", xff.Key, request("192.0.2.1:1", "X-Forwarded-For", "203.0.113.9, 198.51.100.7")},
		{"forwarded/hops=2", fwd.Key, request("10.0.0.1:1", "Forwarded", `for=198.51.100.7;proto=https, for="172.64.0.9:1234"`)},
		{"header", one.Key, request("10.0.0.1:1", "Cf-Connecting-Ip", "198.51.100.7")},
		{"adversarial/xff=1MiB", xff.Key, request("10.0.0.1:1", "X-Forwarded-For", mib+"198.51.100.7")},
		{"adversarial/xff=1MiB,one-entry", xff.Key, request("10.0.0.1:1", "X-Forwarded-For", strings.Repeat("1", 1<<20))},
		{"adversarial/forwarded=1MiB-of-quotes", fwd.Key, request("10.0.0.1:1", "Forwarded", strings.Repeat(`"`, 1<<20))},
		{"adversarial/forwarded=1MiB-of-escapes", fwd.Key, request("10.0.0.1:1", "Forwarded", strings.Repeat(`\"`, 1<<19)+`"`)},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				sink = bb.key(bb.r)
			}
		})
	}
}
