package main

import (
	"os"
	"strconv"
	"syscall"
)

// ownPriority returns the niceness of this process.
func ownPriority() int {
	n, _ := syscall.Getpriority(syscall.PRIO_PROCESS, 0)
	return 20 - n // what the kernel returns
}

// setOwnPriority sets the niceness of every thread of this process, as far as that is
// allowed; threads and processes that come later inherit it.
func setOwnPriority(n int) {
	tasks, _ := os.ReadDir("/proc/self/task")
	for _, t := range tasks {
		if id, err := strconv.Atoi(t.Name()); err == nil {
			syscall.Setpriority(syscall.PRIO_PROCESS, id, n)
		}
	}
}
