package gofer

import (
	"sync"

	"golang.org/x/sys/unix"

	"den/internal/sys"
)

// maxRemembered bounds the records that are kept in memory.
const maxRemembered = 1 << 18

// A fileID names a file as long as it exists.
type fileID struct {
	major, minor uint32
	ino          uint64
}

func idOf(st *unix.Statx_t) fileID { return fileID{st.Dev_major, st.Dev_minor, st.Ino} }

// memory keeps the records that no attribute can hold, as long as the tree is
// served.
type memory struct {
	mu sync.RWMutex
	of map[fileID]sys.Inode
}

func newMemory() memory { return memory{of: map[fileID]sys.Inode{}} }

func (m *memory) get(id fileID) (sys.Inode, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	i, ok := m.of[id]
	return i, ok
}

func (m *memory) set(id fileID, i sys.Inode) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.of[id]; !ok && len(m.of) >= maxRemembered {
		return unix.ENOSPC
	}
	m.of[id] = i
	return nil
}

func (m *memory) drop(id fileID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.of, id)
}

func (m *memory) empty() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return len(m.of) == 0
}
