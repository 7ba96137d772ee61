// Package conformance scores package cache with the public suite for HTTP caches,
// https://cache-tests.fyi, at the edition that npm has (http-cache-tests 0.4.5).
//
//	cache/conformance/install.sh
//	go test -v -run Conformance ./cache/conformance
//
// A test of the suite counts only if every test that it depends on passes as well: a cache that
// stores nothing passes many tests of what must not be stored. The tests that fail, and why, are
// listed in failing.txt; the Go test fails when the list is wrong in either direction.
package conformance
