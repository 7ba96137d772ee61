package limiter

// Outcome says how the work that a permit was taken for ended.
// The zero value is Success.
type Outcome uint8

const (
	// Success: the work was done. Only successes count as throughput and as a
	// measurement of the time in service.
	Success Outcome = iota
	// Failure: the work was tried and failed. Failures that grow with the limit make
	// an adaptive limit fall.
	Failure
	// Ignored: what happened says nothing about this server, for example because the
	// client left or because another layer refused. It is counted and never measured.
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
