package jobs

import (
	"container/heap"
	"container/list"
)

// keeper is what is kept of one client's finished jobs; all without a client are of one.
type keeper struct {
	client string
	ended  list.List // the jobs, as they ended
	bytes  int64
	part   float64 // of the places or of the bytes that there are for all, whichever is more
	place  int     // in Local.most; -1 while it is not there
}

func (k *keeper) before(o *keeper) bool { return k.part > o.part }
func (k *keeper) moved(place int)       { k.place = place }

// room makes room for size bytes by forgetting finished jobs. All of them must be enough.
func (l *Local) room(size int64) {
	for l.bytes+size > l.conf.bytes {
		l.forget(l.first(nil))
	}
}

// forget drops a finished job; its id will be answered with ErrExpired.
func (l *Local) forget(e *entry) {
	l.leave(e)
	delete(l.jobs, e.id)
	if e.key != "" {
		delete(l.keys, jobKey{e.client, e.key})
	}
	l.bytes -= e.bytes()
	l.counts.Forgotten++
}

// keep puts a job among the finished ones, leave takes it out.
func (l *Local) keep(e *entry) {
	heap.Push(&l.finished, e)
	l.kept += e.bytes()
	e.seat = l.ended.PushBack(e)
	k := l.keepers[e.client]
	if k == nil {
		k = &keeper{client: e.client, place: -1}
		l.keepers[e.client] = k
	}
	e.own = k.ended.PushBack(e)
	l.weigh(k, e.bytes())
}

func (l *Local) leave(e *entry) {
	heap.Remove(&l.finished, e.place)
	l.kept -= e.bytes()
	l.ended.Remove(e.seat)
	k := l.keepers[e.client]
	k.ended.Remove(e.own)
	e.seat, e.own = nil, nil
	l.weigh(k, -e.bytes())
}

// weigh takes in that k has so many bytes more, and perhaps another number of jobs.
func (l *Local) weigh(k *keeper, bytes int64) {
	k.bytes += bytes
	k.part = max(float64(k.ended.Len())/float64(l.conf.finished), float64(k.bytes)/float64(l.conf.bytes))
	switch {
	case k.ended.Len() == 0:
		heap.Remove(&l.most, k.place)
		delete(l.keepers, k.client)
	case k.place < 0:
		heap.Push(&l.most, k)
	default:
		heap.Fix(&l.most, k.place)
	}
}

// first is the finished job that goes before the others, but for one that has just ended: the one that ended first, of the client that has most
// where that is more than its share. Otherwise a flood of one client's jobs would have the results and the keys of all others forgotten. There
// must be one.
func (l *Local) first(last *entry) *entry {
	if k := l.most[0]; k.part > float64(l.conf.share)/float64(l.conf.unfinished) {
		if e := k.ended.Front().Value.(*entry); e != last {
			return e
		}
	}
	return l.ended.Front().Value.(*entry)
}

func (e *entry) bytes() int64 {
	return int64(len(e.payload) + len(e.result) + len(e.detail))
}
