package middleware

import (
	"bytes"
	"encoding/json"
	"html/template"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/spillgate/spillgate/pool/jobs"
)

// asyncForm is how a job is shown.
type asyncForm byte

const (
	formJSON   asyncForm = 'j'
	formPage   asyncForm = 'h'
	formEvents asyncForm = 'e'
)

func (a *async) status(w http.ResponseWriter, r *http.Request) {
	j, err := a.find(r)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	w.Header().Add("Vary", "Accept")
	form := acceptedForm(r.Header.Values("Accept"))
	if form == formEvents && r.Method == http.MethodGet && a.events(w, r, &j) {
		return
	}
	if form == formEvents {
		form = formJSON
	}
	// Weak: while the job is not final, when to ask again changes and its version does not (RFC 9110, section 8.8.1).
	tag := `W/"` + string(rune(form)) + strconv.FormatUint(j.Version, 10) + `"`
	w.Header().Set("ETag", tag)
	if noneMatch(r.Header.Values("If-None-Match"), tag) {
		asyncHeaders(w.Header(), j)
		w.WriteHeader(http.StatusNotModified)
		return
	}
	a.write(w, r, j, http.StatusOK, form)
}

// asyncHeaders sets what every answer about a job has.
func asyncHeaders(h http.Header, j jobs.Job) {
	// The state is the client's own and is to be asked for anew each time; its ETag makes that cheap.
	h.Set("Cache-Control", "private, no-cache")
	h.Set("X-Content-Type-Options", "nosniff")
	if !j.State.Final() {
		setRetryAfter(h, j.RetryAfter, 0)
	}
}

func (a *async) write(w http.ResponseWriter, r *http.Request, j jobs.Job, status int, form asyncForm) {
	h := w.Header()
	asyncHeaders(h, j)
	kind, problem, text := "application/json", "The job could not be shown.", jobText
	if form == formPage {
		kind, problem, text = "text/html; charset=utf-8", "The page could not be made.", jobPageText
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	}
	h.Set("Content-Type", kind)
	body, done, err := a.shown.take(j, form, text)
	defer done()
	if err != nil {
		asyncProblem(w, r, http.StatusInternalServerError, problem)
		return
	}
	if !encodesOutside(h) {
		h.Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // a client that has gone needs no answer
	}
}

func jobText(j jobs.Job) ([]byte, error) {
	marshal := json.Marshal
	if indents(j.Result) {
		marshal = func(v any) ([]byte, error) { return json.MarshalIndent(v, "", "  ") }
	}
	b, err := marshal(viewOf(j))
	return append(b, '\n'), err
}

func jobPageText(j jobs.Job) ([]byte, error) {
	var b bytes.Buffer
	err := jobPage.Execute(&b, pageOf(j))
	return b.Bytes(), err
}

// indents reports whether JSON is about as long with an indent as without: what is nested deeply would grow with the square of
// its length, from a few KiB, which a client may have sent, to a hundred MiB.
func indents(b []byte) bool {
	more, depth, quoted := 0, 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '\\' && quoted:
			i++
			continue
		case c == '"':
			quoted = !quoted
			continue
		case quoted:
			continue
		case c == '{', c == '[':
			depth++
		case c == '}', c == ']':
			depth--
		case c != ',':
			continue
		}
		if more += 1 + 2*depth; more > 8*len(b) { // a line begins
			return false
		}
	}
	return true
}

// asyncView is a job as its client sees it.
type asyncView struct {
	jobs.Job
	Fraction   float64 `json:"fraction"`
	RetryAfter int64   `json:"retry_after,omitempty"` // seconds
}

func viewOf(j jobs.Job) asyncView {
	v := asyncView{Job: j, Fraction: j.Progress.Fraction()}
	if j.State == jobs.Succeeded {
		v.Fraction = 1
	}
	if !j.State.Final() {
		v.RetryAfter = max(ceilSeconds(j.RetryAfter), 1)
	}
	return v
}

type asyncPage struct {
	asyncView
	Refresh int64
	Result  string
	Known   bool // how far it is
}

func pageOf(j jobs.Job) asyncPage {
	p := asyncPage{asyncView: viewOf(j), Known: j.Progress.Total > 0 || j.State.Final()}
	if !j.State.Final() {
		p.Refresh = min(p.RetryAfter, 2)
	}
	if len(j.Result) > 0 {
		var text string
		switch {
		case json.Unmarshal(j.Result, &text) == nil:
			p.Result = text
		case !indents(j.Result):
			p.Result = string(j.Result)
		default:
			var b bytes.Buffer
			_ = json.Indent(&b, j.Result, "", "  ") // an engine's result is JSON; if not, nothing is shown
			p.Result = b.String()
		}
	}
	return p
}

var jobPage = template.Must(template.New("job").Funcs(template.FuncMap{
	"clock": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
}).Parse(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
{{if .Refresh}}<meta http-equiv="refresh" content="{{.Refresh}}">
{{end}}<title>{{.Kind}}: {{.State}}</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:3em auto;padding:0 1em}progress{width:100%;height:1.5em}pre{overflow:auto}</style>
</head>
<body>
<h1>{{.Kind}}: {{if .Cancelling}}stopping{{else}}{{.State}}{{end}}</h1>
<p><progress aria-label="Progress" max="1"{{if .Known}} value="{{.Fraction}}"{{end}}></progress></p>
{{with .Progress.Note}}<p>{{.}}</p>
{{end}}{{with .Err}}<p role="alert">{{.}}</p>
{{end}}<p>Created {{clock .Created}}{{if not .Finished.IsZero}}, ended {{clock .Finished}}{{end}}. Attempt {{.Attempt}} of {{.MaxAttempts}}.</p>
{{with .Result}}<pre>{{.}}</pre>
{{end}}</body>
</html>
`))

// noneMatch reports whether an If-None-Match field lists tag, strong or weak (RFC 9110, section 13.1.2).
func noneMatch(fields []string, tag string) bool {
	tag = strings.TrimPrefix(tag, "W/")
	for _, f := range fields {
		for t := range strings.SplitSeq(f, ",") {
			if t = strings.TrimSpace(t); t == "*" || strings.TrimPrefix(t, "W/") == tag {
				return true
			}
		}
	}
	return false
}
