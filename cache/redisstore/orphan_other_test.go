//go:build unix && !linux

package redisstore_test

import "syscall"

func diesWithParent() *syscall.SysProcAttr { return nil }
