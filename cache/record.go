package cache

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"slices"
	"strings"
	"time"
)

// record is what is kept in a [Store] under a key: a byte for the version of this form, the generation, the length of
// what stands before the bodies, this, the bodies, and a checksum of all. Numbers are varints, strings and lists have their length before them.
type record struct {
	generation uint64
	variants   []recordedEntry
}

// recordVersion is the first byte. A record of another version is nothing to this one.
const recordVersion = 1

type recordedEntry struct {
	status                                  int
	fields                                  []field
	body                                    []byte
	stored                                  int64 // Unix, in ns
	initialAge, lifetime, whileStale, ifErr time.Duration
	mustValidate, noCache                   bool
	extra                                   string
	vary                                    []string
	chosen                                  []selected
	tags, groups                            []string
}

func (e *entry) record() recordedEntry {
	return recordedEntry{
		status: e.status, fields: e.fields, body: e.body, stored: e.stored.UnixNano(),
		initialAge: e.initialAge, lifetime: e.lifetime, whileStale: e.whileStale, ifErr: e.ifError,
		mustValidate: e.mustValidate, noCache: e.noCache, extra: e.extra, vary: e.vary, chosen: e.chosen, tags: e.tags, groups: e.groups,
	}
}

// entry makes a record usable again; nil if it makes no sense.
func (r *recordedEntry) entry(now time.Time) *entry {
	if len(r.chosen) != len(r.vary) || r.status < 200 || r.status > 999 {
		return nil
	}
	// Its age goes by the wall clock, which is all that processes share. A clock that went back
	// makes nothing younger than it was.
	// No time is longer than a header could make it: sums of longer ones run over.
	const most = maxDelta * time.Second
	stored := now.Add(-min(max(0, now.Sub(time.Unix(0, r.stored))), most))
	e := &entry{
		status: r.status, fields: r.fields, stored: stored,
		initialAge: min(max(0, r.initialAge), most), lifetime: min(max(-most, r.lifetime), most),
		whileStale: min(max(noDelta, r.whileStale), most), ifError: min(max(noDelta, r.ifErr), most),
		mustValidate: r.mustValidate, noCache: r.noCache, extra: r.extra, vary: r.vary, chosen: r.chosen, tags: r.tags, groups: r.groups,
	}
	e.index()
	e.complete(r.body)
	return e
}

var recordTable = crc32.MakeTable(crc32.Castagnoli)

var errRecord = errors.New("cache: what the store has is damaged")

// recordFixed is the size of version, generation and the length of the head.
const recordFixed = 1 + 8 + 4

func (r *record) encode() []byte {
	size := recordFixed + 4
	for i := range r.variants {
		size += 512 + len(r.variants[i].body)
	}
	b := make([]byte, recordFixed, size)
	b[0] = recordVersion
	binary.LittleEndian.PutUint64(b[1:], r.generation)
	for i := range r.variants {
		b = r.variants[i].append(b)
	}
	binary.LittleEndian.PutUint32(b[9:], uint32(len(b)-recordFixed))
	for i := range r.variants {
		b = append(b, r.variants[i].body...)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, recordTable))
}

