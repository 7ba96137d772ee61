package remote

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Watchers are told of their job, and of all that may have changed when somebody begins to listen or no longer does. They ask seldom as long as somebody listens.
func TestNotices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		said, cut, joined := make(chan string), make(chan struct{}), make(chan struct{})
		n := NewNotices(func(ctx context.Context, heard func(string, bool) bool) bool {
			<-joined
			heard("", true)
			for {
				select {
				case id := <-said:
					heard(id, false)
				case <-cut:
					return true
				case <-ctx.Done():
					return true
				}
			}
		}, time.Hour)
		told := func(w *Watcher) bool {
			synctest.Wait()
			select {
			case <-w.Changed():
				return true
			default:
				return false
			}
		}
		a, b := n.Join("a"), n.Join("b")
		close(joined)
		if !told(a) || !told(b) {
			t.Error("that somebody listens was not told")
		}
		said <- "a"
		if !told(a) || told(b) {
			t.Error("a has changed: not told of, or of b")
		}
		wait := AskFirst
		if d := n.Pause(&wait); d < 40*time.Minute || wait != AskFirst {
			t.Errorf("asks again after %v while somebody listens", d)
		}
		cut <- struct{}{}
		if !told(a) || !told(b) {
			t.Error("that nobody listens was not told")
		}
		if d := n.Pause(&wait); d > AskFirst*6/5 || wait != 2*AskFirst {
			t.Errorf("asks again after %v where nobody listens, and then after %v", d, wait)
		}
		time.Sleep(AskFirst * 6 / 5) // in a synctest bubble
		if !told(a) {
			t.Error("that somebody listens again was not told")
		}
		n.Leave(a)
		n.Leave(b)
		n.Close()
	})
}

// A watcher may come while all ends: then nobody listens for it, and Close waits for whoever does.
func TestNoticesWhileTheyEnd(t *testing.T) {
	for range 100 {
		n := NewNotices(func(ctx context.Context, _ func(string, bool) bool) bool {
			<-ctx.Done()
			return true
		}, time.Hour)
		var wg sync.WaitGroup
		wg.Go(func() { n.Leave(n.Join("a")) })
		wg.Go(n.Close)
		wg.Wait()
		n.mu.Lock()
		if n.listening {
			t.Error("somebody listens after Close")
		}
		n.mu.Unlock()
	}
}
