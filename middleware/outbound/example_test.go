package outbound_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware/outbound"
)

func ExampleNew() {
	tries := 0
	users := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if tries++; tries == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, "alice")
	}))
	defer users.Close()

	client := &http.Client{Transport: outbound.New(nil,
		outbound.Retry(),
		outbound.Breaker(nil),
		outbound.Timeout(2*time.Second),
	)}
	resp, err := client.Get(users.URL)
	if err != nil {
		fmt.Println(err)
		return
	}
	resp.Body.Close()
	fmt.Println(resp.StatusCode, "after", tries, "tries")
	// Output:
	// 200 after 2 tries
}

func ExampleNewSet() {
	replica := func(status int) *httptest.Server {
		return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status) }))
	}
	good, bad := replica(200), replica(503)
	defer good.Close()
	defer bad.Close()

	set, err := outbound.NewSet([]outbound.Endpoint{{URL: good.URL}, {URL: bad.URL}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer set.Close()
	transport := outbound.New(nil, outbound.Balance(set), outbound.Retry(), outbound.Timeout(2*time.Second))

	// The host of the URL is a name of ours; the set knows where to go. The same
	// transport serves a reverse proxy:
	_ = httputil.ReverseProxy{Transport: transport}

	client := &http.Client{Transport: transport}
	failed := 0
	for range 100 {
		resp, err := client.Get("http://users/")
		if err != nil {
			failed++
			continue
		}
		if resp.StatusCode != 200 {
			failed++
		}
		resp.Body.Close()
	}
	fmt.Println("failed:", failed)
	fmt.Println("ejected:", set.Stats().Endpoints[1].Ejected)
	// Output:
	// failed: 0
	// ejected: true
}

func ExampleBreaker() {
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) }))
	defer broken.Close()
	hosts := breaker.NewGroup(breaker.WithConsecutiveFailures(3))
	client := &http.Client{Transport: outbound.New(nil, outbound.Breaker(hosts))}
	for range 4 {
		resp, err := client.Get(broken.URL)
		if open, ok := errors.AsType[*breaker.OpenError](err); ok {
			fmt.Println("open:", open.RetryAfter > 0)
			continue
		}
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(resp.StatusCode)
		resp.Body.Close()
	}
	// Output:
	// 500
	// 500
	// 500
	// open: true
}

func ExampleRetry() {
	transport := outbound.New(nil, outbound.Retry(outbound.WithTries(3)))
	client := &http.Client{Transport: transport}
	_, err := client.Post("http://127.0.0.1:0/", "text/plain", nil) // nobody listens there
	fmt.Println("failed:", err != nil)
	fmt.Println("nothing was sent, so even a POST was tried again:", transport.Stats().Retries)
	// Output:
	// failed: true
	// nothing was sent, so even a POST was tried again: 2
}

func ExampleHedge() {
	var asked atomic.Int64
	users := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 1 {
			<-r.Context().Done() // one of the machines behind it hangs
		}
	}))
	defer users.Close()
	transport := outbound.New(nil, outbound.Hedge(outbound.WithHedgeAfter(20*time.Millisecond)))
	client := &http.Client{Transport: transport}
	resp, err := client.Get(users.URL)
	if err != nil {
		fmt.Println(err)
		return
	}
	resp.Body.Close()
	fmt.Println(resp.StatusCode, "from the second try:", transport.Stats().HedgesWon == 1)
	// Output:
	// 200 from the second try: true
}

func ExampleTimeout() {
	hang := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-hang }))
	defer silent.Close()
	defer close(hang)
	client := &http.Client{Transport: outbound.New(nil, outbound.Timeout(10*time.Millisecond))}
	_, err := client.Get(silent.URL)
	late, ok := errors.AsType[*outbound.TimeoutError](err)
	fmt.Println(ok, late.After)
	// Output:
	// true 10ms
}

func ExampleLimit() {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	defer api.Close()
	// The API allows us 50 calls a second and asks for no more than 8 at once.
	client := &http.Client{Transport: outbound.New(nil, outbound.Limit(
		outbound.WithRate(limiter.NewRate(rate.Limit(50), 10)),
		outbound.WithConcurrency(func() *limiter.Concurrency { return limiter.NewConcurrency(8) }),
	))}
	resp, err := client.Get(api.URL)
	if err != nil {
		fmt.Println(err)
		return
	}
	resp.Body.Close()
	fmt.Println(resp.StatusCode)
	// Output:
	// 200
}

func ExampleBalance() {
	set, err := outbound.NewSet(nil) // nothing is known yet
	if err != nil {
		fmt.Println(err)
		return
	}
	defer set.Close()
	client := &http.Client{Transport: outbound.New(nil, outbound.Balance(set))}
	_, err = client.Get("http://users/")
	fmt.Println(errors.Is(err, outbound.ErrNoEndpoint))
	// Output:
	// true
}
