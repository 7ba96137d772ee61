package cache

import "encoding/binary"

// message is what goes through a [Relay]: a byte for the version of this form, who sends it, its number among those of the
// sender, and purges, each with its length before it. A purge is its subject, flags, and names with their number before them. What a later
// version adds to a purge stands behind that, and is passed over by this one; a subject that this one does not know is not.
type message struct {
	sender, number uint64
	purges         []purge
}

// messageVersion is the first byte.
const messageVersion = 1

const (
	flagSoft = 1 << iota
	flagLost
)

// append adds a purge as it stands in a message, without its length.
func (p purge) append(b []byte) []byte {
	flags := byte(0)
	if p.soft {
		flags |= flagSoft
	}
	if p.lost {
		flags |= flagLost
	}
	return appendStrings(append(b, byte(p.what), flags), p.names)
}

func encodeMessage(sender, number uint64, purges []string) []byte {
	b := binary.LittleEndian.AppendUint64([]byte{messageVersion}, sender)
	return appendStrings(binary.AppendUvarint(b, number), purges)
}

// readMessage reads a message. It reports false where there are purges in it, or may be, that it does not understand.
func readMessage(text string) (m message, ok bool) {
	if len(text) < 9 || text[0] != messageVersion {
		return message{}, false
	}
	m.sender = binary.LittleEndian.Uint64([]byte(text[1:9]))
	r := recordReader{text: text[9:]}
	m.number = r.uint()
	ok = true
	for range r.count() {
		p, understood := readPurge(r.string())
		if understood {
			m.purges = append(m.purges, p)
		}
		ok = ok && understood
	}
	return m, ok && !r.bad && r.text == ""
}

func readPurge(text string) (p purge, ok bool) {
	if len(text) < 2 {
		return purge{}, false
	}
	flags := text[1]
	r := recordReader{text: text[2:]}
	p = purge{what: subject(text[0]), soft: flags&flagSoft != 0, lost: flags&flagLost != 0, names: r.strings()}
	switch p.what {
	case everything:
		ok = true
	case aURL, aPrefix, aTag, aTarget:
		ok = len(p.names) == 1
	case someGroups:
		ok = len(p.names) > 0
	}
	return p, ok && !r.bad
}
