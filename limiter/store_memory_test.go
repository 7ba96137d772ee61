package limiter

import (
	"context"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

func memoryTake(t *testing.T, m *MemoryStore, key string, cost int, policies ...Policy) bool {
	t.Helper()
	ok, err := m.Take(context.Background(), StoreRequest{Key: key, Cost: cost, Policies: policies}, make([]PolicyState, len(policies)))
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

func memoryLen(m *MemoryStore) (n int) {
	for i := range m.shards {
		n += len(m.shards[i].keys)
	}
	return n
}

// A flood of new keys takes no more room than there is, and displaces itself rather than who has spent all.
func TestMemoryStoreInAFlood(t *testing.T) {
	p := Policy{Name: "p", Limit: 1, Burst: 100}
	for _, room := range []int{64, 1024, 1 << 12} {
		t.Run(strconv.Itoa(room), func(t *testing.T) {
			m := NewMemoryStore(room)
			const abusers = 8
			for i := range abusers {
				memoryTake(t, m, "abuser "+strconv.Itoa(i), 100, p)
			}
			admitted := 0
			for i := range 20 * room {
				memoryTake(t, m, strconv.Itoa(i), 1, p)
				if i%room == 0 && memoryTake(t, m, "abuser "+strconv.Itoa(i/room%abusers), 50, p) {
					admitted++
				}
			}
			if n := memoryLen(m); n > room+memoryShards || n < room/2 {
				t.Errorf("%d keys, want no more than %d", n, room)
			}
			if admitted > 0 {
				t.Errorf("%d of 20 attempts admitted of those who have nothing", admitted)
			}
		})
	}
}

// Room for one is room for one, and who is full again makes room before anybody else.
func TestMemoryStoreForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := Policy{Name: "p", Limit: 1, Burst: 10}
		m := NewMemoryStore(8)
		for i := range 7 {
			memoryTake(t, m, strconv.Itoa(i), 1, p)
		}
		memoryTake(t, m, "deep", 10, p)
		time.Sleep(time.Second) // in a synctest bubble
		memoryTake(t, m, "new", 2, p)
		if n := memoryLen(m); n != 2 {
			t.Errorf("%d keys are kept, want that which has spent all and the new one", n)
		}
		if memoryTake(t, m, "deep", 2, p) || memoryTake(t, m, "new", 9, p) {
			t.Error("forgotten")
		}
		// Nor is who has been told of a limit that is lower than it was full by the one before.
		two := NewMemoryStore(2)
		memoryTake(t, two, "lowered", 10, p)
		for _, slow := range []Policy{{Name: "p", Limit: 0.01, Burst: 10}, {Name: "p", Limit: 0, Burst: 10}} {
			memoryTake(t, two, "lowered", 1, slow)
			memoryTake(t, two, "other", 1, Policy{Name: "p", Limit: 0.01, Burst: 10})
			time.Sleep(20 * time.Second) // in a synctest bubble
			memoryTake(t, two, "new", 1, p)
			if memoryTake(t, two, "lowered", 10, slow) {
				t.Errorf("forgotten under a limit of %v", slow.Limit)
			}
		}
		one := NewMemoryStore(1)
		for i := range 100 {
			memoryTake(t, one, strconv.Itoa(i), 10, p)
			if n := memoryLen(one); n != 1 || memoryTake(t, one, strconv.Itoa(i), 1, p) {
				t.Fatalf("%d keys", n)
			}
		}
	})
}

// Keys are told apart by the names of all policies, and long ones by their hash.
func TestMemoryStoreNames(t *testing.T) {
	m := NewMemoryStore(1024)
	policies := func(names ...string) (p []Policy) {
		for _, n := range names {
			p = append(p, Policy{Name: n, Limit: 0, Burst: 1})
		}
		return p
	}
	for _, names := range [][]string{{"a"}, {"b"}, {"a", "b"}, {"b", "a"}, {"ab"}, {"a", "b", "c"}} {
		if !memoryTake(t, m, "key", 1, policies(names...)...) || memoryTake(t, m, "key", 1, policies(names...)...) {
			t.Errorf("%q share a bucket with others, or have none", names)
		}
	}
	long := make([]byte, 1<<20)
	memoryTake(t, m, string(long), 1, policies("a")...)
	for i := range m.shards {
		for name := range m.shards[i].keys {
			if len(name.key) > tableExactKey {
				t.Errorf("a key of %d bytes is kept", len(name.key))
			}
		}
	}
}
