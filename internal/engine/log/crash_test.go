package log

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const pumpDirEnv = "DEN_TEST_PUMP_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(pumpDirEnv); dir != "" {
		pumpUntilKilled(dir)
	}
	os.Exit(m.Run())
}

// pumpUntilKilled is the den that is killed.
func pumpUntilKilled(dir string) {
	l, err := Open(filepath.Join(dir, "log"), Options{MaxBytes: 8 << 20, MaxFiles: 100})
	if err == nil {
		var r *os.File
		if r, err = os.OpenFile(filepath.Join(dir, "fifo"), os.O_RDWR|unix.O_NONBLOCK, 0); err == nil {
			var p *Pump
			if p, err = l.Pump(Stdout, r); err == nil {
				<-p.Done()
			}
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func TestNothingIsLostOrDoubledWhenDenIsKilled(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The holder keeps the FIFO; the program writes on while nobody reads.
	hold, err := os.OpenFile(filepath.Join(dir, "fifo"), os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	w, err := os.OpenFile(filepath.Join(dir, "fifo"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var want bytes.Buffer
	for i := range 3_000_000 {
		fmt.Fprintf(&want, "%d\n", i)
	}
	written := make(chan error, 1)
	go func() {
		_, err := w.Write(want.Bytes())
		written <- err
	}()
	for range 12 {
		child := exec.Command("/proc/self/exe")
		child.Env = append(os.Environ(), pumpDirEnv+"="+dir)
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		awaitGrowth(t, filepath.Join(dir, "log"))
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = child.Wait()
	}
	l, err := Open(filepath.Join(dir, "log"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p, err := l.Pump(Stdout, hold)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-written, p.Finish()); err != nil {
		t.Fatal(err)
	}
	c, err := l.Cursor()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var got bytes.Buffer
	for {
		chunk, err := c.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got.Write(chunk.Data)
	}
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Errorf("%d bytes of %d", got.Len(), want.Len())
	}
}

// awaitGrowth returns when the child has moved something, or has had its time.
func awaitGrowth(t *testing.T, dir string) {
	t.Helper()
	size := func() (sum int64) {
		files, _ := filepath.Glob(filepath.Join(dir, "*"+dataSuffix))
		for _, f := range files {
			if fi, err := os.Stat(f); err == nil {
				sum += fi.Size()
			}
		}
		return sum
	}
	before := size()
	for range 100 {
		if size() > before {
			return
		}
		time.Sleep(time.Millisecond)
	}
}
