package health

import (
	"io"
	"net/http"
	"strings"
)

// Livez answers 200 unless a liveness check fails, then 503. It does not look
// at readiness or draining: a process that drains must not be restarted for it.
func (h *Health) Livez(w http.ResponseWriter, r *http.Request) {
	if passing(h.live) {
		answer(w, r, http.StatusOK, "live", h.live)
		return
	}
	answer(w, r, http.StatusServiceUnavailable, "not live", h.live)
}

// Startupz answers 503 until start-up is over, then 200 for good: every
// readiness check has passed once, and [Health.Started] has been called if
// [WithManualStart] asks for it.
func (h *Health) Startupz(w http.ResponseWriter, r *http.Request) {
	if h.started() {
		answer(w, r, http.StatusOK, "started", nil)
		return
	}
	answer(w, r, http.StatusServiceUnavailable, "starting", h.ready)
}

// Readyz answers 200 while new requests are wanted. It answers 503 before
// start-up is over and while a readiness check fails, and while draining 503 or
// what [WithDrainStatus] says.
func (h *Health) Readyz(w http.ResponseWriter, r *http.Request) {
	switch {
	case h.draining.Load():
		answer(w, r, h.drainStatus, "draining", nil)
	case !h.started():
		answer(w, r, http.StatusServiceUnavailable, "starting", h.ready)
	case !passing(h.ready):
		answer(w, r, http.StatusServiceUnavailable, "not ready", h.ready)
	default:
		answer(w, r, http.StatusOK, "ready", h.ready)
	}
}

// answer writes one line for the state and one for each check. Error texts stay
// inside: a probe's port is often reachable by more people than it should be.
func answer(w http.ResponseWriter, r *http.Request, status int, state string, checks []*checker) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
		return
	}
	var b strings.Builder
	b.WriteString(state + "\n")
	for _, c := range checks {
		switch ran, err := c.last(); {
		case !ran:
			b.WriteString(c.Name + ": not run yet\n")
		case err != nil:
			b.WriteString(c.Name + ": failing\n")
		default:
			b.WriteString(c.Name + ": ok\n")
		}
	}
	head := w.Header()
	head.Set("Content-Type", "text/plain; charset=utf-8")
	head.Set("Cache-Control", "no-store")
	head.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	if r.Method == http.MethodGet {
		io.WriteString(w, b.String())
	}
}
