package clientip_test

import (
	"fmt"
	"net/http"

	"github.com/spillgate/spillgate/middleware/clientip"
)

func ExampleSource() {
	var clients clientip.Source // the peer of the connection, whatever a header says

	r := &http.Request{RemoteAddr: "192.0.2.1:40000", Header: http.Header{"X-Forwarded-For": {"198.51.100.7"}}}
	fmt.Println(clients.Key(r))
	// Output: 192.0.2.1
}

func ExampleFromXForwardedFor() {
	// A CDN in front of a load balancer in front of this server.
	clients := clientip.FromXForwardedFor(clientip.Prefixes("10.0.0.0/16", "203.0.113.0/24"))

	r := &http.Request{RemoteAddr: "10.0.0.5:40000", Header: http.Header{
		// Invented by the client, seen by the CDN, seen by the load balancer.
		"X-Forwarded-For": {"1.1.1.1, 2001:db8:1:2:3::7, 203.0.113.80"},
	}}
	addr, ok := clients.Addr(r)
	fmt.Println(addr, ok, clients.Key(r))
	// Output: 2001:db8:1:2:3::7 true 2001:db8:1:2::/64
}

func ExampleFromForwarded() {
	clients := clientip.FromForwarded(clientip.Prefixes("10.0.0.0/16"))

	r := &http.Request{RemoteAddr: "10.0.0.5:40000", Header: http.Header{
		"Forwarded": {`for=1.1.1.1, for="[2001:db8:1:2:3::7]:4711";proto=https`},
	}}
	fmt.Println(clients.Key(r))
	// Output: 2001:db8:1:2::/64
}

func ExampleFromHeader() {
	// nginx on the same machine: proxy_set_header X-Real-IP $remote_addr;
	clients := clientip.FromHeader("X-Real-IP", clientip.Prefixes("127.0.0.1", "::1"))

	r := &http.Request{RemoteAddr: "127.0.0.1:40000", Header: http.Header{"X-Real-Ip": {"198.51.100.7"}}}
	fmt.Println(clients.Key(r))
	// Output: 198.51.100.7
}

func ExampleFromPeer() {
	// Clients connect directly, and a provider gives each of them a /56.
	clients := clientip.FromPeer(clientip.WithIPv6Prefix(56))

	fmt.Println(clients.Key(&http.Request{RemoteAddr: "[2001:db8:1:2ff::7]:40000"}))
	// Output: 2001:db8:1:200::/56
}

func ExampleParsePrefixes() {
	// From a configuration: prefixes and single addresses.
	trusted, err := clientip.ParsePrefixes("10.0.0.0/8", "192.0.2.1")
	fmt.Println(trusted, err)

	_, err = clientip.ParsePrefixes("10.0.0.0/8", "proxy.example")
	fmt.Println(err)
	// Output:
	// [10.0.0.0/8 192.0.2.1/32] <nil>
	// clientip: ParsePrefixes: "proxy.example" is neither a prefix such as 10.0.0.0/8 nor an address
}
