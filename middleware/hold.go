package middleware

import (
	"time"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/pool"
)

// hold is what a layer holds for a request while it runs; each layer uses its own part.
type hold struct {
	permit limiter.Permit
	call   breaker.Call
	slot   pool.Slot
	begun  time.Duration // since the recorder's start
	long   bool
}
