package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"strings"
	"text/tabwriter"
	"text/template"
)

// A table prints rows as docker does: as a table with headers, through a Go
// template (--format '{{.ID}}', or 'table {{.ID}}'), or as JSON lines.
type table struct {
	// columns are the template names and headers of the default table.
	columns []column
	// headers names every field that a template of the user may use.
	headers map[string]string
	format  string
	quiet   bool
	// id is the field that -q prints.
	id string
}

type column struct {
	field, header string
}

// A row is what a template sees of an object.
type row map[string]any

// allLabels is the field of a row's labels one by one, which no template can name.
const allLabels = ""

// headLabels is allLabels of a table's head.
type headLabels struct{}

// Label is the value of a label, docker's {{.Label "name"}}, or what docker heads its column with.
func (r row) Label(name string) string {
	if _, head := r[allLabels].(headLabels); head {
		return strings.NewReplacer("-", " ", "_", " ").Replace(name[strings.LastIndexByte(name, '.')+1:])
	}
	labels, _ := r[allLabels].(map[string]string)
	return labels[name]
}

// MarshalJSON writes the fields, with <, > and & escaped as docker's rows have them.
func (r row) MarshalJSON() ([]byte, error) {
	fields := maps.Clone(map[string]any(r))
	delete(fields, allLabels)
	return json.Marshal(fields)
}

// print writes rows, each a struct or a map with the fields that columns name.
func (t table) print(w io.Writer, rows []map[string]any) error {
	format, isTable := t.format, false
	switch {
	case t.quiet && format == "":
		format = "{{." + t.id + "}}"
	case format == "json":
		format = "{{json .}}"
	case format == "" || format == "table":
		format, isTable = t.defaultFormat(), true
	case strings.HasPrefix(format, "table "):
		format, isTable = strings.TrimPrefix(format, "table "), true
	}
	format = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(format)
	tmpl, err := parseTemplate(format)
	if err != nil {
		return err
	}
	if !isTable {
		return executeRows(w, tmpl, rows)
	}
	var buf bytes.Buffer
	head := map[string]any{allLabels: headLabels{}}
	for k, v := range t.headers {
		head[k] = v
	}
	for _, c := range t.columns {
		head[c.field] = c.header
	}
	if err := executeRows(&buf, tmpl, append([]map[string]any{head}, rows...)); err != nil {
		return err
	}
	tw := tabwriter.NewWriter(w, 10, 1, 3, ' ', 0)
	if _, err := tw.Write(buf.Bytes()); err != nil {
		return err
	}
	return tw.Flush()
}

func (t table) defaultFormat() string {
	fields := make([]string, len(t.columns))
	for i, c := range t.columns {
		fields[i] = "{{." + c.field + "}}"
	}
	return strings.Join(fields, "\t")
}

func parseTemplate(format string) (*template.Template, error) {
	tmpl, err := template.New("").Funcs(templateFuncs()).Option("missingkey=error").Parse(format)
	if err != nil {
		return nil, &usageError{fmt.Sprintf("template parsing error: %v", err)}
	}
	return tmpl, nil
}

func executeRows(w io.Writer, tmpl *template.Template, rows []map[string]any) error {
	for _, r := range rows {
		if err := tmpl.Execute(w, row(r)); err != nil {
			return &usageError{err.Error()}
		}
		fmt.Fprintln(w)
	}
	return nil
}

// templateFuncs are the functions that docker offers in --format.
func templateFuncs() template.FuncMap {
	return template.FuncMap{
		"json": func(v any) (string, error) {
			var b bytes.Buffer
			enc := json.NewEncoder(&b)
			enc.SetEscapeHTML(false)
			err := enc.Encode(v)
			return strings.TrimSuffix(b.String(), "\n"), err
		},
		"split": strings.Split,
		"join":  strings.Join,
		"title": func(s string) string {
			if s == "" {
				return s
			}
			return strings.ToUpper(s[:1]) + s[1:]
		},
		"lower": strings.ToLower,
		"upper": strings.ToUpper,
		"pad": func(s string, before, after int) string {
			if s == "" {
				return s
			}
			return strings.Repeat(" ", before) + s + strings.Repeat(" ", after)
		},
		"truncate": func(s string, n int) string {
			if len(s) > n {
				return s[:n]
			}
			return s
		},
		"println": fmt.Sprintln,
	}
}

// printFormatted writes v through a template, or as indented JSON.
func printFormatted(w io.Writer, format string, v any) error {
	switch format {
	case "":
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "    ")
		return enc.Encode(v)
	case "json":
		format = "{{json .}}"
	}
	tmpl, err := parseTemplate(strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(format))
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := tmpl.Execute(&b, v); err != nil {
		// As with docker, a template may use the names of the JSON instead.
		b.Reset()
		if raw, rerr := asMap(v); rerr != nil || tmpl.Execute(&b, raw) != nil {
			return &usageError{fmt.Sprintf("template parsing error: %v", err)}
		}
	}
	_, err = fmt.Fprintln(w, b.String())
	return err
}

// asMap is v as its JSON has it.
func asMap(v any) (raw any, err error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	err = dec.Decode(&raw)
	return raw, err
}
