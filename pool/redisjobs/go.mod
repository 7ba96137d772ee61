module github.com/spillgate/spillgate/pool/redisjobs

go 1.26.0

replace github.com/spillgate/spillgate => ../..

require (
	github.com/redis/go-redis/v9 v9.23.0
	github.com/spillgate/spillgate v0.0.0
)

require (
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/hashicorp/golang-lru/v2 v2.0.7 // indirect
	github.com/sony/gobreaker/v2 v2.4.0 // indirect
	go.uber.org/atomic v1.12.0 // indirect
	golang.org/x/sys v0.48.0 // indirect
	golang.org/x/time v0.16.0 // indirect
)
