package cache

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// PurgeHandler returns a handler through which an operator purges over HTTP. It serves POST with exactly one of the
// parameters url, prefix, tag and all, in the query or a form, and with soft=1 for the soft variant:
//
//	curl -X POST -H "Authorization: …" 'http://…/purge?tag=product-7&soft=1'
//
// It answers {"purged":n}, where n is how many responses this server had, or 400 if the parameters do not name one
// thing that can be purged. Nothing routes to it by itself: mount it where only operators can reach it. Every request
// is put to authorise first, and gets 403 if that returns false. PurgeHandler panics if authorise is nil.
func (c *Cache) PurgeHandler(authorise func(*http.Request) bool) http.Handler {
	if authorise == nil {
		panic("cache: PurgeHandler(nil): give it a function that tells who may purge")
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if !authorise(r) {
			http.Error(w, "cache: not authorised to purge", http.StatusForbidden)
			return
		}
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "cache: purge with POST", http.StatusMethodNotAllowed)
			return
		}
		r = r.WithContext(r.Context()) // net/http looks at the body of its own request, to know whether the client waits for 100 Continue
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
		if err := r.ParseForm(); err != nil {
			http.Error(w, "cache: "+err.Error(), http.StatusBadRequest)
			return
		}
		soft := r.Form.Get("soft") == "1"
		if s := r.Form.Get("soft"); !soft && s != "" && s != "0" {
			http.Error(w, fmt.Sprintf("cache: soft is %q; give soft=1, or leave it out", s), http.StatusBadRequest)
			return
		}
		if named := toPurge(r.Form); named > 1 {
			http.Error(w, fmt.Sprintf("cache: %d things to purge; give one url, prefix, tag, or all=1", named), http.StatusBadRequest)
			return
		}
		for _, what := range []string{"url", "prefix"} {
			if s := r.Form.Get(what); s != "" && !located(s) {
				http.Error(w, fmt.Sprintf("cache: %s is %q; give an absolute URL of http or https, or a path with its slash", what, s), http.StatusBadRequest)
				return
			}
		}
		p := purge{soft: soft}
		switch form := r.Form; {
		case form.Get("url") != "":
			p.what, p.names = aURL, []string{form.Get("url")}
		case form.Get("prefix") != "":
			p.what, p.names = aPrefix, []string{form.Get("prefix")}
		case form.Get("tag") != "":
			p.what, p.names = aTag, []string{form.Get("tag")}
		case form.Get("all") == "1":
			p.what = everything
		default:
			http.Error(w, "cache: say what to purge: url, prefix, tag, or all=1", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write([]byte(`{"purged":` + strconv.Itoa(c.purge(p)) + "}\n"))
	})
}

// located reports whether s is what [Cache.Purge] and [Cache.PurgePrefix] can find something under.
func located(s string) bool {
	scheme, _, absolute := strings.Cut(s, "://")
	return strings.HasPrefix(s, "/") || absolute && (strings.EqualFold(scheme, "http") || strings.EqualFold(scheme, "https"))
}

// toPurge returns how many things a form names. One is purged; others would stay without a word.
func toPurge(form url.Values) (n int) {
	for _, what := range []string{"url", "prefix", "tag"} {
		for _, v := range form[what] {
			if v != "" {
				n++
			}
		}
	}
	if form.Get("all") == "1" {
		n++
	}
	return n
}
