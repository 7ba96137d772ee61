package main

import (
	"bytes"
	"fmt"
	"math"
	"text/template"
	"time"
)

// The chart has a row for each profile: answers in time on the left, the 99th percentile on the
// right, both over the offered load.
const (
	chartWidth  = 900
	chartTop    = 58
	panelWidth  = 370
	panelHeight = 190
	panelLeft   = 62
	panelPitch  = 442
	rowPitch    = 268
)

type point struct{ X, Y float64 }

// line is one server in one panel.
type line struct {
	Color   string
	Path    []point // rising
	Back    [2]point
	HasBack bool
}

type gridLine struct {
	At    float64
	Label string
}

type panel struct {
	X, Y         float64
	Title        string
	XGrid, YGrid []gridLine
	Lines        []line
	Possible     []point // dashed
}

type chartRow struct {
	Y      float64
	Title  string
	Panels [2]panel
}

const (
	colorBare    = "#c2410c"
	colorWrapped = "#0f766e"
)

var chartTemplate = template.Must(template.New("chart").Parse(`<svg xmlns="http://www.w3.org/2000/svg" width="{{.Width}}" height="{{.Height}}" viewBox="0 0 {{.Width}} {{.Height}}" font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#334155">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="16" y="26" font-size="16" font-weight="bold" fill="#0f172a">A server under overload, as it is and behind middleware.Wrap</text>
<line x1="16" y1="43" x2="40" y2="43" stroke="{{.Bare}}" stroke-width="2.5"/><text x="46" y="47">unprotected</text>
<line x1="136" y1="43" x2="160" y2="43" stroke="{{.Wrapped}}" stroke-width="2.5"/><text x="166" y="47">wrapped</text>
<line x1="236" y1="43" x2="260" y2="43" stroke="#94a3b8" stroke-width="1.5" stroke-dasharray="5 4"/><text x="266" y="47">possible</text>
<circle cx="342" cy="43" r="4" fill="#ffffff" stroke="#334155" stroke-width="1.5"/><text x="352" y="47">after the surge</text>
{{- range .Rows}}
<text x="16" y="{{.Y}}" font-weight="bold" fill="#0f172a">{{.Title}}</text>
{{- range .Panels}}{{$p := .}}
<g transform="translate({{.X}} {{.Y}})">
<text x="0" y="-8">{{.Title}}</text>
{{- range .YGrid}}
<line x1="0" y1="{{.At}}" x2="{{$.PanelWidth}}" y2="{{.At}}" stroke="#e2e8f0"/><text x="-6" y="{{.At}}" dy="4" text-anchor="end">{{.Label}}</text>
{{- end}}
{{- range .XGrid}}
<line x1="{{.At}}" y1="0" x2="{{.At}}" y2="{{$.PanelHeight}}" stroke="#e2e8f0"/><text x="{{.At}}" y="{{$.PanelHeight}}" dy="16" text-anchor="middle">{{.Label}}</text>
{{- end}}
{{- with .Possible}}
<polyline points="{{range .}}{{.X}},{{.Y}} {{end}}" fill="none" stroke="#94a3b8" stroke-width="1.5" stroke-dasharray="5 4"/>
{{- end}}
{{- range .Lines}}{{$c := .Color}}
<polyline points="{{range .Path}}{{.X}},{{.Y}} {{end}}" fill="none" stroke="{{$c}}" stroke-width="2.5" stroke-linejoin="round"/>
{{- range .Path}}
<circle cx="{{.X}}" cy="{{.Y}}" r="3" fill="{{$c}}"/>
{{- end}}
{{- if .HasBack}}{{$a := index .Back 0}}{{$b := index .Back 1}}
<line x1="{{$a.X}}" y1="{{$a.Y}}" x2="{{$b.X}}" y2="{{$b.Y}}" stroke="{{$c}}" stroke-dasharray="2 4"/>
<circle cx="{{$b.X}}" cy="{{$b.Y}}" r="4" fill="#ffffff" stroke="{{$c}}" stroke-width="1.5"/>
{{- end}}
{{- end}}
</g>
{{- end}}
{{- end}}
<text x="16" y="{{.FootY}}" font-size="11" fill="#64748b">{{.Foot}}</text>
</svg>
`))

