// Package conformance scores package cache with the public suite for HTTP caches, https://cache-tests.fyi, in the
// edition published on npm (http-cache-tests 0.4.5).
//
//	cache/conformance/install.sh
//	go test -v -run Conformance ./cache/conformance
//
// A test of the suite counts only if every test that it depends on passes as well: a cache that stores nothing passes
// many of the tests for what must not be stored. failing.txt lists the tests that fail, and why; the Go test fails if
// the list is wrong in either direction.
package conformance
