package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// load is clients that send a request as soon as they have the answer to the last.
type load struct {
	good, bad atomic.Int64
	first     atomic.Value // the first error, a string
	cancel    context.CancelFunc
	clients   sync.WaitGroup
}

func startLoad(base string, clients int) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel}
	for c := range clients {
		l.clients.Go(func() {
			client := &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}
			defer client.CloseIdleConnections()
			for n := 0; ctx.Err() == nil; n++ {
				if err := l.send(ctx, client, base, c, n); err != nil && ctx.Err() == nil {
					l.bad.Add(1)
					l.first.CompareAndSwap(nil, err.Error())
				}
			}
		})
	}
	return l
}

// send reads, and now and then it orders. The key says that the order may be sent
// again: whoever gets it twice can tell.
func (l *load) send(ctx context.Context, client *http.Client, base string, c, n int) error {
	method, body := http.MethodGet, io.Reader(nil)
	if n%4 == 0 {
		method, body = http.MethodPost, strings.NewReader("one of these")
	}
	req, err := http.NewRequestWithContext(ctx, method, base+"/items", body)
	if err != nil {
		return err
	}
	if method == http.MethodPost {
		req.Header.Set("Idempotency-Key", fmt.Sprintf("%d-%d", c, n))
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", method, req.URL.Path, resp.Status)
	}
	l.good.Add(1)
	return nil
}

func (l *load) stop() {
	l.cancel()
	l.clients.Wait()
}