// append adds all of r but its body, of which it adds the length.
func (r *recordedEntry) append(b []byte) []byte {
	for _, n := range [...]int64{int64(r.status), r.stored, int64(r.initialAge), int64(r.lifetime), int64(r.whileStale), int64(r.ifErr)} {
		b = binary.AppendVarint(b, n)
	}
	b = appendBool(appendBool(b, r.mustValidate), r.noCache)
	b = appendString(b, r.extra)
	for _, list := range [...][]string{r.vary, r.tags, r.groups} {
		b = appendStrings(b, list)
	}
	b = binary.AppendUvarint(b, uint64(len(r.fields)))
	for _, f := range r.fields {
		b = appendStrings(appendString(b, f.name), f.values)
	}
	b = binary.AppendUvarint(b, uint64(len(r.chosen)))
	for _, c := range r.chosen {
		b = appendBool(appendString(appendString(b, c.raw), c.norm), c.absent)
	}
	return binary.AppendUvarint(b, uint64(len(r.body)))
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendStrings(b []byte, list []string) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, s := range list {
		b = appendString(b, s)
	}
	return b
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

// readRecord reads what encode has made; a record without variants if it is of another version. The body of a single variant is a part of value;
// of several each has memory of its own, since they are evicted one by one.
func readRecord(value []byte) (rec record, err error) {
	if len(value) > 0 && value[0] != recordVersion {
		return rec, nil
	}
	if len(value) < recordFixed+4 {
		return rec, errRecord
	}
	value, sum := value[:len(value)-4], value[len(value)-4:]
	if crc32.Checksum(value, recordTable) != binary.LittleEndian.Uint32(sum) {
		return rec, errRecord
	}
	rec.generation = binary.LittleEndian.Uint64(value[1:])
	n, rest := uint64(binary.LittleEndian.Uint32(value[9:])), value[recordFixed:]
	if n > uint64(len(rest)) {
		return rec, errRecord
	}
	head, bodies := recordReader{text: string(rest[:n])}, rest[n:]
	for len(head.text) > 0 && !head.bad {
		text := head.text
		e, size := head.entry()
		if size > uint64(len(bodies)) {
			return record{}, errRecord
		}
		e.body, bodies = slices.Clip(bodies[:size]), bodies[size:]
		if alone := len(text) == int(n) && head.text == ""; !alone {
			own := recordReader{text: strings.Clone(text[:len(text)-len(head.text)])}
			body := slices.Clone(e.body)
			e, _ = own.entry()
			e.body = slices.Clip(body)
		}
		rec.variants = append(rec.variants, e)
	}
	if head.bad || len(bodies) > 0 {
		return record{}, errRecord
	}
	return rec, nil
}

// recordReader reads the head of a record. All strings are parts of one.
type recordReader struct {
	text string
	bad  bool // there was less than there had to be
}

func (r *recordReader) entry() (e recordedEntry, body uint64) {
	e.status = int(r.int())
	e.stored = r.int()
	for _, d := range [...]*time.Duration{&e.initialAge, &e.lifetime, &e.whileStale, &e.ifErr} {
		*d = time.Duration(r.int())
	}
	e.mustValidate, e.noCache = r.bool(), r.bool()
	e.extra = r.string()
	e.vary, e.tags, e.groups = r.strings(), r.strings(), r.strings()
	e.fields = make([]field, r.count())
	for i := range e.fields {
		e.fields[i] = field{r.string(), r.strings()}
	}
	e.chosen = make([]selected, r.count())
	for i := range e.chosen {
		e.chosen[i] = selected{r.string(), r.string(), r.bool()}
	}
	return e, r.uint()
}

func (r *recordReader) uint() (n uint64) {
	for shift := 0; shift < 64 && shift/7 < len(r.text); shift += 7 {
		c := r.text[shift/7]
		n |= uint64(c&0x7f) << shift
		if c < 0x80 {
			r.text = r.text[shift/7+1:]
			return n
		}
	}
	r.bad, r.text = true, ""
	return 0
}

func (r *recordReader) int() int64 {
	n := r.uint()
	return int64(n>>1) ^ -int64(n&1)
}

// count reads the length of something of which each takes a byte at least.
func (r *recordReader) count() int {
	n := r.uint()
	if n > uint64(len(r.text)) {
		r.bad, r.text = true, ""
		return 0
	}
	return int(n)
}

func (r *recordReader) string() (s string) {
	n := r.count()
	s, r.text = r.text[:n], r.text[n:]
	return s
}

func (r *recordReader) strings() []string {
	n := r.count()
	if n == 0 {
		return nil
	}
	list := make([]string, n)
	for i := range list {
		list[i] = r.string()
	}
	return list
}

func (r *recordReader) bool() bool { return r.uint() != 0 }
