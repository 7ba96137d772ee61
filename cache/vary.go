package cache

import (
	"net/http"
	"slices"
	"strings"
)

// varyNames returns the request fields that a response depends on, in canonical form and sorted,
// and whether it depends on more than fields can tell: a "*" anywhere in the list (RFC 9110,
// section 12.5.5).
func varyNames(lines []string) (names []string, any bool) {
	for _, line := range lines {
		for name := range strings.SplitSeq(line, ",") {
			switch name = trimOWS(name); name {
			case "":
			case "*":
				return nil, true
			default:
				names = append(names, http.CanonicalHeaderKey(name))
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), false
}

// normalise brings the value of a request field into the form in which variants are compared
// (RFC 9111, section 4.1): lines joined, white space around commas gone that no quotes hold, and for the fields of
// content negotiation also case and order, where they mean nothing.
func normalise(name string, lines []string) string {
	if overlong(lines) {
		return strings.Join(lines, ",")
	}
	switch len(lines) {
	case 0:
		return ""
	case 1:
		if v := lines[0]; strings.IndexByte(v, ',') < 0 && !negotiation(name) {
			return trimOWS(v)
		}
	}
	var parts []string
	for _, line := range lines {
		for m, more := "", true; more; {
			m, line, more = cutMember(line)
			if m = trimOWS(m); negotiation(name) {
				if m = strings.ToLower(m); strings.IndexByte(m, ';') >= 0 {
					m = noSpace.Replace(m)
				}
				if m == "" {
					continue
				}
			}
			parts = append(parts, m)
		}
	}
	if negotiation(name) {
		slices.Sort(parts)
	}
	return strings.Join(parts, ",")
}

var noSpace = strings.NewReplacer(" ", "", "\t", "")

// overlong reports whether a request field is longer than any client sends that means well. It is not taken apart, since that
// is done for each variant of a URL: a field of the 1 MiB that net/http lets through would cost seconds.
func overlong(lines []string) bool {
	n := 0
	for _, line := range lines {
		n += 1 + len(line)
	}
	return n > 1<<10
}

func negotiation(name string) bool {
	return name == "Accept-Encoding" || name == "Accept-Language"
}

// selected is the part of a request that chose a variant: field by field as it was sent, and in
// the form in which it is compared. The empty string and an absent field are different.
type selected struct {
	raw, norm string
	absent    bool
}

func selectFields(names []string, h http.Header) []selected {
	if len(names) == 0 {
		return nil
	}
	out := make([]selected, len(names))
	for i, name := range names {
		lines := h[name]
		out[i] = selected{norm: normalise(name, lines), absent: len(lines) == 0}
		if len(lines) == 1 {
			out[i].raw = strings.Clone(lines[0])
		}
	}
	return out
}

// matches reports whether a request selects a variant, which is in a language, if it said so.
func matches(names []string, want []selected, language string, h http.Header) bool {
	for i, name := range names {
		lines := h[name]
		if (len(lines) == 0) != want[i].absent {
			return false
		}
		if len(lines) == 1 && lines[0] != "" && lines[0] == want[i].raw {
			continue // the usual case, without normalising; of a field in several lines raw is empty
		}
		if len(lines) != 0 && normalise(name, lines) != want[i].norm &&
			!(name == "Accept-Language" && language != "" && preferred(lines) == language) {
			return false
		}
	}
	return true
}

// chosenFor reports whether each request that selects an old variant selects this one as well. It does also where the old one depends
// on more: that would never be sent as long as this one is there, and be the first when that has gone.
func (e *entry) chosenFor(old *entry) bool {
	for i, name := range e.vary {
		j := slices.Index(old.vary, name)
		if j < 0 || e.chosen[i].norm != old.chosen[j].norm || e.chosen[i].absent != old.chosen[j].absent {
			return false
		}
	}
	return true
}

// decodable reports whether a client names each coding of the content in its Accept-Encoding, and needs no dictionary for
// it (RFC 9842), which another client may have had.
func (e *entry) decodable(acceptEncoding []string) bool {
	codings, _ := e.values("Content-Encoding")
	for _, line := range codings {
		for coding := range strings.SplitSeq(line, ",") {
			if coding = trimOWS(coding); coding != "" && !strings.EqualFold(coding, "identity") &&
				(!accepted(acceptEncoding, coding) || strings.EqualFold(coding, "dcb") || strings.EqualFold(coding, "dcz")) {
				return false
			}
		}
	}
	return true
}

// madePlain reports whether a representation without a coding was made for a client that named none, and depends on that. For one that
// does a layer that compresses makes another, but says that nothing has changed where it gives both the same entity tag.
func (e *entry) madePlain() bool {
	i := slices.Index(e.vary, "Accept-Encoding")
	if _, coded := e.values("Content-Encoding"); coded || i < 0 {
		return false
	}
	return !namesCoding([]string{e.chosen[i].norm})
}

// namesCoding reports whether an Accept-Encoding names a coding that changes anything.
func namesCoding(lines []string) bool {
	if overlong(lines) {
		return false
	}
	for _, line := range lines {
		for m := range strings.SplitSeq(line, ",") {
			if name, q := weighed(m); q > 0 && name != "" && name != "*" && !strings.EqualFold(name, "identity") {
				return true
			}
		}
	}
	return false
}

// accepted reports whether a list of content negotiation has a member by name, and not with a quality of 0.
func accepted(lines []string, name string) bool {
	if overlong(lines) {
		return false
	}
	for _, line := range lines {
		for m := range strings.SplitSeq(line, ",") {
			if member, q := weighed(m); q > 0 && strings.EqualFold(member, name) {
				return true
			}
		}
	}
	return false
}

// weighed takes a member of content negotiation apart, in thousandths.
func weighed(m string) (name string, quality int) {
	name, params, _ := strings.Cut(m, ";")
	quality = 1000
	if q, v, ok := strings.Cut(trimOWS(params), "="); ok && strings.EqualFold(trimOWS(q), "q") {
		quality = thousandths(trimOWS(v))
	}
	return trimOWS(name), quality
}

// preferred is the language that an Accept-Language puts before all others, in lower case, or ""
// where there is no such one. A handler that has a variant in it sends that one, whatever else the
// list holds (RFC 9110, section 12.5.4).
func preferred(lines []string) string {
	if overlong(lines) {
		return ""
	}
	best, quality, tie := "", 0, false
	for _, line := range lines {
		for m := range strings.SplitSeq(line, ",") {
			tag, q := weighed(m)
			switch {
			case tag == "" || q == 0:
			case q > quality:
				best, quality, tie = tag, q, false
			case q == quality:
				tie = true
			}
		}
	}
	if tie || best == "*" {
		return ""
	}
	return strings.ToLower(best)
}

// thousandths reads a quality value (RFC 9110, section 12.4.2); what is none counts as 0.
func thousandths(s string) int {
	whole, frac, _ := strings.Cut(s, ".")
	if whole != "0" && whole != "1" || len(frac) > 3 {
		return 0
	}
	n := int(whole[0]-'0') * 1000
	for i, unit := 0, 100; i < len(frac); i, unit = i+1, unit/10 {
		if !digit(frac[i]) {
			return 0
		}
		n += int(frac[i]-'0') * unit
	}
	return min(n, 1000)
}

// secondary renders what a request selects, as part of the key under which misses are collapsed.
func secondary(names []string, h http.Header) string {
	if len(names) == 0 {
		return ""
	}
	var b strings.Builder
	for _, name := range names {
		b.WriteByte(1)
		if lines := h[name]; len(lines) != 0 {
			b.WriteByte(2)
			b.WriteString(normalise(name, lines))
		}
	}
	return b.String()
}
