package cache

import (
	"encoding/binary"
	"hash/crc32"
	"net/http"
	"slices"
	"time"
	"unsafe"
)

// OnTheWall is t with so many seconds more on the wall clock, and the same monotonic reading. It reports whether that could be done.
func OnTheWall(t time.Time, more int64) (time.Time, bool) {
	// A time with a monotonic reading begins with a word of which the lowest 30 bits are nanoseconds and the next 33 seconds on the wall.
	at := t
	*(*uint64)(unsafe.Pointer(&at)) += uint64(more << 30)
	return at, at.Sub(t) == 0 && at.Round(0).Sub(t.Round(0)) == time.Duration(more)*time.Second
}

// Verdict is what the policy makes of a response.
type Verdict struct {
	Store, Share, MustValidate  bool
	Reason                      string
	Lifetime, InitialAge        time.Duration
	WhileStale, IfError         time.Duration
	MaxAge, SMaxAge, TargetedMA time.Duration
	NoStore, Private, Targeted  bool
}

// Judge runs the policy with the default rules.
func Judge(r *http.Request, status int, h http.Header, asked, received time.Time) Verdict {
	p := New(minBytes).rules
	v := p.judge(r, status, h, asked, received)
	d, targeted := p.control(h)
	return Verdict{v.store, v.share, v.mustValidate, v.reason, v.lifetime, v.initialAge, v.whileStale, v.ifError,
		d.maxAge, d.sMaxAge, d.maxAge, d.noStore, d.private, targeted}
}

// Key is the key of a request under the default rules.
func Key(r *http.Request) string { return string(new(rules).appendKey(nil, r)) }

// Normalise is how request fields are compared.
func Normalise(name string, lines []string) string { return normalise(name, lines) }

// ETagMatch is the weak comparison of If-None-Match.
func ETagMatch(lines []string, etag string) bool { return etagMatch(lines, etag) }

// ParseDate reads an HTTP date.
func ParseDate(s string) (time.Time, bool) { return parseDate(s) }

// ParseTargeted tells whether a targeted field parses, and its max-age.
func ParseTargeted(lines ...string) (time.Duration, bool) {
	d, ok := parseTargeted(lines)
	return d.maxAge, ok
}

// ParseStrings reads a list of strings.
func ParseStrings(lines ...string) []string { return parseStrings(lines) }

// DecodeRecord reads what a Store returned, of any generation.
func DecodeRecord(value []byte) int {
	rec, err := readRecord(value)
	if err != nil {
		return 0
	}
	now := time.Unix(1<<30, 0)
	entries, _ := decodeRecord(value, rec.generation, now)
	for _, e := range entries {
		if e.age(now) < 0 || e.age(now) > maxDelta*time.Second {
			panic("age out of range")
		}
		e.selects("", http.Header{"A": {"1"}})
		e.stamped(&Cache{}, e.age(now))
	}
	return len(entries)
}

// RecordTimes are the times in a record.
type RecordTimes struct {
	Stored               int64
	InitialAge, Lifetime time.Duration
}

// ChangeTimes changes them in a record of one variant; nil if it is none.
func ChangeTimes(value []byte, change func(*RecordTimes)) []byte {
	rec, err := readRecord(value)
	if err != nil || len(rec.variants) != 1 {
		return nil
	}
	e := &rec.variants[0]
	times := RecordTimes{e.stored, e.initialAge, e.lifetime}
	change(&times)
	e.stored, e.initialAge, e.lifetime = times.Stored, times.InitialAge, times.Lifetime
	return rec.encode()
}

// Checked puts a checksum below bytes, so that a record of them is looked at.
func Checked(value []byte) []byte {
	return binary.LittleEndian.AppendUint32(slices.Clip(value), crc32.Checksum(value, recordTable))
}

// Flights counts the runs of the handler that others can still find.
func Flights(c *Cache) (n int) {
	for i := range c.store.shards {
		sh := &c.store.shards[i]
		sh.mu.Lock()
		n += len(sh.flights) + len(sh.underway)
		sh.mu.Unlock()
	}
	return n
}

// Op is a purge as it stands in a message.
func Op(what, flags byte, names ...string) []byte {
	return appendStrings([]byte{what, flags}, names)
}

// Message is a message of a relay.
func Message(sender, number uint64, purges ...[]byte) []byte {
	list := make([]string, len(purges))
	for i, p := range purges {
		list[i] = string(p)
	}
	return encodeMessage(sender, number, list)
}

// Obey has a cache purge what a message says.
func Obey(c *Cache, message []byte) { c.obey([][]byte{message}) }

// Remembered is how many bytes of purges are kept to be sent again.
func Remembered(c *Cache) (n int) {
	c.relayed.mu.Lock()
	defer c.relayed.mu.Unlock()
	for _, s := range c.relayed.past {
		for _, p := range s.purges {
			n += len(p)
		}
	}
	return n
}
