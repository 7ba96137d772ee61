package limitersim

import "math"

// Attainable returns the share of its capacity that k reaches on average with the best number in flight, if that
// number is held and enough requests wait. It is 1 except where work slows itself down at one station and waits at
// another: then the number at the first station varies even if the sum does not, and both more and less than the best
// number cost throughput. Nobody gets beyond that by holding a number in flight; a limiter that sees into the service
// might.
//
// It is the value for a closed queueing network with processor sharing and a delay, which has a product form whatever
// the distribution of the work (Baskett, Chandy, Muntz and Palacios, Open, Closed, and Mixed Networks of Queues,
// 1975). Each call computes it anew. Attainable may be called at any time, and concurrently.
func (k *RandomService) Attainable() float64 {
	if k.svc.Name != "usl" {
		return 1
	}
	svc := k.changed()
	stages := svc.build(newSimulation(svc, k.load, k.seed, 1))
	if len(stages) < 2 {
		return 1
	}
	wait, speed := stages[1].secs, 1.
	if k.event > 0 {
		wait *= svc.slow(0)
		speed = svc.Speed(0)
	}
	station := stages[0].at.(*shared)
	rate := func(n int) float64 { return speed * float64(n) * station.speed(float64(n)) / stages[0].secs }
	best := 0.
	low, high := int(.4*k.Optimum)+1, int(1.5*k.Optimum)+2
	for n := low; n <= high; n += max(1, (high-low)/100) {
		best = max(best, closed(n, wait, rate))
	}
	return min(best/k.Capacity, 1)
}

// closed returns the throughput of n in flight, each of which waits for a time and then shares a station that does
// rate(i) a second with i in it.
func closed(n int, wait float64, rate func(i int) float64) float64 {
	// ln of how probable it is that i are at the station, but for a constant.
	p := make([]float64, n+1)
	most, done := math.Inf(-1), 0.
	for i := range p {
		if i > 0 {
			done += math.Log(rate(i))
		}
		others, _ := math.Lgamma(float64(n-i) + 1)
		p[i] = float64(n-i)*math.Log(wait) - others - done
		most = max(most, p[i])
	}
	sum, x := 0., 0.
	for i := range p {
		w := math.Exp(p[i] - most)
		sum += w
		if i > 0 {
			x += w * rate(i)
		}
	}
	return x / sum
}
