package limiter

import (
	"math"
	"sync"
)

// ctrlShape is a curve of throughput over what is in flight, both in multiples of those at the optimum.
type ctrlShape struct {
	ln   [shapeCells]float64 // ln X at ln N = shapeFrom + shapeCell*i
	good [shapeCells]float64 // what it is worth to be there
}

const (
	shapeCells = 214
	shapeFrom  = -8.
	shapeCell  = beliefCell / shapeStep
	shapeStep  = 2 // cells of a table for each cell of a belief
)

// What more in flight than the optimum costs, in throughput, for each unit of its ln: the latency. Beyond
// half a unit it costs more.
const (
	shapePrice = .1
	shapeMore  = .05
)

const ctrlShapes = 4

// shapes are the curves that a service may have, each for every optimum: a store whose places are full from
// one moment on; processors with waits between, which fill gradually; work that slows down as the universal scalability law
// says (Gunther, Guerrilla Capacity Planning, 2007), alone and with as much in flight elsewhere.
var shapes = sync.OnceValue(func() *[ctrlShapes]ctrlShape {
	return &[ctrlShapes]ctrlShape{
		shapeOf(func(z float64) float64 { return min(z, 0) }),
		shapeOf(func(z float64) float64 { return z - math.Log1p(math.Exp(4*z))/4 }),
		shapeOf(shapeContended(1)),
		shapeOf(shapeContended(.5)),
	}
})

func shapeOf(ln func(z float64) float64) (s ctrlShape) {
	for i := range s.ln {
		z := shapeFrom + shapeCell*float64(i)
		s.ln[i] = ln(z)
		s.good[i] = math.Exp(s.ln[i]) - shapePrice*max(0, z) - shapeMore*max(0, z-.5)
	}
	return s
}

// shapeContended returns the curve where a part of what is in flight at the optimum slows itself down, and
// the rest waits for something that does not.
func shapeContended(part float64) func(z float64) float64 {
	speed := func(n float64) float64 { return n / (1 + .3*n + n*n) } // of n at the contended station; best at 1
	return func(z float64) float64 {
		all := math.Exp(z)
		low, high := 0., all/part
		for range 60 {
			n := (low + high) / 2
			if part*n+(1-part)*speed(n)/speed(1) > all {
				high = n
			} else {
				low = n
			}
		}
		return math.Log(speed((low+high)/2) / speed(1))
	}
}

// shapeAt returns the value of a table at z, which goes on with the slopes below and above beyond its ends.
func shapeAt(t *[shapeCells]float64, z, below, above float64) float64 {
	const last = shapeCells - 1
	p := (z - shapeFrom) / shapeCell
	switch {
	case p <= 0:
		return t[0] + below*(z-shapeFrom)
	case p >= last:
		return t[last] + above*(z-shapeFrom-last*shapeCell)
	}
	i := int(p)
	return t[i] + (p-float64(i))*(t[i+1]-t[i])
}
