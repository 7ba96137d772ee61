//go:build !linux

package pool

// setNice reports that niceness belongs to the process here and not to the thread.
func setNice(int) bool { return false }

// thread tells no threads apart here.
func thread() uint32 { return 0 }
