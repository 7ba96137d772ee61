package middleware

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/spillgate/spillgate/pool/jobs"
)

// eventPart is how much of an event a client has to take within the time that a write may wait for it.
const eventPart = 256 << 10

// events streams the job as server-sent events (the HTML standard, section 9.2) until it is
// final: unnamed events whose id is the job's version and whose data is the JSON of GET on one
// line. It reports false, with nothing written, if there are too many streams, in all or of the job's owner.
//
// A browser connects again when a stream ends. One that has seen the end already, by its
// Last-Event-ID, is answered with 204, which tells it to stop. Where nothing goes out before the handler returns, as through
// http.TimeoutHandler, the stream ends after the job as it is now, and with its connecting again the client polls.
//
// The result is not kept in now, where it may be a copy of this request's own, for as long as the stream is open.
func (a *async) events(w http.ResponseWriter, r *http.Request, now *jobs.Job) bool {
	j := *now
	var seen uint64
	if n, err := strconv.ParseUint(strings.TrimSpace(r.Header.Get("Last-Event-ID")), 10, 64); err == nil && n <= j.Version {
		seen = n // what is not of this job is as if it were not there
	}
	h := w.Header()
	if j.State.Final() && seen >= j.Version {
		h["Cache-Control"] = noStore
		w.WriteHeader(http.StatusNoContent)
		return true
	}
	if !a.open.take(j.Client) {
		return false
	}
	defer a.open.leave(j.Client)

	h["Cache-Control"] = noStore
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // nginx would hold events back
	w.WriteHeader(http.StatusOK)
	out := http.NewResponseController(w)
	held := false // what is sent stays in a buffer
	send := func(text []byte) error {
		for len(text) > 0 {
			// A client that does not read must not hold this goroutine for ever, and one that reads slowly is to have a result of
			// any size: when it comes again it would be sent the same from its start. Not every writer can be told so, and a stream
			// that can not is served all the same.
			_ = out.SetWriteDeadline(time.Now().Add(2 * a.config.heartbeat))
			part := min(len(text), eventPart)
			if _, err := w.Write(text[:part]); err != nil {
				return err
			}
			text = text[part:]
		}
		err := out.Flush()
		if errors.Is(err, http.ErrNotSupported) {
			held, err = true, nil
		}
		return err
	}
	event := func(j jobs.Job) error {
		seen = j.Version
		text, done, err := a.shown.take(j, formEvents, eventText)
		defer done()
		if err != nil {
			return err
		}
		return send(text)
	}
	if send([]byte("retry: 2000\n\n")) != nil {
		return true
	}
	if held {
		if j.Version > seen {
			_ = event(j) // nothing more is to come either way
		}
		return true
	}

	id := j.ID
	j, *now = jobs.Job{}, jobs.Job{}
	ctx, cancel := context.WithCancel(r.Context())
	type step struct {
		job jobs.Job
		err error
	}
	steps := make(chan step)
	ended := make(chan struct{})
	var died any // a panic of the engine, which goes on here: there it would end the process
	go func() {
		defer close(ended)
		defer close(steps)
		defer func() { died = recover() }()
		for j, err := range a.engine.Watch(ctx, id) {
			select {
			case steps <- step{j, err}:
			case <-ctx.Done():
				return
			}
		}
	}()
	defer func() {
		cancel()
		if <-ended; died != nil {
			panic(died)
		}
	}()

	beat := time.NewTicker(a.config.heartbeat)
	defer beat.Stop()
	for {
		select {
		case s, ok := <-steps:
			if s.err != nil {
				a.engineFailed(ctx, r, s.err)
				return true
			}
			if !ok {
				return true
			}
			if s.job.Version <= seen {
				continue
			}
			if event(s.job) != nil {
				return true
			}
		case <-beat.C:
			if send([]byte(":\n\n")) != nil {
				return true
			}
		}
	}
}

// eventText is the job as an event, in one line.
func eventText(j jobs.Job) ([]byte, error) {
	data, err := json.Marshal(viewOf(j))
	return fmt.Appendf(nil, "id: %d\ndata: %s\n\n", j.Version, data), err
}
