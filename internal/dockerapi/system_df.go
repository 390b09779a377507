package dockerapi

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/volume"

	"den/internal/engine"
	"den/internal/store"
)

// pruneBuild removes build cache.
func (s *Server) pruneBuild(w http.ResponseWriter, c *call) error {
	f, err := c.filters("until", "unused-for", "id", "parent", "type", "description", "inuse", "shared", "private")
	if err != nil {
		return err
	}
	if s.Store == nil {
		return unavailable("this server has no store")
	}
	o := store.PruneOptions{All: c.flag("all"), Filters: map[string][]string{}}
	for name, to := range map[string]*int64{"keep-storage": &o.KeepBytes, "reserved-space": &o.KeepBytes, "max-used-space": &o.MaxUsedBytes, "min-free-space": &o.MinFreeBytes} {
		if v := c.query.Get(name); v != "" {
			if *to, err = strconv.ParseInt(v, 10, 64); err != nil || *to < 0 {
				return invalid("invalid %s %q: want bytes", name, v)
			}
		}
	}
	for _, v := range append(slices.Clone(f["until"]), f["unused-for"]...) {
		t, err := timestamp(v, time.Now())
		if err != nil {
			return err
		}
		o.Until = max(o.Until, time.Since(t), 1)
	}
	for _, key := range []string{"id", "type"} {
		if f.has(key) {
			o.Filters[key] = f[key]
		}
	}
	var out struct {
		CachesDeleted  []string
		SpaceReclaimed int64
	}
	o.Evicted = func(e store.CacheEntry) { out.CachesDeleted = append(out.CachesDeleted, e.ID) }
	if out.SpaceReclaimed, err = s.Store.Prune(c.Context(), o); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, out)
}

// cacheRecords are the build cache as GET /system/df lists it.
func (s *Server) cacheRecords(c *call) ([]build.CacheRecord, error) {
	records := []build.CacheRecord{}
	if s.Store == nil {
		return records, nil
	}
	entries, err := s.Store.CacheEntries(c.Context())
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		used := e.LastUsed
		r := build.CacheRecord{
			ID: e.ID, Type: e.Type, Description: e.Description, InUse: e.InUse, Shared: e.Shared, Size: e.SizeBytes,
			CreatedAt: e.Created, UsageCount: 1, LastUsedAt: &used,
		}
		if used.IsZero() {
			r.LastUsedAt = nil
		}
		records = append(records, r)
	}
	return records, nil
}

// diskUsage is GET /system/df: its first words, and sums since 1.52. Who asks for all of those (verbose) knows
// the sums; any other client may be an older one that takes the newest version, and gets both.
type diskUsage struct {
	LayersSize  *int64              `json:",omitempty"`
	Images      []imageSummary      `json:",omitzero"`
	Containers  []*summary          `json:",omitzero"`
	Volumes     []volume.Volume     `json:",omitzero"`
	BuildCache  []build.CacheRecord `json:",omitzero"`
	BuilderSize *int64              `json:",omitempty"`

	ImageUsage      *usage `json:",omitempty"`
	ContainerUsage  *usage `json:",omitempty"`
	VolumeUsage     *usage `json:",omitempty"`
	BuildCacheUsage *usage `json:",omitempty"`
}

// usage sums up one kind of object.
type usage struct {
	ActiveCount int64
	TotalCount  int64
	Reclaimable int64
	TotalSize   int64
	Items       any `json:",omitempty"`
}

