package cache

import "sync/atomic"

// doorkeeper remembers, roughly, which keys missed of late: one bit each of two filters, of which
// the older is forgotten when the younger is half full.
type doorkeeper struct {
	bits  [2][doorWords]atomic.Uint64
	young atomic.Uint32
	count atomic.Int64
}

const (
	doorWords = 1 << 12
	doorBits  = doorWords * 64
)

func newDoorkeeper() *doorkeeper { return new(doorkeeper) }

// knock reports whether the key has missed before, and remembers it.
func (d *doorkeeper) knock(hash uint64) bool {
	a, b := hash%doorBits, (hash>>32)%doorBits
	young := d.young.Load() & 1
	known := d.has(young, a, b) || d.has(1-young, a, b)
	if !d.has(young, a, b) {
		d.bits[young][a/64].Or(1 << (a % 64))
		d.bits[young][b/64].Or(1 << (b % 64))
		if d.count.Add(1) >= doorBits/8 && d.count.Swap(0) >= doorBits/8 {
			old := 1 - young
			for i := range d.bits[old] {
				d.bits[old][i].Store(0)
			}
			d.young.Add(1)
		}
	}
	return known
}

func (d *doorkeeper) has(i uint32, a, b uint64) bool {
	return d.bits[i][a/64].Load()&(1<<(a%64)) != 0 && d.bits[i][b/64].Load()&(1<<(b%64)) != 0
}

// admit decides whether a response may take room in the store.
func (c *Cache) admit(hash uint64, have *entry) bool {
	return c.seen == nil || have != nil || c.seen.knock(hash)
}
