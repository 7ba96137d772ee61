package outbound

import (
	"math"
	"sync/atomic"
)

// A budget says how many tries may be made beyond the first ones: each request
// pays in a share of a try, each retry and each hedge takes out a whole one. So
// an outage multiplies the load by 1 + ratio and no more, however many retries
// were allowed for one request; the balance at the start and its cap allow for
// the odd failure of a quiet client.
type budget struct {
	micro atomic.Int64 // millionths of a try
}

type budgets struct {
	*hosts[*budget]
	pay, start, limit int64 // millionths of a try
}

const (
	defaultBudgetRatio = 0.1
	budgetStart        = 10
	budgetLimit        = 100
	wholeTry           = 1_000_000
)

func newBudgets(ratio float64) *budgets {
	b := &budgets{pay: int64(math.Round(ratio * wholeTry)), start: budgetStart * wholeTry, limit: budgetLimit * wholeTry}
	b.hosts = newHosts(func() *budget {
		fresh := new(budget)
		fresh.micro.Store(b.start)
		return fresh
	})
	return b
}

// deposit is made with each first try.
func (b *budgets) deposit(of *budget) {
	for {
		have := of.micro.Load()
		if have >= b.limit {
			return
		}
		if of.micro.CompareAndSwap(have, min(have+b.pay, b.limit)) {
			return
		}
	}
}

// takeBack undoes the deposit of a request that its host has refused.
func (b *budgets) takeBack(of *budget) { of.micro.Add(-b.pay) }

// withdraw reports whether another try may be made, and pays for it.
func (b *budgets) withdraw(of *budget) bool {
	for {
		have := of.micro.Load()
		if have < wholeTry {
			return false
		}
		if of.micro.CompareAndSwap(have, have-wholeTry) {
			return true
		}
	}
}

// refund gives back what a try that was not made has paid.
func (b *budgets) refund(of *budget) { of.micro.Add(wholeTry) }
