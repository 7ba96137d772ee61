package outbound

import "time"

// A clock tells the time by its monotonic part alone. [time.Now] reads two clocks
// of the system, this reads one, and what is done here needs no date.
type clock struct{ start time.Time }

func newClock() clock { return clock{time.Now()} }

// since returns the time since the clock was made.
func (c clock) since() time.Duration { return time.Since(c.start) }

// now returns a time that is fit for comparing with others, not for showing.
func (c clock) now() time.Time { return c.start.Add(time.Since(c.start)) }
