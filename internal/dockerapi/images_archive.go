package dockerapi

import (
	"net/http"
	"strings"

	denimage "den/internal/image"
)

// saveImages streams an archive of the images that the path or the query names.
func (s *Server) saveImages(w http.ResponseWriter, c *call) error {
	images, err := s.images()
	if err != nil {
		return err
	}
	names := []string{c.name}
	if c.name == "" {
		names = nil
		for _, v := range c.query["names"] {
			names = append(names, strings.Split(v, ",")...)
		}
	}
	names = nonEmpty(names)
	if len(names) == 0 {
		return invalid("no names of images given")
	}
	for _, name := range names {
		if _, err := images.Inspect(c.Context(), name, nil); err != nil {
			return imageError(err, name)
		}
	}
	out, err := c.flushed(w, "application/x-tar")
	if err != nil {
		return err
	}
	if err := images.Save(c.Context(), out, names, denimage.Format{}); err != nil {
		return err
	}
	for _, name := range names {
		s.emit("save", name, nil)
	}
	return nil
}

// loadImages reads an archive out of the body.
func (s *Server) loadImages(w http.ResponseWriter, c *call) error {
	images, err := s.images()
	if err != nil {
		return err
	}
	p, err := c.platform(48)
	if err != nil {
		return err
	}
	out := c.lines(w)
	out.quiet = c.flagOr("quiet", true)
	loaded, err := images.Load(c.Context(), c.Body, denimage.LoadOptions{Platform: p, Sink: out})
	if err != nil {
		return out.fail(err)
	}
	for _, l := range loaded {
		out.send(progressLine{Stream: l.String() + "\n"})
		s.emit("load", string(l.ConfigDigest), nil)
	}
	return nil
}