// chart draws what was measured.
func chart(p plan, all []outcome) ([]byte, error) {
	type data struct {
		Width, Height, PanelWidth, PanelHeight int
		Bare, Wrapped                          string
		Rows                                   []chartRow
		FootY                                  int
		Foot                                   string
	}
	d := data{
		Width: chartWidth, Height: chartTop + rowPitch*len(all) + 28,
		PanelWidth: panelWidth, PanelHeight: panelHeight,
		Bare: colorBare, Wrapped: colorWrapped,
		FootY: chartTop + rowPitch*len(all) + 14,
		Foot: fmt.Sprintf("Open loop, keep-alive, %v a step; latency from the moment a request was due; clients give up after %v; GOMAXPROCS=%d for each server.",
			p.d, patience, p.procs),
	}
	for i, o := range all {
		y := float64(chartTop + rowPitch*i)
		x := loadScale(o)
		most := 0.0
		for j := range o.bare {
			most = max(most, o.bare[j].good, o.wrapped[j].good, o.wrapped[j].possible)
		}
		answers := panel{X: panelLeft, Y: y + 44, Title: "answers within " + inTime.String() + ", a second", XGrid: loadGrid(o)}
		unit := roundStep(most / 4)
		topValue := unit * math.Ceil(most*1.02/unit)
		up := func(v float64) float64 { return round1(panelHeight * (1 - v/topValue)) }
		for v := 0.0; v <= topValue+unit/2; v += unit {
			answers.YGrid = append(answers.YGrid, gridLine{up(v), fmt.Sprintf("%.0f", v)})
		}
		rate := func(r result) point { return point{x(r.step.load), up(r.good)} }
		answers.Lines = []line{lineOf(colorBare, o.bare, rate), lineOf(colorWrapped, o.wrapped, rate)}
		for _, r := range o.wrapped {
			if !r.step.back {
				answers.Possible = append(answers.Possible, point{x(r.step.load), up(r.possible)})
			}
		}

		slow := panel{X: panelLeft + panelPitch, Y: y + 44, Title: "99th percentile of what was not refused", XGrid: loadGrid(o)}
		slowest := time.Second
		for j := range o.bare {
			slowest = max(slowest, o.bare[j].p99, o.wrapped[j].p99) // on a swamped machine, beyond what clients wait
		}
		ms := func(d time.Duration) float64 {
			v := max(d.Seconds()*1000, 1)
			return round1(panelHeight * (1 - math.Log10(v)/math.Log10(slowest.Seconds()*1000)))
		}
		for _, g := range []time.Duration{time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, time.Second} {
			slow.YGrid = append(slow.YGrid, gridLine{ms(g), g.String()})
		}
		late := func(r result) point { return point{x(r.step.load), ms(r.p99)} }
		slow.Lines = []line{lineOf(colorBare, o.bare, late), lineOf(colorWrapped, o.wrapped, late)}
		d.Rows = append(d.Rows, chartRow{
			Y:      y + 16,
			Title:  fmt.Sprintf("%s: %s; capacity %.0f/s", o.profile.name, o.profile.what, o.cal.capacity),
			Panels: [2]panel{answers, slow},
		})
	}
	var b bytes.Buffer
	err := chartTemplate.Execute(&b, d)
	return b.Bytes(), err
}

func lineOf(color string, rs []result, at func(result) point) line {
	l := line{Color: color}
	for _, r := range rs {
		if !r.step.back {
			l.Path = append(l.Path, at(r))
			continue
		}
		if n := len(l.Path); n > 0 {
			l.Back, l.HasBack = [2]point{l.Path[n-1], at(r)}, true
		}
	}
	return l
}

// loadScale places loads on a logarithmic axis.
func loadScale(o outcome) func(float64) float64 {
	low, high := math.Inf(1), 0.0
	for _, r := range o.wrapped {
		low, high = min(low, r.step.load), max(high, r.step.load)
	}
	return func(v float64) float64 {
		return round1(panelWidth * (.03 + .94*math.Log(v/low)/math.Log(high/low)))
	}
}

func loadGrid(o outcome) []gridLine {
	x := loadScale(o)
	var g []gridLine
	for _, r := range o.wrapped {
		if !r.step.back {
			g = append(g, gridLine{x(r.step.load), fmt.Sprintf("%gx", r.step.load)})
		}
	}
	return g
}

// roundStep returns the next number up that is 1, 2 or 5 times a power of ten.
func roundStep(v float64) float64 {
	p := math.Pow(10, math.Floor(math.Log10(max(v, 1))))
	for _, f := range []float64{1, 2, 5} {
		if v <= f*p {
			return f * p
		}
	}
	return 10 * p
}

func round1(v float64) float64 { return math.Round(v*10) / 10 }
