package cachetest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/cache/cachetest"
)

// plainStore is a Store as its documentation asks for, but for a fault.
type plainStore struct {
	fault string

	mu     sync.Mutex
	values map[string]plainValue
}

type plainValue struct {
	bytes   []byte
	expires time.Time
}

// name is what a key is kept under.
func (p *plainStore) name(key string) string {
	switch p.fault {
	case "knows no marks": // as a collation of SQL
		return strings.NewReplacer("\u00fc", "u", "\u0308", "").Replace(key)
	case "composes":
		return strings.ReplaceAll(key, "u\u0308", "\u00fc")
	}
	return key
}

func (p *plainStore) Get(ctx context.Context, key string) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, ok := p.values[p.name(key)]
	if !ok || time.Now().After(v.expires) {
		return nil, ctx.Err()
	}
	return bytes.Clone(v.bytes), ctx.Err()
}

func (p *plainStore) Set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	switch {
	case p.fault == "counts in seconds" && ttl < time.Second:
		return errors.New("invalid expire time")
	case p.fault == "takes long times for dates" && ttl > 30*24*time.Hour:
		ttl = time.Until(time.Unix(int64(ttl.Seconds()), 0))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.values[p.name(key)] = plainValue{bytes.Clone(value), time.Now().Add(ttl)}
	return ctx.Err()
}

func (p *plainStore) Delete(ctx context.Context, key string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.values, p.name(key))
	return ctx.Err()
}

// plainRelay is a Relay as its documentation asks for, but for a fault.
type plainRelay struct {
	fault string

	mu      sync.Mutex
	log     [][]byte
	epoch   int
	changed chan struct{}
}

func (p *plainRelay) Send(ctx context.Context, message []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log = append(p.log, bytes.Clone(message))
	close(p.changed)
	p.changed = make(chan struct{})
	return ctx.Err()
}

func (p *plainRelay) lose() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.epoch, p.log = p.epoch+1, nil
}

func (p *plainRelay) End(ctx context.Context) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Sprint(p.epoch, " ", len(p.log)), ctx.Err()
}

func (p *plainRelay) Receive(ctx context.Context, place string, wait time.Duration) (m cache.Messages, err error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for over := false; ; {
		p.mu.Lock()
		var epoch, n int
		if _, err := fmt.Sscan(place, &epoch, &n); err != nil || epoch != p.epoch {
			p.mu.Unlock()
			return m, cache.ErrGap
		}
		for _, text := range p.log[n:min(n+100, len(p.log))] {
			m.List = append(m.List, bytes.Clone(text))
		}
		n += len(m.List)
		m.Next, m.More = fmt.Sprint(epoch, " ", n), n < len(p.log) && p.fault != "hides that there is more"
		changed := p.changed
		p.mu.Unlock()
		if err := ctx.Err(); err != nil || over || len(m.List) > 0 {
			return m, err
		}
		select {
		case <-changed:
		case <-timer.C:
			over = true
		case <-ctx.Done():
		}
	}
}

const faultOf = "CACHETEST_FAULT" // for the process that TestFaultsAreFound starts

func TestPlainStore(t *testing.T) {
	cachetest.TestStore(t, cachetest.StoreConfig{New: func(testing.TB) cache.Store {
		return &plainStore{fault: os.Getenv(faultOf), values: map[string]plainValue{}}
	}})
}

func TestPlainRelay(t *testing.T) {
	cachetest.TestRelay(t, cachetest.RelayConfig{
		New: func(testing.TB) cache.Relay {
			return &plainRelay{fault: os.Getenv(faultOf), changed: make(chan struct{})}
		},
		Lose: func(_ testing.TB, r cache.Relay) { r.(*plainRelay).lose() },
	})
}

// What one written to the documentation passes, one with a fault does not.
func TestFaultsAreFound(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for fault, found := range map[string]string{
		"knows no marks":             "TestPlainStore/what_was_set_is_there",
		"composes":                   "TestPlainStore/what_was_set_is_there",
		"counts in seconds":          "TestPlainStore/for_a_moment",
		"takes long times for dates": "TestPlainStore/for_a_moment",
		"hides that there is more":   "TestPlainRelay/what_was_sent_is_received",
	} {
		test, _, _ := strings.Cut(found, "/")
		cmd := exec.Command(self, "-test.run=^"+test+"$")
		cmd.Env = append(os.Environ(), faultOf+"="+fault)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "--- FAIL: "+found) {
			t.Errorf("one that %s: %v\n%s", fault, err, out)
		}
	}
}
