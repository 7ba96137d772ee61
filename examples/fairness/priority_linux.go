package main

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cpuTime returns how much CPU a process has used so far, to 10 ms (proc_pid_stat(5)).
func cpuTime(pid int) time.Duration {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ") // the name may hold spaces
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

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
