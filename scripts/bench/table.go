package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// A cell is a row of the table and the peer.
type cell struct{ part, peer string }

// A table collects samples.
type table struct {
	cells map[cell][]sample
	rows  []string
}

// weigh gives a cell's samples the memory of one that was not timed.
func (t *table) weigh(c cell, weighed sample) {
	for i := range t.cells[c] {
		t.cells[c][i].rssMiB = weighed.rssMiB
	}
}

func (t *table) add(c cell, s sample) {
	if !slices.Contains(t.rows, c.part) {
		t.rows = append(t.rows, c.part)
	}
	t.cells[c] = append(t.cells[c], s)
}

// median of what of gives for each sample.
func median[T cmp.Ordered](list []sample, of func(sample) T) T {
	values := make([]T, len(list))
	for i, s := range list {
		values[i] = of(s)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

func wallSeconds(s sample) float64 { return s.wall.Seconds() }
func cpuSeconds(s sample) float64  { return s.cpu.Seconds() }

// ratio is the median over the rounds of one peer's value by the other's of the
// same round, which were taken one after the other.
func ratio(a, b []sample, of func(sample) float64) string {
	var pairs []float64
	for i := range min(len(a), len(b)) {
		if of(b[i]) > 0 {
			pairs = append(pairs, of(a[i])/of(b[i]))
		}
	}
	if len(pairs) == 0 {
		return ""
	}
	slices.Sort(pairs)
	return fmt.Sprintf("%.2f", pairs[len(pairs)/2])
}

// markdown is the table: medians, wall and CPU seconds, ratios of the rounds.
func (t *table) markdown() string {
	var b strings.Builder
	b.WriteString("| workload | den s (CPU) | range s | peak MiB | store MB | floor s (CPU) | BuildKit s (CPU) | peak MiB | store MB | den/floor wall, CPU | den/BuildKit wall, CPU |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, row := range t.rows {
		d, f, k := t.cells[cell{row, "den"}], t.cells[cell{row, "floor"}], t.cells[cell{row, "buildkit"}]
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", row,
			times(d), spread(d), memory(d), growth(d), times(f), times(k), memory(k), growth(k), both(d, f), both(d, k))
	}
	return b.String()
}

func times(list []sample) string {
	if len(list) == 0 {
		return ""
	}
	return fmt.Sprintf("%.3f (%.2f)", median(list, wallSeconds), median(list, cpuSeconds))
}

func spread(list []sample) string {
	if len(list) == 0 {
		return ""
	}
	least := slices.MinFunc(list, func(a, b sample) int { return cmp.Compare(a.wall, b.wall) })
	most := slices.MaxFunc(list, func(a, b sample) int { return cmp.Compare(a.wall, b.wall) })
	return fmt.Sprintf("%.3f-%.3f", least.wall.Seconds(), most.wall.Seconds())
}

// memory is the largest peak of all rounds.
func memory(list []sample) string {
	if len(list) == 0 {
		return ""
	}
	most := slices.MaxFunc(list, func(a, b sample) int { return cmp.Compare(a.rssMiB, b.rssMiB) })
	if most.rssMiB == 0 {
		return ""
	}
	return fmt.Sprint(most.rssMiB)
}

func growth(list []sample) string {
	if len(list) == 0 {
		return ""
	}
	if mb := median(list, func(s sample) float64 { return s.growthMB }); mb != 0 {
		return fmt.Sprintf("%.0f", mb)
	}
	return ""
}

func both(a, b []sample) string {
	wall := ratio(a, b, wallSeconds)
	if wall == "" {
		return ""
	}
	if cpu := ratio(a, b, cpuSeconds); cpu != "" {
		return wall + ", " + cpu
	}
	return wall
}
