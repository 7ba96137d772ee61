package cache_test

import (
	"net/http/httptest"
	"testing"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// A targeted field says all that Cache-Control can say to a shared cache, and of the wrong type nothing.
func TestTargetedDirectives(t *testing.T) {
	const none = -1
	type says struct {
		lifetime, whileStale, ifError time.Duration
		mustValidate                  bool
		reason                        string
	}
	minute := says{time.Minute, none, none, false, ""}
	for field, test := range map[string]struct {
		status int
		says
	}{
		"max-age=60":                             {200, minute},
		"max-age=90, max-age=60":                 {200, minute}, // the last one counts
		"max-age=60, s-maxage=90":                {200, says{90 * time.Second, none, none, true, ""}},
		"max-age=60, stale-while-revalidate=30":  {200, says{time.Minute, 30 * time.Second, none, false, ""}},
		"max-age=60, stale-if-error=30":          {200, says{time.Minute, none, 30 * time.Second, false, ""}},
		"max-age=60, stale-if-error=3.5":         {200, minute},
		"max-age=60, must-revalidate":            {200, says{time.Minute, none, none, true, ""}},
		"max-age=60, must-revalidate=?0":         {200, minute},
		"max-age=60, must-revalidate=?1":         {200, says{time.Minute, none, none, true, ""}},
		"max-age=60, must-revalidate=1":          {200, minute},
		"max-age=60, proxy-revalidate;x=\"y\"":   {200, says{time.Minute, none, none, true, ""}},
		"max-age=60, private=?0, no-store=token": {200, minute},
		"max-age=60, public, no-store":           {200, says{reason: "no-store"}},
		"max-age=60, private":                    {200, says{reason: "private"}},
		"max-age=60, private=(a b)":              {200, minute},
		"max-age=60, no-cache":                   {200, says{reason: "not-fresh"}},
		"max-age=60, must-understand":            {299, says{reason: "must-understand"}},
		"max-age=60, must-understand, no-store":  {200, minute},
		"max-age=2147483649":                     {200, says{(1 << 31) * time.Second, none, none, false, ""}},
		"stale-while-revalidate=30, public":      {200, says{reason: "not-fresh"}},
	} {
		r := httptest.NewRequest("GET", "http://example.com/x", nil)
		now := time.Now()
		v := cache.Judge(r, test.status, fields("CDN-Cache-Control: "+field+"\nCache-Control: max-age=1"), now, now)
		got := says{reason: v.Reason}
		if v.Store {
			got = says{v.Lifetime, v.WhileStale, v.IfError, v.MustValidate, ""}
		}
		want(t, field, got, test.says)
	}
}

// A targeted field that is no dictionary (RFC 9651) says nothing at all.
func TestDictionariesThatDoNotParse(t *testing.T) {
	for _, s := range []string{
		"a=", "a=?", "a=?2", "a=:YQ", "a=:Y*:", "a=@", "a=@x", "a=@1.5", `a=%"x`, "a=%x", "a=1.", "a=-", "a=--1", "a=1234567890123456", "a=1234567890123.1",
		"a=1.2345", `a="`, `a="\`, `a="\x"`, "a=\"\x7f\"", "a=\"\x1f\"", "a=\"ü\"", "a=(", "a=(1", "a=(1\t2)", `a=("x"y)`, "a=(1))", "a;", "a;=1", "a;B", "a=1;b=", "A=1",
		"a b", "a=1 ; b", "a,", "a,,b", ",a", "-a", "1a", "a=[1]", "a=ü", "{",
	} {
		_, ok := cache.ParseTargeted("max-age=60, " + s)
		want(t, s, ok, false)
		_, ok = cache.ParseTargeted(s+", max-age=60", "b")
		want(t, s+" first", ok, false)
	}
	for _, s := range []string{
		"a=?1", "a=?0", "a=:YQ+/9==:", "a=::", "a=@-1", `a=%"x%22"`, "a=-1.5", "a=123456789012345", "a=123456789012.123", `a=""`, `a="\"\\ ~"`, "a=()", "a=( 1  t;p )", "a=(1 2);q=1",
		"a;b", "a; b=1;c", "*a-b_c.d*9=1", "a=T*z0!#$%&'*+-.^_`|~:/", "a=*", "a\t,\tb", "z=Z",
	} {
		age, ok := cache.ParseTargeted("max-age=60, " + s)
		want(t, s, ok && age == time.Minute, true)
		age, ok = cache.ParseTargeted(s, "max-age=60")
		want(t, s+" first", ok && age == time.Minute, true)
	}
}
