package clientip

import (
	"net/netip"
	"strings"
)

// readXForwardedFor reads the list of addresses in X-Forwarded-For.
func readXForwardedFor(lines []string, t *trusted, hops int) (address, bool) {
	return readHops(lines, t, hops, func(list string) (node, rest string, more bool) {
		node, rest, more = cutLast(list)
		return trimSpace(node), rest, more
	})
}

// readForwarded reads the elements of Forwarded.
func readForwarded(lines []string, t *trusted, hops int) (address, bool) {
	return readHops(lines, t, hops, func(list string) (node, rest string, more bool) {
		element, rest, more := cutLastQuoted(list)
		return forParameter(element), rest, more
	})
}

// readHops walks a list over several lines from the right, until it meets an address that is not
// trusted. cut takes the last node off a line, empty where there is none.
func readHops(lines []string, t *trusted, hops int, cut func(list string) (node, rest string, more bool)) (address, bool) {
	var last address
	for i := len(lines) - 1; i >= 0; i-- {
		line := lines[i]
		for rest, more := line, true; more; {
			if hops == 0 {
				return address{}, false
			}
			hops--
			var node string
			node, rest, more = cut(rest)
			a, ok := parseNode(node)
			if !ok {
				return address{}, false
			}
			last = unpinned(a, line)
			if !t.contains(a.ip) {
				return last, true
			}
		}
	}
	return last, true
}

// readSingle takes the only address in the only line.
func readSingle(lines []string, _ *trusted, _ int) (address, bool) {
	if len(lines) != 1 || len(lines[0]) > maxEntryLen {
		return address{}, false
	}
	a, ok := parseNode(trimSpace(lines[0]))
	if !ok {
		return address{}, false
	}
	return unpinned(a, lines[0]), true
}

// unpinned gives a its own text if it was cut from a long line.
func unpinned(a address, line string) address {
	if len(line) > maxPinned {
		a.text = ""
	}
	return a
}

// cutLast splits a list before its last comma. It looks at no more than
// maxEntryLen bytes; an entry that is longer comes back empty, which is no
// address.
func cutLast(list string) (entry, rest string, more bool) {
	from := max(0, len(list)-maxEntryLen)
	if i := strings.LastIndexByte(list[from:], ','); i >= 0 {
		return list[from+i+1:], list[:from+i], true
	}
	if from > 0 {
		return "", "", false
	}
	return list, "", false
}

// cutLastQuoted is cutLast for a list whose entries may hold quoted strings. It
// reads from the right, so a quote that the client left open, further left than
// what a proxy appended, cannot swallow that. An entry that is longer than maxEntryLen
// comes out empty; one whose quotes do not match is for forParameter to refuse.
func cutLastQuoted(list string) (entry, rest string, more bool) {
	from := max(0, len(list)-maxEntryLen)
	quoted := false
	for i := len(list) - 1; i >= from; i-- {
		switch list[i] {
		case '"':
			if quoted && escaped(list[from:i]) {
				continue
			}
			quoted = !quoted
		case ',':
			if !quoted {
				return list[i+1:], list[:i], true
			}
		}
	}
	if from > 0 {
		return "", "", false
	}
	return list, "", false
}

// escaped tells whether the byte that follows before is escaped by a backslash.
func escaped(before string) bool {
	n := 0
	for i := len(before) - 1; i >= 0 && before[i] == '\\'; i-- {
		n++
	}
	return n%2 == 1
}

