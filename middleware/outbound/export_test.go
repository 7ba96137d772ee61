package outbound

import (
	"errors"
	"net/http"
	"time"

	"github.com/spillgate/spillgate/breaker"
)

// StreamCode reads an error of HTTP/2 as the package does.
func StreamCode(err error) (uint32, bool) {
	e, ok := errors.AsType[streamError](err)
	return e.Code, ok
}

// SetStreamError stores an error of HTTP/2 as net/http does.
func SetStreamError(target any, code uint32) bool {
	e, ok := target.(*streamError)
	if ok {
		e.Code = code
	}
	return ok
}

// Pick chooses an endpoint, ends the request there at once, and returns its name.
func (s *Set) Pick(req *http.Request, now time.Time) (string, error) {
	e, call, err := s.pick(req, now, false)
	if err != nil {
		return "", err
	}
	call.DoneAt(breaker.Success, 0, now)
	return e.name, nil
}
