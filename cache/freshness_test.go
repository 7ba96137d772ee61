package cache_test

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spillgate/spillgate/cache"
)

// How long a response may be used, and how old it is when it comes, a second after it was asked for at noon.
func TestLifetimeAndAge(t *testing.T) {
	noon := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	const never = -1 // it is not stored
	const most = (1 << 31) * time.Second
	at := func(d time.Duration) string { return noon.Add(d).Format("Mon, 02 Jan 2006 15:04:05 GMT") }
	for _, test := range []struct {
		name            string
		request, fields string
		status          int
		lifetime, age   time.Duration
	}{
		{"max-age", "", "Cache-Control: max-age=60", 200, time.Minute, time.Second},
		{"max-age, in quotes", "", `Cache-Control: max-age="60"`, 200, time.Minute, time.Second},
		{"max-age with half a quote is none", "", "Cache-Control: max-age=60\"", 200, never, 0},
		{"the smaller of two", "", "Cache-Control: max-age=60, max-age=90", 200, time.Minute, time.Second},
		{"of another case", "", "Cache-Control: MAX-AGE=60", 200, time.Minute, time.Second},
		{"tabs are white space", "", "Cache-Control: x,\tmax-age=60\t", 200, time.Minute, time.Second},
		{"s-maxage before max-age", "", "Cache-Control: max-age=60, s-maxage=30", 200, 30 * time.Second, time.Second},
		{"more than the most", "", "Cache-Control: max-age=99999999999999999999", 200, most, time.Second},
		{"the most", "", "Cache-Control: max-age=2147483648", 200, most, time.Second},
		{"Expires counts from Date", "", "Date: " + at(-time.Hour) + "\nExpires: " + at(time.Hour), 200, 2 * time.Hour, time.Hour + time.Second},
		{"Expires counts from now where there is no Date", "", "Expires: " + at(time.Hour), 200, time.Hour - time.Second, time.Second},
		{"nor one that can be read", "", "Date: x\nExpires: " + at(time.Hour), 200, time.Hour - time.Second, time.Second},
		{"nor a single one", "", "Date: " + at(-time.Hour) + "\nDate: " + at(0) + "\nExpires: " + at(time.Hour), 200, time.Hour - time.Second, time.Second},
		{"Expires twice", "", "Expires: " + at(time.Hour) + "\nExpires: " + at(time.Hour), 200, never, 0},
		{"Expires of long ago", "", "Etag: \"1\"\nExpires: " + at(-time.Hour), 200, 0, time.Second},
		{"Expires in a thousand years", "", "Expires: Sun, 01 Jan 3026 12:00:00 GMT", 200, most, time.Second},
		{"Expires says nothing to a targeted field", "", "Cdn-Cache-Control: public\nExpires: " + at(time.Hour), 200, never, 0},
		{"a tenth of what it is old", "", "Last-Modified: " + at(-time.Hour), 200, (time.Hour + time.Second) / 10, time.Second},
		{"a tenth of what it was old at its Date", "", "Date: " + at(-time.Minute) + "\nLast-Modified: " + at(-time.Hour), 200, 59 * time.Minute / 10, time.Minute + time.Second},
		{"a tenth, and a day at most", "", "Last-Modified: " + at(-24*365*time.Hour), 200, 24 * time.Hour, time.Second},
		{"modified when it was made", "", "Date: " + at(time.Second) + "\nLast-Modified: " + at(time.Second), 200, never, 0},
		{"modified some time", "", "Last-Modified: x", 200, never, 0},
		{"modified at two times", "", "Last-Modified: " + at(-time.Hour) + "\nLast-Modified: " + at(-time.Hour), 200, never, 0},
		{"a status that is not to be guessed for", "", "Last-Modified: " + at(-time.Hour), 302, never, 0},
		{"a status that is not to be guessed for, public", "", "Cache-Control: public\nLast-Modified: " + at(-time.Hour), 302, (time.Hour + time.Second) / 10, time.Second},
		{"not for one user", "Cookie: a=b", "Last-Modified: " + at(-time.Hour), 200, never, 0},
		{"not for one who is known, though it is public", "Authorization: a", "Cache-Control: public\nLast-Modified: " + at(-time.Hour), 200, never, 0},
		{"as old as its Date", "", "Cache-Control: max-age=60\nDate: " + at(-20*time.Second), 200, time.Minute, 21 * time.Second},
		{"as old as it says", "", "Cache-Control: max-age=60\nAge: 30\nDate: " + at(-20*time.Second), 200, time.Minute, 31 * time.Second},
		{"a Date in the future", "", "Cache-Control: max-age=60\nDate: " + at(time.Hour), 200, time.Minute, time.Second},
		{"of two ages in one line the first", "", "Cache-Control: max-age=60\nAge: 30 , 40", 200, time.Minute, 31 * time.Second},
		{"as old as can be", "", "Cache-Control: max-age=99999999999\nEtag: \"1\"\nAge: 99999999999", 200, most, most},
	} {
		r := httptest.NewRequest("GET", "http://example.com/x", nil)
		r.Header = fields(test.request)
		v := cache.Judge(r, test.status, fields(test.fields), noon, noon.Add(time.Second))
		if test.lifetime == never {
			want(t, test.name+": stored", v.Store, false)
			continue
		}
		want(t, test.name+": stored", v.Store, true)
		want(t, test.name+": lifetime", v.Lifetime, test.lifetime)
		want(t, test.name+": age", v.InitialAge, test.age)
	}
}

// clocked is a writer that knows the time.
type clocked struct {
	*httptest.ResponseRecorder
	now time.Time
}

func (w clocked) Now() time.Time { return w.now }

// While a machine is suspended the monotonic clock of many systems stands still, and what is stored gets older all the same. A clock on the wall
// that is set back makes nothing younger.
func TestAgeByBothClocks(t *testing.T) {
	const minute, hour = 60, 60 * 60
	for _, c := range []struct {
		later time.Duration // by the monotonic clock
		more  int64         // on the wall
		age   int           // in seconds, or somewhat more; -1 is that it is not fresh
	}{
		{10 * time.Minute, 0, 10 * minute},
		{10 * time.Minute, 30 * minute, 40 * minute},
		{10 * time.Minute, 8 * hour, -1},
		{10 * time.Minute, 40 * 365 * 24 * hour, -1},
		{10 * time.Minute, -8 * hour, 10 * minute},
		{2 * time.Hour, -8 * hour, -1},
	} {
		h := cache.New(1 << 20).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=3600")
			w.Header().Set("ETag", `"1"`)
			if r.Header.Get("If-None-Match") != "" {
				w.WriteHeader(http.StatusNotModified)
			}
		}))
		get(h, "http://example.com/x")
		now, ok := cache.OnTheWall(time.Now().Add(c.later), c.more)
		if !ok {
			t.Fatal("time.Time is laid out otherwise: this says nothing")
		}
		w := clocked{httptest.NewRecorder(), now}
		h.ServeHTTP(w, httptest.NewRequest("GET", "http://example.com/x", nil))
		age, err := strconv.Atoi(w.Header().Get("Age"))
		hit := strings.HasPrefix(w.Header().Get("Cache-Status"), "spillgate; hit; ttl=")
		if err != nil || hit != (c.age >= 0) || hit && (age < c.age || age > c.age+5*minute) {
			t.Errorf("%v later, and %ds more on the wall: Cache-Status %q, Age %d, %v; want an age of %d", c.later, c.more, w.Header().Get("Cache-Status"), age, err, c.age)
		}
	}
}
