package middleware

import (
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"strconv"

	"github.com/spillgate/spillgate/middleware/clientip"
)

// KeyFunc names the bucket that a request is charged to. An error says that the request has no key. Such requests
// share one bucket that no key can name, so a client gains nothing by leaving its key out. An empty key is a key like
// any other.
type KeyFunc = func(*http.Request) (string, error)

// noKey is the bucket of requests without a key. Header and cookie values, addresses and patterns
// cannot hold a NUL.
const noKey = "\x00none"

var errNoKey = errors.New("middleware: the request does not carry the key")

// KeyClient keys by the client's address: see [clientip.Source]. It is the default of [Rate], with
// the address at the other end of the connection. It panics if src is nil.
func KeyClient(src *clientip.Source) KeyFunc {
	if src == nil {
		panic("middleware: KeyClient: src is nil; give a *clientip.Source, new(clientip.Source) for the peer address")
	}
	return func(r *http.Request) (string, error) { return src.Key(r), nil }
}

// KeyHeader keys by the first value of a request header, such as an API key. A request without it has no key. The
// value is the client's own claim: use KeyHeader behind authentication, or a client gets a new quota with each new
// value. It panics if name is not a field name.
func KeyHeader(name string) KeyFunc {
	checkName("KeyHeader", name, "a header field name")
	name = textproto.CanonicalMIMEHeaderKey(name)
	if name == "Host" { // net/http takes it out of the header
		return func(r *http.Request) (string, error) {
			if r.Host == "" {
				return "", errNoKey
			}
			return r.Host, nil
		}
	}
	return func(r *http.Request) (string, error) {
		if v := r.Header[name]; len(v) > 0 {
			return v[0], nil
		}
		return "", errNoKey
	}
}

// KeyCookie keys by the value of a cookie, such as a session. A request without it has no key. The value is the
// client's own claim, as with [KeyHeader]. It panics if name is not a cookie name.
func KeyCookie(name string) KeyFunc {
	checkName("KeyCookie", name, "a cookie name")
	return func(r *http.Request) (string, error) {
		c, err := r.Cookie(name)
		if err != nil {
			return "", errNoKey
		}
		return c.Value, nil
	}
}

// checkName panics at a name that no request can have (RFC 9110, section 5.6.2): all clients would share one bucket.
func checkName(fn, name, want string) {
	switch {
	case name == "":
		panic("middleware: " + fn + ": name is empty; give " + want)
	case (&http.Cookie{Name: name}).Valid() != nil: // fields and cookies are named alike
		panic(fmt.Sprintf("middleware: %s: name is %q; give %s", fn, name, want))
	}
}

// KeyRoute keys by the pattern that serves the request, where the layer is inside a mux that sets
// [http.Request.Pattern]. Elsewhere the request has no key.
func KeyRoute() KeyFunc {
	return func(r *http.Request) (string, error) {
		if r.Pattern == "" {
			return "", errNoKey
		}
		return r.Pattern, nil
	}
}

// KeyJoin keys by all of the functions together, such as client and route. Different parts never make the same key.
// If one of the functions fails, KeyJoin returns its error. It panics if f is empty or holds nil.
func KeyJoin(f ...KeyFunc) KeyFunc {
	if len(f) == 0 {
		panic("middleware: KeyJoin: no functions; give at least one")
	}
	for i, k := range f {
		if k == nil {
			panic(fmt.Sprintf("middleware: KeyJoin: argument %d is nil; leave it out", i))
		}
	}
	f = append([]KeyFunc(nil), f...)
	return func(r *http.Request) (string, error) {
		var buf [128]byte
		b := buf[:0]
		for _, k := range f {
			s, err := k(r)
			if err != nil {
				return "", err
			}
			b = strconv.AppendInt(b, int64(len(s)), 10) // the length keeps "a"+"bc" and "ab"+"c" apart
			b = append(b, ':')
			b = append(b, s...)
		}
		return string(b), nil
	}
}
