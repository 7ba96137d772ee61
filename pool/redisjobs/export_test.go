package redisjobs

import "time"

// ListenIdle sets how long nothing may be heard, before any engine is made.
func ListenIdle(d time.Duration) { listenIdle = d }

// SweepScript is what the server knows the script by.
var SweepScript = sweepScript.Hash()
