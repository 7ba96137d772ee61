//go:build !linux

package main

import "time"

// How much CPU another process has used is told on Linux only.
func cpuTime(int) time.Duration { return 0 }

// Niceness belongs to threads on Linux only.
func ownPriority() int   { return 0 }
func setOwnPriority(int) {}
