package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// inTime is the latency up to which an answer is of use to the one who asked.
	inTime = 250 * time.Millisecond
	// patience is when the client closes the connection and asks no more.
	patience = time.Second
	// mostConns bounds the connections to one server. A request that finds none free and no
	// room for another is lost at once, like one that a proxy with a full pool turns away.
	mostConns = 4096
)

// step is one level of load.
type step struct {
	load float64 // in multiples of the capacity
	back bool    // after the surge
	rate float64 // requests a second
	d    time.Duration
}

// tally counts the answers to the requests of one step. Latency counts from the moment at which a
// request was to be sent, so that a client that is held up hides nothing.
type tally struct {
	mu      sync.Mutex
	sent    int
	good    int             // 200 in time
	late    int             // 200, too late
	lost    int             // no answer within patience, or no connection
	open    []time.Duration // of all that were not refused; lost ones count as patience
	refused []time.Duration // of 503s
	lag     []time.Duration // how late the client sent
}

func (t *tally) answered(status int, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case status == 503:
		t.refused = append(t.refused, took)
		return
	case status != 200:
		t.lost++
		took = patience
	case took <= inTime:
		t.good++
	default:
		t.late++
	}
	t.open = append(t.open, took)
}

// quantile returns the q-quantile of d and sorts it on the way; 0 if d is empty.
func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(int(q*float64(len(d))), len(d)-1)]
}

// client is an HTTP/1.1 client over keep-alive connections that costs a few microseconds a
// request: it shares the cores with the server that it measures, where [net/http.Client] would cost
// more than a refusal does.
type client struct {
	addr    string
	request []byte

	mu    sync.Mutex
	idle  []*clientConn // the one used last is used next, so that a healthy server sees few
	conns int
	open  sync.WaitGroup
}

func newClient(addr, path string) *client {
	return &client{addr: addr, request: []byte("GET " + path + " HTTP/1.1\r\nHost: " + addr + "\r\n\r\n")}
}

type clientJob struct {
	due time.Time
	to  *tally
}

type clientConn struct {
	c    *client
	work chan clientJob
	conn net.Conn
	in   *bufio.Reader
}

// send sends a request that was due at the given time and returns at once.
func (c *client) send(j clientJob) {
	c.mu.Lock()
	if n := len(c.idle); n > 0 {
		k := c.idle[n-1]
		c.idle = c.idle[:n-1]
		c.mu.Unlock()
		k.work <- j
		return
	}
	if c.conns >= mostConns {
		c.mu.Unlock()
		j.to.answered(0, 0)
		return
	}
	c.conns++
	c.mu.Unlock()
	k := &clientConn{c: c, work: make(chan clientJob, 1)}
	k.work <- j
	c.open.Go(k.run)
}

func (k *clientConn) run() {
	for j := range k.work {
		status := k.exchange(j.due.Add(patience))
		j.to.answered(status, time.Since(j.due))
		if status == 0 {
			break
		}
		k.c.mu.Lock()
		k.c.idle = append(k.c.idle, k)
		k.c.mu.Unlock()
	}
	if k.conn != nil {
		k.conn.Close()
	}
	k.c.mu.Lock()
	k.c.conns--
	k.c.mu.Unlock()
}

// exchange sends one request and reads the answer. It returns the status; 0 if there was none.
func (k *clientConn) exchange(deadline time.Time) int {
	if k.conn == nil {
		var err error
		if k.conn, err = (&net.Dialer{Deadline: deadline}).Dial("tcp", k.c.addr); err != nil {
			return 0
		}
		k.in = bufio.NewReaderSize(k.conn, 2048)
	}
	k.conn.SetDeadline(deadline)
	if _, err := k.conn.Write(k.c.request); err != nil {
		return 0
	}
	status, err := readAnswer(k.in)
	if err != nil {
		return 0
	}
	return status
}

// get returns what the server answers to one request. It has more time than a client has patience: a server that
// computes all the time on a machine where much else runs answers late, and is measured all the same.
func get(addr, path string) (string, error) {
	h := http.Client{Timeout: 10 * time.Second}
	defer h.CloseIdleConnections()
	r, err := h.Get("http://" + addr + path)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return string(b), err
}

var errAnswer = errors.New("not an answer with a length")

// readAnswer reads an answer that has a Content-Length and keeps the connection.
func readAnswer(in *bufio.Reader) (status int, err error) {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(line) < 12 {
		return 0, errAnswer
	}
	status, err = strconv.Atoi(string(line[9:12]))
	if err != nil {
		return 0, err
	}
	length := -1
	for {
		line, err = in.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			break
		}
		if v, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(v)); err != nil {
				return 0, err
			}
		}
	}
	if length < 0 {
		return 0, errAnswer
	}
	_, err = in.Discard(length)
	return status, err
}

// close ends the client once every request has its answer or has run out of patience.
func (c *client) close() {
	c.mu.Lock()
	for c.conns > len(c.idle) {
		c.mu.Unlock()
		time.Sleep(10 * time.Millisecond)
		c.mu.Lock()
	}
	for _, k := range c.idle {
		close(k.work)
	}
	c.idle = nil
	c.mu.Unlock()
	c.open.Wait()
}

// run sends one step's requests at random moments (a Poisson process) whatever has been answered so far: an
// open loop. It returns when the last was sent.
func (c *client) run(s step, t *tally, began time.Time, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	end := began.Add(s.d)
	due := began
	for {
		due = due.Add(time.Duration(r.ExpFloat64() / s.rate * float64(time.Second)))
		if due.After(end) {
			time.Sleep(time.Until(end))
			return
		}
		if d := time.Until(due); d > 0 {
			time.Sleep(d)
		}
		lag := time.Since(due)
		t.mu.Lock()
		t.sent++
		t.lag = append(t.lag, lag)
		t.mu.Unlock()
		c.send(clientJob{due, t})
	}
}

// closedLoop keeps n requests under way for d and counts those that are answered with the status
// in each fifth of that time, the first left out. It calls mark before the first that counts and after the last.
func closedLoop(addr, path string, n, status int, d time.Duration, mark func()) (fifths [4]int) {
	c := newClient(addr, path)
	began := time.Now()
	var count [5]atomic.Int64
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			k := &clientConn{c: c}
			for time.Since(began) < d {
				got := k.exchange(time.Now().Add(10 * time.Second))
				if got == 0 && k.conn != nil {
					k.conn.Close()
					k.conn = nil
				}
				if i := int(5 * time.Since(began) / d); i < 5 && got == status {
					count[i].Add(1)
				}
			}
			if k.conn != nil {
				k.conn.Close()
			}
		})
	}
	time.Sleep(time.Until(began.Add(d / 5)))
	mark()
	time.Sleep(time.Until(began.Add(d)))
	mark()
	wg.Wait()
	for i := range fifths {
		fifths[i] = int(count[i+1].Load())
	}
	return fifths
}
