package clientip

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"
)

var errNoPrefixes = errors.New("no trusted prefix; list the addresses of your proxies, or use the zero Source if clients connect directly")

// ParsePrefixes parses prefixes ("10.0.0.0/8", "2001:db8::/32") and single addresses ("192.0.2.1", "::1") as they are
// written in a configuration. It ignores space around them. The error names the first string that is neither.
func ParsePrefixes(texts ...string) ([]netip.Prefix, error) {
	out := make([]netip.Prefix, 0, len(texts))
	for _, text := range texts {
		text = strings.TrimSpace(text)
		p, err := netip.ParsePrefix(text)
		if err != nil {
			a, aerr := netip.ParseAddr(text)
			if aerr != nil || a.Zone() != "" {
				return nil, fmt.Errorf("clientip: ParsePrefixes: %q is neither a prefix such as 10.0.0.0/8 nor an address", text)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		out = append(out, p)
	}
	return out, nil
}

// Prefixes is [ParsePrefixes] for prefixes written in source code. It panics where ParsePrefixes returns an error.
func Prefixes(texts ...string) []netip.Prefix {
	out, err := ParsePrefixes(texts...)
	if err != nil {
		panic(err.Error())
	}
	return out
}

// trusted is a set of prefixes, sorted and without one that lies in another, so
// that at most one of them, the last that does not begin after an address, can
// contain it.
type trusted struct {
	prefixes []netip.Prefix
}

func newTrusted(prefixes []netip.Prefix) (*trusted, error) {
	all := make([]netip.Prefix, 0, len(prefixes))
	for _, p := range prefixes {
		if !p.IsValid() {
			return nil, errors.New("a trusted prefix is the zero Prefix; take it from netip.MustParsePrefix or Prefixes")
		}
		// Addresses are compared after unmapping, so a mapped prefix is the
		// IPv4 prefix it maps.
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		if p.Bits() == 0 {
			return nil, fmt.Errorf("trusted prefix %v covers every address, so that any client could name itself; list your proxies", p)
		}
		all = append(all, p.Masked())
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	out := all[:0]
	for _, p := range all {
		if n := len(out); n > 0 && out[n-1].Contains(p.Addr()) {
			continue // the wider one sorts first
		}
		out = append(out, p)
	}
	return &trusted{prefixes: slices.Clip(out)}, nil
}

func (t *trusted) contains(a netip.Addr) bool {
	i := sort.Search(len(t.prefixes), func(i int) bool { return t.prefixes[i].Addr().Compare(a) > 0 })
	return i > 0 && t.prefixes[i-1].Contains(a)
}
