module github.com/spillgate/spillgate/middleware/wiretest

go 1.26.0

require (
	github.com/dunglas/httpsfv v1.1.2
	github.com/quic-go/quic-go v0.65.0
	github.com/spillgate/spillgate v0.0.0
	golang.org/x/time v0.16.0
)

require (
	github.com/hashicorp/golang-lru/v2 v2.0.7 // indirect
	github.com/quic-go/qpack v0.6.0 // indirect
	github.com/sony/gobreaker/v2 v2.4.0 // indirect
	golang.org/x/crypto v0.54.0 // indirect
	golang.org/x/net v0.56.0 // indirect
	golang.org/x/sys v0.47.0 // indirect
	golang.org/x/text v0.40.0 // indirect
)

replace github.com/spillgate/spillgate => ../..
