//go:build !linux

package main

// Niceness belongs to threads on Linux only.
func ownPriority() int   { return 0 }
func setOwnPriority(int) {}
