//go:build unix

package redisjobs_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/spillgate/spillgate/pool/jobs"
	"github.com/spillgate/spillgate/pool/jobs/jobstest"
	"github.com/spillgate/spillgate/pool/redisjobs"
)

// user makes the user "jobs", who may use these keys and channels and the commands that the documentation names.
func user(t *testing.T, s *server, rules ...string) {
	t.Helper()
	for _, command := range strings.Fields(`eval evalsha get set setnx hget hset hmget hdel hincrby zadd zrem zrange zrank zscore zremrangebyscore
		exists persist pexpireat time publish subscribe unsubscribe ping hello info`) {
		rules = append(rules, "+"+command)
	}
	if err := s.client(t).ACLSetUser(t.Context(), "jobs", append([]string{"reset", "on", ">secret"}, rules...)...).Err(); err != nil {
		t.Fatal(err)
	}
}

// Without a channel nobody is told of anything, and all goes on by asking.
func TestConformanceWithoutMessages(t *testing.T) {
	t.Parallel()
	s := own(t)
	user(t, s, "~*")
	c := redis.NewClient(&redis.Options{Addr: s.addr, Username: "jobs", Password: "secret", ContextTimeoutEnabled: true})
	t.Cleanup(func() { c.Close() })
	jobstest.Suite{New: func(t *testing.T, m *jobs.Mux) jobs.Engine {
		return engine(t, c, m, service(), redisjobs.WithWorkers(4), redisjobs.WithPollInterval(20*time.Millisecond), redisjobs.WithLease(time.Second))
	}}.Run(t)
}

// asksTwice asks the server again each time, as the client does where an answer is lost, and so gets the second.
type asksTwice struct{}

func (asksTwice) DialHook(next redis.DialHook) redis.DialHook { return next }
func (asksTwice) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
func (asksTwice) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if err := next(ctx, cmd); err != nil {
			return err
		}
		return next(ctx, cmd)
	}
}

// Where an answer is lost the server is asked again, and what it has done it has done once.
func TestConformanceAskedTwice(t *testing.T) {
	t.Parallel()
	c := shared.client(t)
	c.AddHook(asksTwice{})
	jobstest.Suite{New: func(t *testing.T, m *jobs.Mux) jobs.Engine {
		return engine(t, c, m, service(), redisjobs.WithWorkers(4))
	}}.Run(t)
	t.Run("a job is queued again", func(t *testing.T) {
		var fails atomic.Int64
		m := jobs.NewMux()
		jobs.Register(m, "k", func(context.Context, int) (int, error) {
			fails.Add(1)
			return 0, errors.New("no")
		})
		e := engine(t, c, m, service(), redisjobs.WithWorkers(1))
		j := submit(t, e, "k", "1", jobs.SubmitOptions{})
		for n := range int64(3) {
			if end := final(t, e, j.ID); end.State != jobs.Failed || fails.Load() != n+1 {
				t.Errorf("ended as %+v after %d attempts", end, fails.Load())
			}
			if n == 2 {
				break
			}
			if j, err := e.Requeue(t.Context(), j.ID); err != nil {
				t.Errorf("%+v, %v", j, err)
			}
		}
	})
}

// With few rights in a cluster, where the client has questions of its own.
func TestRightsInCluster(t *testing.T) {
	t.Parallel()
	all := cluster(t)
	for _, addr := range all.Options().Addrs {
		user(t, &server{addr: addr}, "~{p}:*", "&{p}:*", "+cluster|slots", "+command", "+asking", "+readonly")
	}
	c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: all.Options().Addrs, Username: "jobs", Password: "secret", ReadOnly: true, ContextTimeoutEnabled: true})
	t.Cleanup(func() { c.Close() })
	e := engine(t, c, kinds(), redisjobs.WithPrefix("p"), redisjobs.WithWorkers(1))
	if end := final(t, e, submit(t, e, "n", "7", jobs.SubmitOptions{}).ID); string(end.Result) != "7" {
		t.Errorf("ended as %+v", end)
	}
}

