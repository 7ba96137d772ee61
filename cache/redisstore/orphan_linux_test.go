package redisstore_test

import "syscall"

// diesWithParent has a server end also where the test is killed.
func diesWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
