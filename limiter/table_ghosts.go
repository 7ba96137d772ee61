package limiter

// tableGhosts remembers for each set a byte of the hash of the keys that were displaced last while their buckets were
// in use. A key that comes back to a set that is still full starts with one token spent, as it had
// before: then its bucket is full later than those of keys that come once, and stays.
//
// Without it who comes once in the time that a flood needs to displace a whole set would be new each
// time. One new key in 37 resembles a ghost by chance, and starts with a token less. Where that token is
// the one that is asked for, it is there: nobody is refused for what is only guessed.
type tableGhosts [][tableGhostWays]byte

// tableGhostWays leaves a slot of one policy at less than 17 bytes.
const tableGhostWays = 7

func tableGhost(hash uint64) byte { return byte(hash)%255 + 1 }

func (g tableGhosts) has(set, hash uint64) bool {
	if g == nil {
		return false
	}
	ghost := tableGhost(hash)
	for _, b := range g[set] {
		if b == ghost {
			return true
		}
	}
	return false
}

func (g tableGhosts) add(set, hash uint64) {
	ways := &g[set]
	copy(ways[1:], ways[:])
	ways[0] = tableGhost(hash)
}
