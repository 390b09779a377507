package main

import (
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"

	"den/internal/image"
)

func (o *historyOptions) row(h image.HistoryRow) map[string]any {
	created := time.Unix(h.Created, 0)
	since, size := ago(created), units.HumanSizeWithPrecision(float64(h.Size), 3)
	if !o.human {
		since, size = created.Format(time.RFC3339), strconv.FormatInt(h.Size, 10)
	}
	if h.Created == 0 {
		since = "N/A"
	}
	id := h.ID
	if !strings.HasPrefix(id, "<") {
		id = shortDigest(id, o.noTrunc)
	}
	return map[string]any{
		"ID": id, "CreatedSince": since, "CreatedAt": created.Format(time.RFC3339),
		"CreatedBy": truncated(strings.ReplaceAll(h.CreatedBy, "\t", " "), o.noTrunc), "Size": size, "Comment": h.Comment,
	}
}
