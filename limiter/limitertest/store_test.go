package limitertest_test

import (
	"context"
	"errors"
	"math"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/limiter/limitertest"
)

func TestMemoryStore(t *testing.T) {
	limitertest.TestStore(t, limitertest.StoreConfig{
		New: func(testing.TB) limiter.Store { return limiter.NewMemoryStore(1024) },
		Run: synctest.Test,
	})
}

func TestMemoryStoreRefusesBadRequests(t *testing.T) {
	m := limiter.NewMemoryStore(8)
	one := func(limit rate.Limit, burst int) []limiter.Policy {
		return []limiter.Policy{{Name: "good", Limit: 1, Burst: 1}, {Name: "p", Limit: limit, Burst: burst}}
	}
	for name, c := range map[string]struct {
		policies []limiter.Policy
		states   int
		want     string
	}{
		"no policy":          {nil, 0, "0 policies and 0 states"},
		"too few states":     {one(1, 1), 1, "2 policies and 1 states"},
		"too many states":    {one(1, 1), 3, "2 policies and 3 states"},
		"a limit below 0":    {one(-1, 1), 2, `policy "p" has limit -1`},
		"no number":          {one(rate.Limit(math.NaN()), 1), 2, `policy "p" has limit NaN`},
		"a burst below 0":    {one(1, -1), 2, `policy "p" has limit 1 and burst -1`},
		"nothing is missing": {one(1, 1), 2, ""},
	} {
		ok, err := m.Take(context.Background(), limiter.StoreRequest{Key: "a", Cost: 1, Policies: c.policies}, make([]limiter.PolicyState, c.states))
		if ok != (c.want == "") || ok != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := m.Take(ctx, limiter.StoreRequest{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
}

// plainStore is a Store as its documentation asks for, but for a fault.
type plainStore struct {
	fault string
	mu    sync.Mutex
	spent map[[2]string]*plainBucket
	limit rate.Limit
}

type plainBucket struct {
	tokens float64
	at     time.Time
	full   time.Time // by the limit under which tokens were taken last
}

func (p *plainStore) Take(ctx context.Context, req limiter.StoreRequest, states []limiter.PolicyState) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	ok, now := true, time.Now()
	var buckets []*plainBucket
	for i, policy := range req.Policies {
		name := [2]string{policy.Name, req.Key}
		switch p.fault {
		case "joins key and policy":
			name = [2]string{req.Key + ":" + policy.Name}
		case "joins policy and key":
			name = [2]string{policy.Name + "/" + req.Key}
		}
		if p.spent[name] == nil {
			p.spent[name] = &plainBucket{at: now}
		}
		b := p.spent[name]
		buckets = append(buckets, b)
		in := now.Sub(b.at).Seconds() * float64(policy.Limit)
		if p.fault == "has one limit for all keys" {
			p.limit = max(p.limit, policy.Limit)
			in = now.Sub(b.at).Seconds() * float64(p.limit)
		}
		switch {
		case p.fault == "whole tokens flow in":
			in = math.Floor(in)
		case p.fault == "forgets debts" && in >= float64(policy.Burst):
			in = b.tokens
		case p.fault == "keeps a bucket for as long as it took to fill" && now.After(b.full):
			in = b.tokens
		}
		if b.at = now; p.fault != "holds what flows into a full bucket" {
			b.tokens = max(b.tokens, in)
		}
		b.tokens -= in
		states[i].Refused = !req.Force && policy.Limit != rate.Inf && b.tokens+float64(req.Cost) > float64(policy.Burst)+1e-9
		ok = ok && !states[i].Refused
	}
	for i, policy := range req.Policies {
		b, s := buckets[i], &states[i]
		if policy.Limit == rate.Inf {
			s.Remaining = math.MaxInt
			continue
		}
		if ok {
			if p.fault == "forgives a debt where something is given back" && req.Cost < 0 {
				b.tokens = min(b.tokens, float64(policy.Burst))
			}
			most := max(b.tokens, 2*float64(policy.Burst)) // of debts
			b.tokens = max(0, b.tokens+float64(req.Cost))
			if p.fault == "counts in 64 bits" && b.tokens >= 1<<63 {
				b.tokens = 0 // what 64 bits make of it is negative
			}
			b.tokens = min(b.tokens, most)
			b.full = now.Add(time.Duration(b.tokens / float64(policy.Limit) * 1e9))
		}
		left := float64(policy.Burst) - b.tokens
		s.Remaining = int(max(0, math.Floor(left+1e-9)))
		if policy.Limit > 0 {
			s.ResetAfter = time.Duration(b.tokens / float64(policy.Limit) * 1e9)
			if s.Refused && req.Cost <= policy.Burst {
				s.RetryAfter = time.Duration((float64(req.Cost) - left) / float64(policy.Limit) * 1e9)
			}
		}
	}
	return ok, nil
}

const faultOfStore = "LIMITERTEST_FAULT" // for the process that TestFaultsAreFound starts

func TestPlainStore(t *testing.T) {
	limitertest.TestStore(t, limitertest.StoreConfig{
		New: func(testing.TB) limiter.Store {
			return &plainStore{fault: os.Getenv(faultOfStore), spent: map[[2]string]*plainBucket{}}
		},
		Run: synctest.Test,
	})
}

// What a store written to the documentation passes, one with a fault does not.
func TestFaultsAreFound(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for fault, rule := range map[string]string{
		"holds what flows into a full bucket":           "burst,_then_what_flows_in",
		"joins key and policy":                          "keys_are_apart",
		"joins policy and key":                          "keys_are_apart",
		"forgives a debt where something is given back": "force_takes_what_is_not_there",
		"counts in 64 bits":                             "force_takes_what_is_not_there",
		"whole tokens flow in":                          "parts_of_a_token",
		"forgets debts":                                 "parts_of_a_token",
		"has one limit for all keys":                    "limits_differ_from_key_to_key",
		"keeps a bucket for as long as it took to fill": "a_changed_policy",
	} {
		cmd := exec.Command(self, "-test.run=^TestPlainStore$")
		cmd.Env = append(os.Environ(), faultOfStore+"="+fault)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "--- FAIL: TestPlainStore/"+rule) {
			t.Errorf("a store that %s: %v\n%s", fault, err, out)
		}
	}
}
