package cache

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// This file reads the part of RFC 9651 (Structured Field Values) that targeted cache control
// (RFC 9213) and cache groups (RFC 9875) need: dictionaries and lists of strings. A field that
// does not parse to its end is refused as a whole, as section 4.2 demands.

// bareKind is the type of a bare item.
type bareKind uint8

const (
	bareOther bareKind = iota // a decimal, byte sequence, date, display string or inner list
	bareInteger
	bareString
	bareToken
	bareTrue
	bareFalse
)

// bare is an item without its parameters.
type bare struct {
	kind bareKind
	n    int64
	s    string
}

// sfScanner walks a structured field.
type sfScanner struct {
	s  string
	ok bool
}

func (p *sfScanner) fail() { p.ok, p.s = false, "" }

func (p *sfScanner) peek() byte {
	if p.s == "" {
		return 0
	}
	return p.s[0]
}

func (p *sfScanner) skipSP() { p.s = strings.TrimLeft(p.s, " ") }

// more consumes the comma between members; it reports whether another member follows.
func (p *sfScanner) more() bool {
	p.s = strings.TrimLeft(p.s, " \t")
	if !p.ok || p.s == "" {
		return false
	}
	if p.s[0] != ',' {
		p.fail()
		return false
	}
	p.s = strings.TrimLeft(p.s[1:], " \t")
	if p.s == "" { // a trailing comma
		p.fail()
		return false
	}
	return true
}

func lcalpha(c byte) bool { return 'a' <= c && c <= 'z' }
func digit(c byte) bool   { return '0' <= c && c <= '9' }
func alpha(c byte) bool   { return lcalpha(c | 0x20) }

func (p *sfScanner) key() string {
	if c := p.peek(); !lcalpha(c) && c != '*' {
		p.fail()
		return ""
	}
	i := 1
	for i < len(p.s) {
		c := p.s[i]
		if !lcalpha(c) && !digit(c) && c != '_' && c != '-' && c != '.' && c != '*' {
			break
		}
		i++
	}
	k := p.s[:i]
	p.s = p.s[i:]
	return k
}

func (p *sfScanner) params() {
	for p.ok && p.peek() == ';' {
		p.s = p.s[1:]
		p.skipSP()
		p.key()
		if p.ok && p.peek() == '=' {
			p.s = p.s[1:]
			p.bareItem()
		}
	}
}

// member reads an item or an inner list, with its parameters.
func (p *sfScanner) member() bare {
	var b bare
	if p.peek() == '(' {
		p.s = p.s[1:]
		for p.ok {
			p.skipSP()
			if p.peek() == ')' {
				p.s = p.s[1:]
				break
			}
			p.bareItem()
			p.params()
			if c := p.peek(); c != ' ' && c != ')' {
				p.fail()
			}
		}
	} else {
		b = p.bareItem()
	}
	p.params()
	return b
}

func (p *sfScanner) bareItem() bare {
	c := p.peek()
	switch {
	case c == '-' || digit(c):
		return p.number()
	case c == '"':
		s := p.quoted()
		return bare{kind: bareString, s: s}
	case c == '*' || alpha(c):
		i := 1
		for i < len(p.s) && (alpha(p.s[i]) || digit(p.s[i]) || strings.IndexByte("!#$%&'*+-.^_`|~:/", p.s[i]) >= 0) {
			i++
		}
		s := p.s[:i]
		p.s = p.s[i:]
		return bare{kind: bareToken, s: s}
	case c == '?':
		if len(p.s) >= 2 && (p.s[1] == '0' || p.s[1] == '1') {
			b := bare{kind: bareTrue}
			if p.s[1] == '0' {
				b.kind = bareFalse
			}
			p.s = p.s[2:]
			return b
		}
	case c == ':':
		if end := strings.IndexByte(p.s[1:], ':'); end >= 0 {
			for _, c := range []byte(p.s[1 : 1+end]) {
				if !alpha(c) && !digit(c) && c != '+' && c != '/' && c != '=' {
					p.fail()
					return bare{}
				}
			}
			p.s = p.s[end+2:]
			return bare{}
		}
	case c == '@':
		p.s = p.s[1:]
		if b := p.number(); b.kind != bareInteger {
			p.fail()
		}
		return bare{}
	case c == '%' && strings.HasPrefix(p.s, `%"`):
		if end := strings.IndexByte(p.s[2:], '"'); end >= 0 {
			p.s = p.s[end+3:]
			return bare{}
		}
	}
	p.fail()
	return bare{}
}

func (p *sfScanner) number() bare {
	i := 0
	if p.peek() == '-' {
		i = 1
	}
	start := i
	for i < len(p.s) && digit(p.s[i]) {
		i++
	}
	if i == start || i-start > 15 {
		p.fail()
		return bare{}
	}
	if i < len(p.s) && p.s[i] == '.' {
		frac := i + 1
		j := frac
		for j < len(p.s) && digit(p.s[j]) {
			j++
		}
		if j == frac || j-frac > 3 || i-start > 12 {
			p.fail()
			return bare{}
		}
		p.s = p.s[j:]
		return bare{}
	}
	n, err := strconv.ParseInt(p.s[:i], 10, 64)
	if err != nil {
		p.fail()
		return bare{}
	}
	p.s = p.s[i:]
	return bare{kind: bareInteger, n: n}
}

