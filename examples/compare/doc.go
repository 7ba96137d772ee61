// Package compare runs the same work through Spillgate and through other
// libraries. It holds nothing but tests, which check that every adapter does
// the work, and benchmarks; see README.md for the commands.
package compare
