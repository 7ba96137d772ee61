package main

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
	"github.com/spillgate/spillgate/pool/jobs"
)

//go:embed page.html
var page string

// app is the whole server.
type app struct {
	http.Handler
	engines []*jobs.Local
	over    *pool.Overcommitted
}

// order is what a client asks for.
type order struct {
	Parts int `json:"parts"` // of 100; a bigger report has more
}

// report is what it gets.
type report struct {
	Parts  int    `json:"parts"`
	Digest string `json:"digest"`
}

func newApp(work time.Duration, overcommit bool) (*app, error) {
	if work <= 0 || work > time.Hour {
		return nil, fmt.Errorf("-work is %v; give more than 0, and at most 1h", work)
	}
	rounds := calibrate(work / 100)
	m := jobs.NewMux()
	jobs.Register(m, "report", func(ctx context.Context, o order) (report, error) {
		if o.Parts < 1 || o.Parts > 1000 {
			o.Parts = 100
		}
		var b [1024]byte
		for i := range o.Parts {
			if err := part(ctx, &b, rounds); err != nil {
				return report{}, err
			}
			jobs.Report(ctx, jobs.Progress{Done: int64(i + 1), Total: int64(o.Parts)})
		}
		sum := sha256.Sum256(b[:])
		return report{o.Parts, hex.EncodeToString(sum[:8])}, nil
	}, jobs.WithRetain(10*time.Minute))

	protected := pool.New()
	a := new(app)
	if overcommit {
		over, err := pool.Overcommit(protected)
		if err != nil {
			return nil, err
		}
		a.over = over
	}
	unprotected := pool.New(pool.WithSlots(64)) // as many as anybody could want is the same as none
	a.engines = []*jobs.Local{jobs.NewLocal(m, protected), jobs.NewLocal(m, unprotected)}

	mux := http.NewServeMux()
	for i, path := range []string{"/reports", "/unprotected"} {
		h := middleware.Async(a.engines[i], "report")
		mux.Handle("POST "+path, h)
		mux.Handle("GET "+path+"/{id}", h)
		mux.Handle("DELETE "+path+"/{id}", h)
	}
	mux.HandleFunc("GET /cheap", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		io.WriteString(w, `{"ok":true}`)
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		io.WriteString(w, page)
	})
	a.Handler = mux
	return a, nil
}

func (a *app) close() {
	for _, e := range a.engines {
		e.Close()
	}
	if a.over != nil {
		a.over.Close()
	}
}

// part computes for a while. It checks about once in a millisecond whether it should stop.
func part(ctx context.Context, b *[1024]byte, rounds int) error {
	for i := range rounds {
		sum := sha256.Sum256(b[:])
		copy(b[:], sum[:])
		if i%1024 == 1023 {
			if err := pool.Checkpoint(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// calibrate returns how many rounds take about d on this machine.
func calibrate(d time.Duration) int {
	const n = 4096
	var b [1024]byte
	began := time.Now()
	part(context.Background(), &b, n)
	return max(1, int(int64(n)*int64(d)/int64(max(time.Since(began), 1))))
}
