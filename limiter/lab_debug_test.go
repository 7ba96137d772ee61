package limiter

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

func TestLabDebug(t *testing.T) {
	s := os.Getenv("LABDEBUG")
	if s == "" {
		t.Skip()
	}
	seed, _ := strconv.ParseUint(s, 10, 64)
	var last ctrlState
	labWatch = func(now float64, c *Concurrency, l *labRun) {
		s := c.adapt.ctrl
		if s.limit == last.limit && s.phase == last.phase {
			return
		}
		last = s
		fmt.Printf("%7.3f L%-4d %-7s ref x %.0f r %.1fms n %.0f shed %.2f blk %.2f | B %.1fms cv2 %.2f e %.2f Q %.1f pu %.0f pd %.0f | shedE %.2f bound %v places %d\n",
			now, s.limit, s.phase, s.ref.x, s.ref.r*1e3, s.ref.n, s.ref.shed, s.ref.blocked, s.base*1e3, s.cv2, s.elasticity, s.grow, s.pauseUp, s.pauseDown, c.adapt.shedE, c.bound, c.places)
	}
	if f := strings.Split(s, ":"); len(f) == 3 {
		load, _ := strconv.ParseFloat(f[1], 64)
		seed, _ := strconv.ParseUint(f[2], 10, 64)
		for _, svc := range labProfiles {
			if svc.name == f[0] {
				l := labNew(svc, load, seed, 30, NewAdaptive())
				l.run()
				fmt.Println(l.score(2, 30, svc.capacity*min(load, 1)))
			}
		}
		return
	}
	o := labRunCase(seed)
	fmt.Println(o.text, o.good, o.p99base)
}
