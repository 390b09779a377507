package dockerapi

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"

	"github.com/moby/moby/api/types/container"

	"den/internal/sandbox"
)

// pathStat describes a file of a container in the header that docker cp reads.
func pathStat(w http.ResponseWriter, st sandbox.FileStat) error {
	data, err := json.Marshal(container.PathStat{
		Name: st.Name, Size: st.Size, Mode: st.Mode, Mtime: st.ModTime, LinkTarget: st.LinkTarget,
	})
	if err != nil {
		return err
	}
	w.Header().Set("X-Docker-Container-Path-Stat", base64.StdEncoding.EncodeToString(data))
	return nil
}

// archivePath is the query's path.
func (c *call) archivePath() (string, error) {
	p := c.query.Get("path")
	if p == "" {
		return "", invalid("bad parameter: path cannot be empty")
	}
	return p, nil
}

func (s *Server) statArchive(w http.ResponseWriter, c *call) error {
	p, err := c.archivePath()
	if err != nil {
		return err
	}
	st, err := s.Engine.StatPath(c.Context(), c.name, p)
	if err != nil {
		return fileError(err, p, c.name)
	}
	return pathStat(w, st)
}

func (s *Server) readArchive(w http.ResponseWriter, c *call) error {
	p, err := c.archivePath()
	if err != nil {
		return err
	}
	r, st, err := s.Engine.ReadArchive(c.Context(), c.name, p)
	if err != nil {
		return fileError(err, p, c.name)
	}
	defer r.Close()
	if err := pathStat(w, st); err != nil {
		return err
	}
	out, err := c.flushed(w, "application/x-tar")
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(out, r, make([]byte, 256<<10))
	return err
}

func (s *Server) writeArchive(_ http.ResponseWriter, c *call) error {
	p, err := c.archivePath()
	if err != nil {
		return err
	}
	// Clients send all kinds of Content-Type: what counts is what it is.
	err = s.Engine.WriteArchive(c.Context(), c.name, p, c.Body, sandbox.WriteTarOptions{
		KeepKinds:  c.flag("noOverwriteDirNonDir"),
		CopyOwners: c.flag("copyUIDGID"),
	})
	return fileError(err, p, c.name)
}

func (s *Server) export(w http.ResponseWriter, c *call) error {
	// A container that is not there is answered before the tar begins.
	found, err := s.Engine.Container(c.Context(), c.name)
	if err != nil {
		return err
	}
	out, err := c.flushed(w, "application/octet-stream")
	if err != nil {
		return err
	}
	return s.Engine.Export(c.Context(), found.ID, out)
}

func (s *Server) changes(w http.ResponseWriter, c *call) error {
	list, err := s.Engine.Changes(c.Context(), c.name)
	if err != nil {
		return err
	}
	out := []container.FilesystemChange{}
	for _, ch := range list {
		out = append(out, container.FilesystemChange{Kind: container.ChangeType(ch.Kind), Path: ch.Path})
	}
	return writeJSON(w, http.StatusOK, out)
}
