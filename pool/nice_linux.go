package pool

import "syscall"

// setNice lowers the priority of the calling thread. On Linux niceness belongs to the
// thread; who 0 is the calling one.
func setNice(n int) bool {
	return syscall.Setpriority(syscall.PRIO_PROCESS, 0, n) == nil
}

// thread returns the number of the calling thread.
func thread() uint32 { return uint32(syscall.Gettid()) }
