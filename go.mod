module github.com/spillgate/spillgate

go 1.26.0

require (
	github.com/hashicorp/golang-lru/v2 v2.0.7
	github.com/sony/gobreaker/v2 v2.4.0
	golang.org/x/time v0.16.0
)
