package cache

import (
	"context"
	"strconv"
	"time"
)

// The mark is a number in the [Store] that each server which follows raises. A Store that comes back as it was some time ago, as one
// does that is started again from a snapshot, has a lower one: it also has what was deleted since, under the generation of now.
const (
	markKey  = "spillgate:mark"
	markPace = 2 * time.Second
	// A mark below as many as these is older than what may be lost: what was purged since that is sent again, and deleted again, after a gap (resendFor).
	marksKnown = 3
	// It is raised within this time from when it was read, or not at all: others have raised it since, and must not take what is written late for a step back.
	markWithin = 2 * markPace
)

// keepMark raises the mark, and has everything in the Store be invalid where that has gone back, until ctx ends.
func (c *Cache) keepMark(ctx context.Context) {
	b := c.backing
	var known []uint64 // the latest, oldest first
	for ctx.Err() == nil {
		call, cancel := context.WithTimeout(ctx, b.timeout)
		late, cancelLate := context.WithTimeout(call, markWithin)
		if value, err := b.get(call, markKey); err == nil {
			mark, err := strconv.ParseUint(string(value), 16, 64)
			switch {
			case len(known) == 0:
			case err != nil: // it was forgotten there, by itself or with all the rest
				mark = known[len(known)-1]
			case mark < known[0]:
				known = nil
				b.clear()
				c.doubt(true) // what was recalled meanwhile
			}
			known = append(known[max(0, len(known)+1-marksKnown):], mark)
			if late.Err() == nil && !b.writes.resting() {
				// Not by b.set: that it does not take as little time is no failure that others are to be kept from.
				err = b.store.Set(late, markKey, strconv.AppendUint(nil, mark+1, 16), 10*365*24*time.Hour)
				if ctx.Err() == nil {
					b.failed(err)
				}
			}
		} else if ctx.Err() == nil {
			b.failed(err)
		}
		cancelLate()
		cancel()
		pause(ctx, markPace)
	}
}
