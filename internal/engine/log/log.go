// Package log keeps what a container writes to its standard streams: every byte
// once, in the order of arrival, also if den is killed at any instant.
//
// A log is a directory of numbered segments. A segment is two files: the bytes
// as they came ("1.data"), and an index ("1.index") of entries of 16 bytes,
// little endian: where in the data a run of bytes begins (62 bits) and whose it
// is (the two bits above), and when it came (nanoseconds since 1970). An entry is
// written before its bytes are. The bytes go from the program's pipe into the
// file by splice(2), which takes from the pipe exactly what it has put into the
// file, so whoever goes on after a kill finds the rest in the pipe: an entry
// without bytes says nothing, and a run ends where the next entry begins.
//
// One process writes at a time; any number read, each at its own pace, from the
// files. An entry of no stream marks the end of a run of the container.
package log

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Stream is whose bytes they are.
type Stream uint8

// The streams of a program. Mark has no bytes.
const (
	Mark Stream = iota
	Stdout
	Stderr
)

const (
	dataSuffix  = ".data"
	indexSuffix = ".index"
	entryBytes  = 16
	streamShift = 62
	offsetMask  = 1<<streamShift - 1
)

// An entry of the index.
type entry struct {
	offset int64
	stream Stream
	nanos  int64
}

func (e entry) appendTo(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(e.offset)|uint64(e.stream)<<streamShift)
	return binary.LittleEndian.AppendUint64(b, uint64(e.nanos))
}

func parseEntry(b []byte) entry {
	word := binary.LittleEndian.Uint64(b)
	return entry{
		offset: int64(word & offsetMask), stream: Stream(word >> streamShift),
		nanos: int64(binary.LittleEndian.Uint64(b[8:])),
	}
}

func (e entry) time() time.Time { return time.Unix(0, e.nanos).UTC() }

// A segment is an open pair of files.
type segment struct {
	number      int
	data, index *os.File
}

func segmentPath(dir string, number int) string { return filepath.Join(dir, strconv.Itoa(number)) }

func openSegment(dir string, number, flags int) (*segment, error) {
	path := segmentPath(dir, number)
	// Who finds the index finds the data: they are made in this order.
	data, err := os.OpenFile(path+dataSuffix, flags, 0o600)
	if err != nil {
		return nil, err
	}
	index, err := os.OpenFile(path+indexSuffix, flags, 0o600)
	if err != nil {
		return nil, errors.Join(err, data.Close())
	}
	return &segment{number, data, index}, nil
}

func (s *segment) close() error { return errors.Join(s.data.Close(), s.index.Close()) }

// size is how many bytes there are.
func (s *segment) size() (int64, error) {
	fi, err := s.data.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// entries is how many entries are complete.
func (s *segment) entries() (int64, error) {
	fi, err := s.index.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size() / entryBytes, nil
}

func (s *segment) entry(n int64) (entry, error) {
	var b [entryBytes]byte
	if _, err := s.index.ReadAt(b[:], n*entryBytes); err != nil {
		return entry{}, err
	}
	return parseEntry(b[:]), nil
}

// segments lists the numbers of the complete segments, oldest first.
func segments(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), indexSuffix)
		if n, err := strconv.Atoi(name); ok && err == nil && n > 0 {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// Remove deletes the log in dir.
func Remove(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove log: %w", err)
	}
	return nil
}

func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
