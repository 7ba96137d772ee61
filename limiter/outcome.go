package limiter

// Outcome says how the work that a permit was taken for ended. The zero value is Success.
type Outcome uint8

const (
	// Success: the work was done. Only successes count as throughput and as a
	// measurement of the time in service.
	Success Outcome = iota
	// Failure: the work was tried and failed. To an adaptive limit it is no throughput, but the time for which it
	// occupied a permit counts: the limit is what successes and failures need together. A limit at which more fails and
	// as much succeeds is not lowered for that. If next to nothing succeeds, less than a tenth, and what ends takes as
	// long as successes did, the queue is shortened and the limit lowered until something succeeds.
	Failure
	// Ignored: what happened says nothing about how well the work went, for example because the client left or another
	// layer refused. An adaptive limit treats it like Failure: clients that leave may have waited in vain.
	Ignored
)

// String returns "success", "failure" or "ignored".
func (o Outcome) String() string {
	switch o {
	case Success:
		return "success"
	case Failure:
		return "failure"
	default:
		return "ignored"
	}
}
