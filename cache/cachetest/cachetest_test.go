package cachetest_test

import (
	"bytes"
	"context"
	"errors"
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

const faultOfStore = "CACHETEST_FAULT" // for the process that TestFaultsAreFound starts

func TestPlainStore(t *testing.T) {
	cachetest.TestStore(t, cachetest.StoreConfig{New: func(testing.TB) cache.Store {
		return &plainStore{fault: os.Getenv(faultOfStore), values: map[string]plainValue{}}
	}})
}

// What a store written to the documentation passes, one with a fault does not.
func TestFaultsAreFound(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for fault, rule := range map[string]string{
		"knows no marks":             "what_was_set_is_there",
		"composes":                   "what_was_set_is_there",
		"counts in seconds":          "for_a_moment",
		"takes long times for dates": "for_a_moment",
	} {
		cmd := exec.Command(self, "-test.run=^TestPlainStore$")
		cmd.Env = append(os.Environ(), faultOfStore+"="+fault)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "--- FAIL: TestPlainStore/"+rule) {
			t.Errorf("a store that %s: %v\n%s", fault, err, out)
		}
	}
}