// forParameter returns the value of the "for" parameter of a Forwarded element,
// which is at most maxEntryLen bytes long, and nothing if the element has none,
// has two, or is not a list of parameters. RFC 7239, section 4; a value with
// characters that should be quoted (an IPv6 address) is accepted unquoted.
func forParameter(element string) (node string) {
	seen := false
	for element != "" {
		element = strings.TrimLeft(element, " \t;")
		if element == "" {
			break
		}
		name, rest, found := strings.Cut(element, "=")
		if !found || !isToken(name) {
			return ""
		}
		var value string
		if strings.HasPrefix(rest, `"`) {
			end := 1
			for end < len(rest) && rest[end] != '"' {
				if rest[end] == '\\' {
					end++
				}
				end++
			}
			if end >= len(rest) {
				return ""
			}
			value, rest = rest[1:end], rest[end+1:]
			rest = strings.TrimLeft(rest, " \t")
			if rest != "" && rest[0] != ';' {
				return ""
			}
		} else {
			value, rest, _ = strings.Cut(rest, ";")
			value = trimSpace(value)
			if strings.ContainsAny(value, "\" \t") {
				return ""
			}
		}
		if strings.EqualFold(name, "for") {
			if seen {
				return ""
			}
			node, seen = value, true
		}
		element = rest
	}
	return node
}

// parsePeer reads the RemoteAddr of a request. A port is usual and not
// required: a middleware further out may have cut it off.
func parsePeer(s string) (address, bool) {
	if len(s) > maxEntryLen {
		return address{}, false
	}
	if a, ok := parsePeer4(s); ok {
		return a, true
	}
	return parseNode(s)
}

// parsePeer4 is parsePeer for what net/http writes for most peers, such as 192.0.2.1:4711, in one
// pass. It reports false for all else, and for what it is not sure of.
func parsePeer4(s string) (address, bool) {
	var ip [4]byte
	part, n, digits := 0, 0, 0
	for i := range len(s) {
		c := s[i]
		switch {
		case '0' <= c && c <= '9':
			if n = n*10 + int(c-'0'); n > 255 || digits == 1 && n < 10 {
				return address{}, false
			}
			digits++
		case digits == 0:
			return address{}, false
		case c == '.' && part < 3:
			ip[part] = byte(n)
			part, n, digits = part+1, 0, 0
		case c == ':' && part == 3:
			ip[part] = byte(n)
			for j := i + 1; j < len(s); j++ {
				if s[j] < '0' || '9' < s[j] {
					return address{}, false
				}
			}
			if i+1 == len(s) {
				return address{}, false
			}
			return knownAddress(address{ip: netip.AddrFrom4(ip), text: s[:i]})
		default:
			return address{}, false
		}
	}
	return address{}, false
}

// parseNode reads an address with or without port. An IPv6 address may stand in
// brackets, and has to if a port follows. The unspecified address (0.0.0.0, ::)
// is nobody's, and refused.
func parseNode(s string) (address, bool) {
	host := s
	switch {
	case s == "":
		return address{}, false
	case s[0] == '[':
		inside, port, found := strings.Cut(s[1:], "]")
		if !found || !isPort(port) {
			return address{}, false
		}
		if strings.IndexByte(inside, ':') < 0 {
			return address{}, false // brackets are for IPv6
		}
		host = inside
	default:
		// One colon separates a port; an address with more is IPv6.
		if i := strings.IndexByte(s, ':'); i >= 0 && strings.IndexByte(s[i+1:], ':') < 0 {
			if !isPort(s[i:]) {
				return address{}, false
			}
			host = s[:i]
		}
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return address{}, false
	}
	if ip.Is4() {
		// netip takes no other text for an IPv4 address than its canonical one.
		return knownAddress(address{ip: ip, text: host})
	}
	return knownAddress(address{ip: ip.Unmap().WithZone("")})
}

func knownAddress(a address) (address, bool) {
	if a.ip.IsUnspecified() {
		return address{}, false
	}
	return a, true
}

// isPort tells whether s is empty or a colon and a port. RFC 7239 allows
// obfuscated ports ("_sec"); nothing is read from a port, so any token will do.
func isPort(s string) bool {
	return s == "" || s[0] == ':' && isToken(s[1:])
}

func trimSpace(s string) string { return strings.Trim(s, " \t") }

// isToken tells whether s is a token of RFC 9110, section 5.6.2.
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}
