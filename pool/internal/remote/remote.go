// Package remote is what engines have in common whose jobs are on a server: ids, progress, who watches, and how an attempt ended.
package remote

import (
	"math/rand/v2"
	"time"
)

// How long to wait before the server is asked again: at first and at most.
const (
	AskFirst = 250 * time.Millisecond
	AskLast  = 2 * time.Second
)

// Jitter is d, give or take a fifth.
func Jitter(d time.Duration) time.Duration { return d*4/5 + rand.N(d*2/5) }

// Signal puts a token where there is none.
func Signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
