package main

import (
	"bytes"
	"os"
	"strconv"
	"syscall"
	"time"
)

// tick is the unit of the times in /proc (USER_HZ, 100 on every Linux that Go runs on).
const tick = 0.01

// processCPU returns the processor time that a process has had, in seconds.
func processCPU(pid int) (float64, bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, false
	}
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 13 {
		return 0, false
	}
	user, _ := strconv.Atoi(string(f[11]))
	system, _ := strconv.Atoi(string(f[12]))
	return float64(user+system) * tick, true
}

// ownCPU returns the processor time that this process has had, in seconds.
func ownCPU() (float64, bool) {
	var r syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()).Seconds(), err == nil
}

// machineCPU returns the processor time that everybody on the machine has had, in seconds.
func machineCPU() (float64, bool) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, false
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	f := bytes.Fields(line)
	if len(f) < 9 {
		return 0, false
	}
	sum := 0
	for i, v := range f[1:9] { // user nice system idle iowait irq softirq steal
		if n, _ := strconv.Atoi(string(v)); i != 3 && i != 4 {
			sum += n
		}
	}
	return float64(sum) * tick, true
}
