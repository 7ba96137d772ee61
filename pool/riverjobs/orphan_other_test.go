//go:build unix && !linux

package riverjobs_test

import "syscall"

func diesWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
