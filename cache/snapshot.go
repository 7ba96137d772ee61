package cache

import (
	"net/http"
	"slices"
)

// headerSnapshot is what a response header held before the handler ran: the fields that layers
// outside the cache have set for this one request. They are not part of what is stored.
type headerSnapshot []field

func snapshot(h http.Header) headerSnapshot {
	if len(h) == 0 {
		return nil
	}
	s := make(headerSnapshot, 0, len(h))
	for name, values := range h {
		s = append(s, field{name, values})
	}
	return s
}

// has reports whether a field is still as it was.
func (s headerSnapshot) has(name string, values []string) bool {
	for i := range s {
		if s[i].name == name {
			was := s[i].values
			return len(was) == len(values) && (len(was) == 0 || &was[0] == &values[0])
		}
	}
	return false
}

// without returns those of a field's values that it did not have: a handler may have added some to what was there.
func (s headerSnapshot) without(name string, values []string) []string {
	for i := range s {
		if s[i].name == name {
			return slices.DeleteFunc(slices.Clone(values), func(v string) bool { return slices.Contains(s[i].values, v) })
		}
	}
	return values
}

// restore takes everything back that was set since.
func (s headerSnapshot) restore(h http.Header) {
	clear(h)
	for _, f := range s {
		h[f.name] = f.values
	}
}
