package doctor

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Style is how a Report is shown.
type Style struct {
	// Width is the terminal's in columns; 0 does not wrap.
	Width int
	// Colour marks statuses with colours.
	Colour bool
}

// Print shows a Report to a person.
func (r Report) Print(w io.Writer, s Style) error {
	p := printer{Style: s}
	p.line("", "", fmt.Sprintf("den %s: %s", r.Version, r.headline()))
	for _, area := range []struct{ name, title string }{
		{areaOuter, "The container around den allows"}, {areaRung, "den chose"}, {areaServe, "den serve"}, {areaStore, "Store"},
		{areaLimits, "Limits"}, {areaRegistry, "Registries"}, {areaClock, "Clock"},
	} {
		p.b.WriteString("\n" + area.title + "\n")
		for _, c := range r.Checks {
			if c.Area == area.name {
				p.check(c, r)
			}
		}
	}
	_, err := io.WriteString(w, p.b.String())
	return err
}

func (r Report) headline() string {
	name := r.Rung.Name
	if r.Rung.Platform != "" {
		name += " (sentry, " + r.Rung.Platform + ")"
	}
	switch r.Verdict {
	case Unfit:
		return "it cannot work here"
	case Limited:
		return "it works, with shortfalls, on rung " + name
	}
	return "it works, on rung " + name
}

type printer struct {
	Style
	b strings.Builder
}

// Columns of the report.
const (
	statusColumns = 7
	nameColumns   = 14
	toolColumns   = 12
)

// words are how statuses are shown; of facts, what is not allowed is a plain no.
func (c Check) word() (word, colour string) {
	switch {
	case c.Status == OK && c.Area == areaOuter:
		return "yes", "32"
	case c.Status == Note && c.Area == areaOuter:
		return "no", "33"
	case c.Status == OK:
		return "ok", "32"
	case c.Status == Note:
		return "note", "36"
	case c.Status == Short:
		return "short", "33"
	}
	return "bad", "31"
}

func (p *printer) check(c Check, r Report) {
	word, colour := c.word()
	name := c.ID
	if c.ID != c.Area {
		name = strings.TrimPrefix(name, c.Area+".")
	}
	if c.Area == areaRegistry { // its text begins with the host
		name = areaRegistry
	}
	lead := "  " + p.paint(word, colour) + strings.Repeat(" ", max(1, statusColumns-len(word))) + fmt.Sprintf("%-*s", nameColumns, name)
	p.line(lead, strings.Repeat(" ", 2+statusColumns+nameColumns), c.Text)
	if c.ID == "rung" {
		for _, cannot := range r.Rung.Cannot {
			p.line(strings.Repeat(" ", 2+statusColumns)+fmt.Sprintf("%-*s", nameColumns, "  but not"), strings.Repeat(" ", 2+statusColumns+nameColumns), cannot)
		}
	}
	if c.Fix != nil {
		p.fix(*c.Fix)
	}
}

// fix shows the lines as they are, however narrow the terminal is: they are there
// to be copied.
func (p *printer) fix(f Fix) {
	for _, t := range []struct {
		tool  string
		lines []string
	}{
		{"docker run", nonEmpty(f.Docker)}, {"compose", f.Compose}, {"kubernetes", f.Kubernetes}, {"gitlab", f.GitLab}, {"machine", f.Machine}, {"den", f.Den},
	} {
		for i, line := range t.lines {
			if i > 0 {
				t.tool = ""
			}
			tool := fmt.Sprintf("%-*s", toolColumns, t.tool)
			p.b.WriteString(strings.Repeat(" ", 2+statusColumns) + p.paint(tool, "2") + line + "\n")
		}
	}
}

func nonEmpty(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

func (p *printer) paint(s, colour string) string {
	if !p.Colour {
		return s
	}
	return "\x1b[" + colour + "m" + s + "\x1b[0m"
}

// minText is the narrowest column of text that is worth having: below, the text
// begins at the left.
const minText = 24

// line writes text after lead, wrapped at words, further lines after indent. Control
// characters of text are dropped.
func (p *printer) line(lead, indent, text string) {
	for i, part := range strings.Split(text, "\n") {
		if i > 0 {
			lead = indent
		}
		p.wrap(lead, indent, part)
	}
}

func (p *printer) wrap(lead, indent, text string) {
	words := strings.FieldsFunc(text, func(r rune) bool { return r <= ' ' || r == 0x7f })
	width := p.Width - utf8.RuneCountInString(indent)
	if p.Width > 0 && width < minText && lead != "" {
		p.b.WriteString(strings.TrimRight(lead, " ") + "\n")
		lead, indent = "    ", "    "
		width = max(1, p.Width-len(indent))
	}
	p.b.WriteString(lead)
	column := 0
	for _, w := range words {
		n := utf8.RuneCountInString(w)
		switch {
		case column == 0:
		case p.Width > 0 && column+1+n > width:
			p.b.WriteString("\n" + indent)
			column = 0
		default:
			p.b.WriteByte(' ')
			column++
		}
		p.b.WriteString(w)
		column += n
	}
	p.b.WriteByte('\n')
}
