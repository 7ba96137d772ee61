package middleware_test

import "runtime/debug"

func stackHere() string { return string(debug.Stack()) }