func (s *Server) diskUsage(w http.ResponseWriter, c *call) error {
	var kinds []string
	if c.version >= 42 {
		kinds = c.query["type"]
	}
	for _, k := range kinds {
		if !slices.Contains([]string{"container", "image", "volume", "build-cache"}, k) {
			return invalid("unknown object type: %s", k)
		}
	}
	wants := func(kind string) bool { return len(kinds) == 0 || slices.Contains(kinds, kind) }
	containers, err := s.Engine.Containers(c.Context(), engine.WithSizes)
	if err != nil {
		return err
	}
	d := &diskUsage{}
	for _, part := range []struct {
		kind string
		add  func(*call, *diskUsage, []*engine.Container) error
	}{{"image", s.imageUsage}, {"container", s.containerUsage}, {"volume", s.volumeUsage}, {"build-cache", s.cacheUsage}} {
		if wants(part.kind) {
			if err := part.add(c, d, containers); err != nil {
				return err
			}
		}
	}
	switch {
	case c.version < usageVersion:
		d.ImageUsage, d.ContainerUsage, d.VolumeUsage, d.BuildCacheUsage = nil, nil, nil, nil
	case c.flag("verbose"):
		*d = diskUsage{ImageUsage: d.ImageUsage, ContainerUsage: d.ContainerUsage, VolumeUsage: d.VolumeUsage, BuildCacheUsage: d.BuildCacheUsage}
	default:
		for _, u := range []*usage{d.ImageUsage, d.ContainerUsage, d.VolumeUsage, d.BuildCacheUsage} {
			if u != nil {
				u.Items = nil
			}
		}
	}
	return writeJSON(w, http.StatusOK, d)
}

// usageVersion is the first whose answer has sums.
const usageVersion = 52

func (s *Server) imageUsage(c *call, d *diskUsage, containers []*engine.Container) error {
	images, err := s.images()
	if err != nil {
		return err
	}
	if d.Images, err = s.imageSummaries(c, filters{}, true); err != nil {
		return err
	}
	all, err := images.Usage(c.Context())
	if err != nil {
		return err
	}
	d.LayersSize = &all.LayersBytes
	users := countUsers(containers)
	d.ImageUsage = &usage{TotalCount: int64(len(d.Images)), TotalSize: all.LayersBytes, Items: d.Images, Reclaimable: all.LayersBytes}
	for i := range d.Images {
		one := &d.Images[i]
		if one.Containers = users[one.ID]; one.Containers > 0 {
			d.ImageUsage.ActiveCount++
			d.ImageUsage.Reclaimable -= one.Size - one.SharedSize
		}
	}
	d.ImageUsage.Reclaimable = max(0, d.ImageUsage.Reclaimable)
	return nil
}

func (s *Server) containerUsage(c *call, d *diskUsage, containers []*engine.Container) error {
	d.Containers = []*summary{}
	u := &usage{TotalCount: int64(len(containers))}
	for _, one := range containers {
		d.Containers = append(d.Containers, summarise(one, c.version, time.Now()))
		var bytes int64
		if one.WritableBytes != nil {
			bytes = *one.WritableBytes
		}
		u.TotalSize += bytes
		if one.State.Running {
			u.ActiveCount++
		} else {
			u.Reclaimable += bytes
		}
	}
	u.Items = d.Containers
	d.ContainerUsage = u
	return nil
}

func (s *Server) volumeUsage(c *call, d *diskUsage, _ []*engine.Container) error {
	all, err := s.Engine.Volumes(c.Context())
	if err != nil {
		return err
	}
	users, err := s.Engine.VolumeUsers(c.Context())
	if err != nil {
		return err
	}
	d.Volumes = []volume.Volume{}
	u := &usage{TotalCount: int64(len(all))}
	for _, v := range all {
		one := volumeOf(v)
		bytes, _ := engine.VolumeBytes(v.Path) // what cannot be read is not counted
		one.UsageData = &volume.UsageData{Size: bytes, RefCount: int64(len(users[v.Name]))}
		d.Volumes = append(d.Volumes, one)
		u.TotalSize += bytes
		if len(users[v.Name]) > 0 {
			u.ActiveCount++
		} else {
			u.Reclaimable += bytes
		}
	}
	u.Items = d.Volumes
	d.VolumeUsage = u
	return nil
}

func (s *Server) cacheUsage(c *call, d *diskUsage, _ []*engine.Container) (err error) {
	if d.BuildCache, err = s.cacheRecords(c); err != nil {
		return err
	}
	u := &usage{TotalCount: int64(len(d.BuildCache)), Items: d.BuildCache}
	for _, r := range d.BuildCache {
		if !r.Shared {
			u.TotalSize += r.Size
		}
		if r.InUse {
			u.ActiveCount++
		} else if !r.Shared {
			u.Reclaimable += r.Size
		}
	}
	d.BuildCacheUsage = u
	if c.version < 42 {
		d.BuilderSize = &u.TotalSize
	}
	return nil
}
