package redisjobs

import (
	"context"
	"embed"
	"errors"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

//go:embed *.lua
var sources embed.FS

// A submission is refused where memory is full, before it has written anything. What ends jobs, and has others begin, is not: it is what makes room.
var (
	mintScript     = script("mint", "flags=no-writes")
	submitScript   = script("submit", "")
	getScript      = script("get", "flags=no-writes")
	lapseScript    = script("lapse", "flags=allow-oom")
	cancelScript   = script("cancel", "flags=allow-oom")
	claimScript    = script("claim", "flags=allow-oom")
	finishScript   = script("finish", "flags=allow-oom")
	progressScript = script("progress", "flags=allow-oom")
	beatScript     = script("beat", "flags=allow-oom")
	sweepScript    = script("sweep", "flags=allow-oom")
	requeueScript  = script("requeue", "")
	lettersScript  = script("letters", "flags=no-writes")
)

// script is one of the files behind what all begin with.
func script(name, flags string) *redis.Script {
	source := "#!lua " + flags + "\n"
	for _, file := range []string{"lib.lua", name + ".lua"} {
		b, err := sources.ReadFile(file)
		if err != nil {
			panic(err) // it is not in the source
		}
		source += string(b)
	}
	return redis.NewScript(source)
}

var errAnswer = errors.New("redisjobs: the server's answer is not one of the script")

// run runs a script and returns its answer. What is nil is redis.Nil.
func (e *Engine) run(ctx context.Context, s *redis.Script, args ...any) *redis.Cmd {
	return s.Run(ctx, e.client, e.keys, args...)
}

// micros is a time as scripts take and give it.
func micros(t time.Time) string { return strconv.FormatInt(t.UnixMicro(), 10) }

// timeOf is the time of a script's, or none.
func timeOf(s string) time.Time {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.UnixMicro(n)
}

// text is a string of a script's answer, or "" for what is none.
func text(v any) string { s, _ := v.(string); return s }

func number(v any) int64 { n, _ := strconv.ParseInt(text(v), 10, 64); return n } // of our own making
