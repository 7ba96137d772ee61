package riverjobs

import "time"

// ListenIdle sets after what time it is seen whether the connection that listens is there. Nobody watches yet.
func (e *Engine) ListenIdle(d time.Duration) { e.conf.idle = d }

// Beat is a heartbeat that was written at Now, after one that the database says to have had at Before, or one that Failed.
type Beat struct {
	Now, Before time.Time
	Failed      bool
}

// Enough reports whether a worker with these heartbeats takes others for lost.
func Enough(lease time.Duration, beats ...Beat) bool {
	var s sight
	for _, b := range beats {
		if b.Failed {
			s = sight{}
		} else {
			s.add(b.Now, b.Before, lease)
		}
	}
	return s.enough(lease)
}
