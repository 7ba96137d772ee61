//go:build unix && !linux

package redisjobs_test

import "syscall"

func diesWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
