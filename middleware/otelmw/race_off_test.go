//go:build !race

package otelmw_test

const race = false
