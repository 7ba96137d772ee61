package clientip

import "fmt"

// An Option changes how a [Source] reads a request or prints a key.
type Option interface{ apply(*Source) }

type optionFunc func(*Source)

func (f optionFunc) apply(s *Source) { f(s) }

// WithIPv6Prefix sets how many leading bits of an IPv6 address make up a key, 1 to 128. The default is 64: a home or
// a server has a whole /64 and can take a new address from it for every request. Providers also hand out /56 and /48.
// Translated IPv4 addresses (see [Source.Key]) and [Source.Addr] are not affected. It panics outside the range.
func WithIPv6Prefix(bits int) Option {
	if bits < 1 || bits > 128 {
		panic(fmt.Sprintf("clientip: WithIPv6Prefix: %d bits; give 1 to 128", bits))
	}
	return optionFunc(func(s *Source) { s.bits6 = bits })
}

// WithIPv4Prefix sets how many leading bits of an IPv4 address make up a key, 1 to 32. The default is 32, the whole
// address. It also applies to translated addresses (see [Source.Key]). [Source.Addr] is not affected. It panics
// outside the range.
func WithIPv4Prefix(bits int) Option {
	if bits < 1 || bits > 32 {
		panic(fmt.Sprintf("clientip: WithIPv4Prefix: %d bits; give 1 to 32", bits))
	}
	return optionFunc(func(s *Source) { s.bits4 = bits })
}

// WithMaxHops sets how many entries of a list are read at most, from the right; the default is 16. If the client is
// further left, it is [Unknown]. This bounds the work that one request can cause, together with a limit of 512 bytes
// an entry. It panics if n is below 1.
func WithMaxHops(n int) Option {
	if n < 1 {
		panic(fmt.Sprintf("clientip: WithMaxHops: %d; give 1 or more", n))
	}
	return optionFunc(func(s *Source) { s.maxHops = n })
}

// WithTrustedUnixPeer trusts any peer that connects over a unix socket, as a proxy on the same machine does. The
// permissions of the socket then decide who may connect. Without this option such a request has no peer address, and
// its client is [Unknown]. But a client may bind its end of a unix socket to a name that reads like an address, and
// it then passes for that address: let nobody but your proxy connect. The option needs a request that a
// [net/http.Server] accepted, and has no effect on a Source that reads no header.
func WithTrustedUnixPeer() Option {
	return optionFunc(func(s *Source) { s.trustUnix = true })
}