func (p *sfScanner) quoted() string {
	var b strings.Builder
	for i := 1; i < len(p.s); i++ {
		switch c := p.s[i]; {
		case c == '"':
			p.s = p.s[i+1:]
			return b.String()
		case c == '\\':
			i++
			if i == len(p.s) || (p.s[i] != '"' && p.s[i] != '\\') {
				p.fail()
				return ""
			}
			b.WriteByte(p.s[i])
		case c < 0x20 || c > 0x7e:
			p.fail()
			return ""
		default:
			b.WriteByte(c)
		}
	}
	p.fail()
	return ""
}

func scanField(lines []string) *sfScanner {
	s := strings.Trim(strings.Join(lines, ", "), " ")
	return &sfScanner{s: s, ok: s != ""}
}

// parseTargeted reads a targeted field (RFC 9213, section 2.1). It reports false for an empty
// field and for one that does not parse: such a field is ignored. A directive of the wrong type
// is ignored alone.
func parseTargeted(lines []string) (directives, bool) {
	d := noDirectives()
	p := scanField(lines)
	for again := p.ok; again; again = p.more() {
		name := p.key()
		b := bare{kind: bareTrue}
		if p.ok && p.peek() == '=' {
			p.s = p.s[1:]
			b = p.member()
		} else {
			p.params()
		}
		if !p.ok {
			break
		}
		d.setTyped(name, b)
	}
	if !p.ok {
		return noDirectives(), false
	}
	return d, true
}

// setTyped is set for a directive with a type. The last of two members with one name counts
// (RFC 9651, section 3.2).
func (d *directives) setTyped(name string, b bare) {
	flag := func(to *bool) {
		if b.kind == bareTrue || b.kind == bareFalse {
			*to = b.kind == bareTrue
		}
	}
	delta := func(to *time.Duration) {
		if b.kind == bareInteger {
			*to = time.Duration(min(max(b.n, 0), maxDelta)) * time.Second
		}
	}
	switch name {
	case "no-store":
		flag(&d.noStore)
	case "no-cache":
		if b.kind == bareString {
			d.omit = appendFields(d.omit, b.s)
		} else {
			flag(&d.noCache)
		}
	case "private":
		if b.kind == bareString {
			d.omit = appendFields(d.omit, b.s)
		} else {
			flag(&d.private)
		}
	case "public":
		flag(&d.public)
	case "must-revalidate":
		flag(&d.mustRevalidate)
	case "proxy-revalidate":
		flag(&d.proxyRevalidate)
	case "must-understand":
		flag(&d.mustUnderstand)
	case "max-age":
		delta(&d.maxAge)
	case "s-maxage":
		delta(&d.sMaxAge)
	case "stale-while-revalidate":
		delta(&d.whileStale)
	case "stale-if-error":
		delta(&d.ifErring)
	}
}

// parseStrings reads a list of strings, which is what Cache-Groups and Cache-Group-Invalidation
// are (RFC 9875, section 2). It returns nil for a field that does not parse.
func parseStrings(lines []string) []string {
	if len(lines) == 0 {
		return nil
	}
	var out []string
	p := scanField(lines)
	for again := p.ok; again; again = p.more() {
		b := p.member()
		if p.ok && b.kind == bareString {
			out = append(out, b.s)
		}
	}
	if !p.ok {
		return nil
	}
	return out
}

// parseSurrogate reads Surrogate-Control, which is older than structured fields and laxer: names
// in any case, and a parameter that is the name of the surrogate the directive is meant for (W3C
// Edge Architecture, section 2.3). Directives for others are ignored; ones for us beat ones for
// everybody. It reports false when nothing remains.
func parseSurrogate(lines []string, me string) (directives, bool) {
	all, ours := noDirectives(), noDirectives()
	for _, line := range lines {
		for line != "" {
			var d string
			d, line, _ = strings.Cut(line, ",")
			d, target, targeted := strings.Cut(trimOWS(d), ";")
			name, arg, _ := strings.Cut(trimOWS(d), "=")
			arg, _, _ = strings.Cut(arg, "+") // "max-age=3600+600": the second number is for stale use
			to := &all
			if targeted {
				if trimOWS(target) != me {
					continue
				}
				to = &ours
			}
			switch strings.ToLower(name) {
			case "no-store":
				to.noStore = true
			case "max-age":
				to.maxAge = lower(to.maxAge, arg)
			}
		}
	}
	says := func(d *directives) bool { return d.noStore || d.maxAge != noDelta }
	if says(&ours) {
		return ours, true
	}
	return all, says(&all)
}

// control finds the directives that govern a response: the first targeted field that is present
// and valid takes the place of Cache-Control and of Expires (RFC 9213, section 2.2).
func (p *rules) control(h http.Header) (d directives, targeted bool) {
	for _, name := range p.targets {
		if lines := h[name]; len(lines) != 0 {
			if d, ok := parseTargeted(lines); ok {
				return d, true
			}
		}
	}
	if p.surrogate != "" {
		if lines := h["Surrogate-Control"]; len(lines) != 0 {
			if d, ok := parseSurrogate(lines, p.surrogate); ok {
				return d, true
			}
		}
	}
	return parseDirectives(h["Cache-Control"]), false
}