// Over TLS, with a user that may do no more than it has to.
func TestTLS(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	roots := x509.NewCertPool()
	for name, block := range map[string]*pem.Block{"cert": {Type: "CERTIFICATE", Bytes: cert}, "key": {Type: "PRIVATE KEY", Bytes: secret}} {
		var b bytes.Buffer
		if err := pem.Encode(&b, block); err != nil {
			t.Fatal(err)
		}
		if name == "cert" {
			roots.AppendCertsFromPEM(b.Bytes())
		}
		if err := os.WriteFile(filepath.Join(dir, name), b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(at)
	s := own(t, "--tls-port", port, "--tls-cert-file", filepath.Join(dir, "cert"), "--tls-key-file", filepath.Join(dir, "key"), "--tls-auth-clients", "no")
	user(t, s, "~{p}:*", "&{p}:*")
	c := redis.NewUniversalClient(&redis.UniversalOptions{Addrs: []string{at}, Username: "jobs", Password: "secret", TLSConfig: &tls.Config{RootCAs: roots}})
	defer c.Close()
	e := engine(t, c, kinds(), redisjobs.WithPrefix("p"), redisjobs.WithWorkers(2))
	if end := final(t, e, submit(t, e, "n", "7", jobs.SubmitOptions{Client: "a", Key: "k", Deadline: time.Now().Add(time.Hour)}).ID); string(end.Result) != "7" {
		t.Errorf("ended as %+v", end)
	}
	j := submit(t, e, "wait", "7", jobs.SubmitOptions{})
	here(t, e, j.ID)
	if _, err := e.Cancel(t.Context(), j.ID); err != nil {
		t.Error(err)
	}
	if end := final(t, e, j.ID); end.State != jobs.Cancelled {
		t.Errorf("ended as %+v", end)
	}
	submit(t, e, "n", "7", jobs.SubmitOptions{Deadline: time.Now().Add(-time.Hour)})
	until(t, "it has failed", func() bool {
		for j, err := range e.DeadLetters(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			if _, err := e.Requeue(t.Context(), j.ID); err != nil {
				t.Fatal(err)
			}
			return final(t, e, j.ID).State == jobs.Succeeded
		}
		return false
	})
	elsewhere := redisjobs.New(c, kinds(), redisjobs.WithPrefix("q"))
	if err := elsewhere.Start(t.Context()); !ours(err) {
		t.Errorf("with the keys of others: %v", err)
	}
}

// A primary that dies, and a replica that Sentinel puts in its place: jobs that had been replicated are done.
func TestSentinel(t *testing.T) {
	t.Parallel()
	primary := own(t)
	host, port, _ := net.SplitHostPort(primary.addr)
	replica := own(t, "--replicaof", host+" "+port)
	rc := replica.client(t)
	until(t, "the replica follows", func() bool {
		return rc.InfoMap(t.Context(), "replication").Item("Replication", "master_link_status") == "up"
	})
	conf := filepath.Join(t.TempDir(), "sentinel.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "sentinel monitor main %s %s 1\nsentinel down-after-milliseconds main 500\nsentinel failover-timeout main 5000\n", host, port), 0o600); err != nil {
		t.Fatal(err)
	}
	watch := sentinel(t, conf)
	connect := func() redis.UniversalClient {
		c := redis.NewUniversalClient(&redis.UniversalOptions{Addrs: []string{watch.addr}, MasterName: "main", ContextTimeoutEnabled: true})
		t.Cleanup(func() { c.Close() })
		return c
	}
	sc := watch.client(t)
	until(t, "Sentinel knows the replica", func() bool {
		all, err := redis.NewSentinelClient(sc.Options()).Replicas(t.Context(), "main").Result()
		return err == nil && len(all) == 1
	})
	web := engine(t, connect(), kinds())
	engine(t, connect(), kinds(), redisjobs.WithWorkers(2), redisjobs.WithLease(2*time.Second))
	running := submit(t, web, "wait", "1", jobs.SubmitOptions{})
	here(t, web, running.ID)
	queued := submit(t, web, "n", "2", jobs.SubmitOptions{NotBefore: time.Now().Add(3 * time.Second)})
	pc := primary.client(t)
	until(t, "all is replicated", func() bool { n, err := pc.Wait(t.Context(), 1, time.Second).Result(); return err == nil && n == 1 })
	primary.kill()
	until(t, "the replica is the primary", func() bool {
		_, _, err := web.Submit(t.Context(), "n", []byte("1"), jobs.SubmitOptions{})
		return err == nil
	})
	if end := final(t, web, queued.ID); end.State != jobs.Succeeded {
		t.Errorf("ended as %+v", end)
	}
	if j, err := web.Cancel(t.Context(), running.ID); err != nil || !j.Cancelling {
		t.Errorf("%+v, %v", j, err)
	}
	if end := final(t, web, running.ID); end.State != jobs.Cancelled || end.Attempt != 1 {
		t.Errorf("ended as %+v", end)
	}
}
