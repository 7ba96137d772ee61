package limiter_test

import (
	"encoding/json"
	"math"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/limiter"
)

func TestRateWrongOptionsPanic(t *testing.T) {
	policy := func(name string) limiter.RateOption { return limiter.WithPolicy(name, 1, 1) }
	for name, c := range map[string]struct {
		names string // what the message must name
		make  func()
	}{
		"policy without a name":       {"WithPolicy", func() { policy("") }},
		"policy name with a quote":    {"WithPolicy", func() { policy(`a"b`) }},
		"policy name with a newline":  {"WithPolicy", func() { policy("a\r\nb") }},
		"policy name beyond ASCII":    {"WithPolicy", func() { policy("täglich") }},
		"policy name of 65 bytes":     {"WithPolicy", func() { policy(strings.Repeat("x", 65)) }},
		"policy with a NaN limit":     {"WithPolicy", func() { limiter.WithPolicy("a", rate.Limit(math.NaN()), 1) }},
		"two policies of one name":    {"default", func() { limiter.NewRate(1, 1, policy("default")) }},
		"nine policies":               {"9 policies", func() { nine() }},
		"first policy without a name": {"WithName", func() { limiter.WithName("") }},
		"a limit below 0":             {"NewRate: limit is -2", func() { limiter.NewRate(-2, 1) }},
		"a burst below 0":             {"WithPolicy: burst is -3", func() { limiter.WithPolicy("a", 1, -3) }},
		"no keys":                     {"WithMaxKeys", func() { limiter.WithMaxKeys(0) }},
		"a negative number of keys":   {"WithMaxKeys", func() { limiter.WithMaxKeys(-1) }},
		"budget without a burst":      {"WithNewKeyBudget", func() { limiter.WithNewKeyBudget(1, 0) }},
		"no function for key limits":  {"WithKeyLimit", func() { limiter.WithKeyLimit(nil) }},
		"no wait":                     {"WithMaxWait", func() { limiter.WithMaxWait(0) }},
		"no store":                    {"WithStore", func() { limiter.WithStore(nil) }},
		"no time for the store":       {"WithStoreTimeout", func() { limiter.WithStoreTimeout(0) }},
		"an unknown store failure":    {"WithStoreFailure", func() { limiter.WithStoreFailure(7) }},
		"no offenders":                {"WithOffenders", func() { limiter.WithOffenders(0) }},
		"too many offenders":          {"WithOffenders", func() { limiter.WithOffenders(65) }},
		"exact keys without keys":     {"WithoutKeys", func() { limiter.NewRate(1, 1, limiter.WithoutKeys(), limiter.WithExactKeys()) }},
		"a nil option":                {"NewRate", func() { limiter.NewRate(1, 1, limiter.WithName("a"), nil) }},
		"memory store for no keys":    {"NewMemoryStore", func() { limiter.NewMemoryStore(0) }},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if s, _ := recover().(string); !strings.HasPrefix(s, "limiter: ") || !strings.Contains(s, c.names) || !regexp.MustCompile("give|drop|leave").MatchString(s) {
					t.Errorf("message %q", s)
				}
			}()
			c.make()
		})
	}
}

func nine() {
	var opts []limiter.RateOption
	for _, name := range strings.Split("abcdefgh", "") {
		opts = append(opts, limiter.WithPolicy(name, 1, 1))
	}
	limiter.NewRate(1, 1, opts...)
}

func TestPolicyWindow(t *testing.T) {
	for _, c := range []struct {
		name  string
		limit rate.Limit
		burst int
		q, w  int64
		ok    bool
	}{
		{"100 a second, 200 at once", 100, 200, 200, 2, true},
		{"100 a minute", 100.0 / 60, 100, 100, 60, true},
		{"5 a minute", rate.Every(12 * time.Second), 5, 5, 60, true},
		{"10,000 a day", 10_000.0 / 86_400, 10_000, 10_000, 86_400, true},
		{"a burst of less than a second", 100, 10, 100, 1, true},
		{"a window that is no whole second", 100, 250, 300, 3, true},
		{"one in 2.5 s", 0.4, 1, 1, 3, true},
		{"a thousand in 7 s", 1000.0 / 7, 1000, 1000, 7, true},
		{"infinite", rate.Inf, 5, 0, 0, false},
		{"never", 0, 5, 0, 0, false},
		{"more than a header can say", 1e-9, math.MaxInt, 0, 0, false},
		{"a window longer than a header can say", 1e-300, 1, 0, 0, false},
	} {
		q, w, ok := limiter.Policy{Limit: c.limit, Burst: c.burst}.Window()
		if q != c.q || w != c.w || ok != c.ok {
			t.Errorf("%s: q=%d w=%d %v, want q=%d w=%d %v", c.name, q, w, ok, c.q, c.w, c.ok)
		}
	}
}

func TestRateStatsAreJSON(t *testing.T) {
	r := limiter.NewRate(rate.Inf, 0, limiter.WithOffenders(1), limiter.WithPolicy("once", 0, 1))
	r.Allow("a")
	r.Allow("a")
	b, err := json.Marshal(r.Stats())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`"([A-Za-z_]+)":`).FindAllStringSubmatch(string(b), -1) {
		if m[1] != strings.ToLower(m[1]) {
			t.Errorf("name %s", m[1])
		}
	}
	if !strings.Contains(string(b), `"rejected":1`) {
		t.Errorf("%s", b)
	}
}

// What an infinite limit makes of the numbers can be sent as JSON, however the infinity was written.
func TestRateInfinityIsJSON(t *testing.T) {
	inf := rate.Limit(math.Inf(1))
	set := limiter.NewRate(1, 1)
	if err := set.SetLimit(inf, 0); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]*limiter.Rate{
		"NewRate":      limiter.NewRate(inf, 0),
		"WithoutKeys":  limiter.NewRate(inf, 0, limiter.WithoutKeys()),
		"WithPolicy":   limiter.NewRate(1, 1, limiter.WithPolicy("second", inf, 0)),
		"SetLimit":     set,
		"WithKeyLimit": limiter.NewRate(1, 1, limiter.WithKeyLimit(func(string) (rate.Limit, int) { return inf, 0 })),
	} {
		states := make([]limiter.PolicyState, len(r.Policies()))
		if d := r.AllowEach(time.Time{}, "a", 1, states); !d.OK {
			t.Errorf("%s: %+v", name, d)
		}
		if _, err := json.Marshal(r.Stats()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := json.Marshal(states); err != nil {
			t.Errorf("%s: the states: %v", name, err)
		}
	}
}

func TestRateCallsOut(t *testing.T) {
	for name, test := range map[string]struct {
		opts []limiter.RateOption
		want bool
	}{
		"nothing":        {nil, false},
		"many policies":  {[]limiter.RateOption{limiter.WithPolicy("daily", 1, 100), limiter.WithOffenders(10), limiter.WithNewKeyBudget(1, 1)}, false},
		"a store":        {[]limiter.RateOption{limiter.WithStore(limiter.NewMemoryStore(1))}, true},
		"limits of keys": {[]limiter.RateOption{limiter.WithKeyLimit(func(string) (rate.Limit, int) { return 1, 1 })}, true},
		"no hooks":       {[]limiter.RateOption{limiter.WithRateTrace(limiter.RateTrace{})}, false},
		"a hook":         {[]limiter.RateOption{limiter.WithRateTrace(limiter.RateTrace{Evicted: func() {}})}, true},
	} {
		if got := limiter.NewRate(1, 1, test.opts...).CallsOut(); got != test.want {
			t.Errorf("%s: CallsOut is %t, want %t", name, got, test.want)
		}
	}
}
