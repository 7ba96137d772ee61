package breaker

import (
	"strconv"
	"time"
)

// State is what a [Breaker] does with calls.
type State uint8

const (
	// Closed lets calls pass and counts them. After an opening it lets a growing share of them pass.
	Closed State = iota
	// HalfOpen lets a few calls pass as probes.
	HalfOpen
	// Open refuses every call until its time is over.
	Open
	// ForcedOpen refuses every call until [Breaker.Reset].
	ForcedOpen
	// ForcedClosed lets every call pass and counts it, but does not open, until [Breaker.Reset].
	ForcedClosed
	// Disabled lets every call pass and counts nothing, until [Breaker.Reset].
	Disabled
)

var stateNames = [...]string{"closed", "half-open", "open", "forced-open", "forced-closed", "disabled"}

// String returns the name of the state: "closed", "half-open", "open", "forced-open",
// "forced-closed" or "disabled".
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return "State(" + strconv.Itoa(int(s)) + ")"
}

// MarshalText encodes a state as its name.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Outcome is what a call says about the health of the dependency.
type Outcome uint8

const (
	// Success says that the dependency did its work, whatever the answer was.
	Success Outcome = iota
	// Failure says that the dependency did not do its work.
	Failure
	// Ignored says that the call tells nothing about the dependency: its caller left, or another
	// protection refused it. A probe that is ignored gives its place to the next call.
	Ignored
)

var outcomeNames = [...]string{"success", "failure", "ignored"}

// String returns "success", "failure" or "ignored".
func (o Outcome) String() string {
	if int(o) < len(outcomeNames) {
		return outcomeNames[o]
	}
	return "Outcome(" + strconv.Itoa(int(o)) + ")"
}

// Cause is why a breaker changed its state.
type Cause uint8

const (
	// CauseFailures: the share of failures reached [WithFailureRatio].
	CauseFailures Cause = iota + 1
	// CauseConsecutive: failures in a row reached [WithConsecutiveFailures].
	CauseConsecutive
	// CauseSlow: the share of slow calls, overdue ones in flight among them, reached that of [WithSlowCalls].
	CauseSlow
	// CauseOpenOver: the open time is over and probes may pass.
	CauseOpenOver
	// CauseProbesPassed: all probes succeeded.
	CauseProbesPassed
	// CauseProbeFailed: a probe failed, or was slow.
	CauseProbeFailed
	// CauseProbeLost: a probe was not reported within its lease.
	CauseProbeLost
	// CauseManual: ForceOpen, ForceClosed, Disable or Reset was called.
	CauseManual
)

var causeNames = [...]string{"", "failures", "consecutive failures", "slow calls", "open time over",
	"probes passed", "probe failed", "probe lost", "manual"}

// String returns the cause in words.
func (c Cause) String() string {
	if int(c) < len(causeNames) {
		return causeNames[c]
	}
	return "Cause(" + strconv.Itoa(int(c)) + ")"
}

// MarshalText encodes a cause as its words.
func (c Cause) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Change is a change of state, as [WithOnChange] reports it.
type Change struct {
	// Name is the name of the breaker; in a [Group], its key.
	Name     string
	From, To State
	Cause    Cause
	// OpenFor is how long the breaker stays open; 0 unless To is [Open].
	OpenFor time.Duration
}
