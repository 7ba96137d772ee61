package redisjobs_test

import "syscall"

// diesWithParent has a server or a worker end also where the test is killed.
func diesWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
