package layer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

func TestCompressedBytesDependOnContentAndLevelOnly(t *testing.T) {
	text := []byte(strings.Repeat("the same bytes give the same bytes\n", 100000))
	for _, c := range []Compression{Uncompressed, Gzip, Zstd} {
		for _, level := range []int{DefaultLevel, 1, 5} {
			var packed [2]bytes.Buffer
			for i, piece := range []int{len(text), 1000} {
				w, err := Compress(&packed[i], c, level)
				if err != nil {
					t.Fatal(err)
				}
				for rest := text; len(rest) > 0; rest = rest[min(piece, len(rest)):] {
					if _, err := w.Write(rest[:min(piece, len(rest))]); err != nil {
						t.Fatal(err)
					}
				}
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(packed[0].Bytes(), packed[1].Bytes()) {
				t.Errorf("%s level %d: the result depends on the sizes of writes", c, level)
			}
			r, got, err := Decompress(&packed[0])
			if err != nil {
				t.Fatal(err)
			}
			back, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(back, text) || got != c || r.Close() != nil {
				t.Errorf("%s level %d came back as %s, %d bytes: %v", c, level, got, len(back), err)
			}
		}
	}
}

func TestUnknownCompressionsAndLevelsAreRefused(t *testing.T) {
	for c, level := range map[Compression]int{Gzip: 10, Zstd: 23, Bzip2: 1, "lz4": 1} {
		if _, err := Compress(io.Discard, c, level); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s level %d: %v", c, level, err)
		}
	}
}

func TestPlainAndShortStreamsComeBackAsTheyAre(t *testing.T) {
	for _, text := range []string{"", "a", "BZh9 is no bzip2", "\x1f\x8b", strings.Repeat("x", 5000)} {
		r, c, err := Decompress(strings.NewReader(text))
		if err != nil || c != Uncompressed {
			t.Fatalf("%q: %s, %v", text, c, err)
		}
		if back, err := io.ReadAll(r); err != nil || string(back) != text {
			t.Errorf("%q came back as %q, %v", text, back, err)
		}
	}
}

// "hello\n" packed by bzip2 and by xz -0.
const (
	helloBzip2 = "BZh91AY&SY\xc1\xc0\x80\xe2\x00\x00\x01\x41\x00\x00\x10\x02\x44\xa0\x00\x30\xcd\x00\xc3\x46\x29\x97\x17\x72\x45\x38\x50\x90\xc1\xc0\x80\xe2"
)

func TestBzip2AndXZAreRecognised(t *testing.T) {
	var packed bytes.Buffer
	w, err := xz.NewWriter(&packed)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(w, "hello\n")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for c, data := range map[Compression]string{Bzip2: helloBzip2, XZ: packed.String()} {
		r, got, err := Decompress(strings.NewReader(data))
		if err != nil || got != c {
			t.Fatalf("%s: %s, %v", c, got, err)
		}
		if back, err := io.ReadAll(r); err != nil || string(back) != "hello\n" {
			t.Errorf("%s: %q, %v", c, back, err)
		}
	}
}

func TestDecodersRefuseHugeWindows(t *testing.T) {
	// zstd: magic, frame header with a window descriptor of 2 GiB.
	frame := append(binary.LittleEndian.AppendUint32(nil, 0xfd2fb528), 0, 21<<3, 1, 0, 0)
	if r, _, err := Decompress(bytes.NewReader(frame)); err == nil {
		if _, err = io.ReadAll(r); err != zstd.ErrWindowSizeExceeded {
			t.Errorf("zstd: %v", err)
		}
	}
	// A harmless stream before it must not hide what a later one wants.
	small := packXZ(t, xz.WriterConfig{DictCap: 1 << 16}, []byte("hello\n"))
	huge := packXZ(t, xz.WriterConfig{DictCap: 1 << 29}, []byte("hello\n"))
	for name, data := range map[string][]byte{"first": huge, "second": slices.Concat(small, make([]byte, 8), huge)} {
		r, _, err := Decompress(bytes.NewReader(data))
		if err == nil {
			_, err = io.ReadAll(r)
		}
		if err == nil || !strings.Contains(err.Error(), "dictionary of 512 MiB") {
			t.Errorf("xz, %s stream: %v", name, err)
		}
	}
}

func packXZ(t *testing.T, c xz.WriterConfig, data []byte) []byte {
	t.Helper()
	var packed bytes.Buffer
	w, err := c.NewWriter(&packed)
	if err == nil {
		_, err = w.Write(data)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

// What guards the decoder has to follow every frame that there is: blocks,
// checks, raw chunks, an index of many records, streams with padding.
func TestXZOfManyFramesComesBack(t *testing.T) {
	random := make([]byte, 300<<10)
	if _, err := rand.NewChaCha8([32]byte{}).Read(random); err != nil {
		t.Fatal(err)
	}
	text := bytes.Repeat([]byte("some text that can be packed "), 1<<12)
	var packed, want []byte
	for _, c := range []xz.WriterConfig{
		{CheckSum: xz.CRC32}, {CheckSum: xz.CRC64, BlockSize: 4001}, {CheckSum: xz.SHA256, BlockSize: 1 << 16}, {NoCheckSum: true, BlockSize: 1 << 17},
	} {
		for _, data := range [][]byte{text, random, nil, slices.Concat(text, random, text)} {
			packed = slices.Concat(packed, packXZ(t, c, data), make([]byte, 4))
			want = append(want, data...)
		}
	}
	r, c, err := Decompress(iotest.HalfReader(bytes.NewReader(packed)))
	if err != nil || c != XZ {
		t.Fatalf("%s, %v", c, err)
	}
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes came back as %d, %v", len(want), len(got), err)
	}
	r, _, err = Decompress(bytes.NewReader(packed[:len(packed)-1000]))
	if err == nil {
		_, err = io.ReadAll(r)
	}
	if err == nil {
		t.Error("a truncated stream is no error")
	}
}

func FuzzDecompress(f *testing.F) {
	f.Add([]byte(helloBzip2))
	f.Add([]byte("\x1f\x8b\x08\x00"))
	f.Add([]byte("\x28\xb5\x2f\xfd\x00\x58"))
	f.Add([]byte("\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4\x46\x02\x00\x21\x01\x16\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, _, err := Decompress(bytes.NewReader(data))
		if err != nil {
			return
		}
		_, _ = io.CopyN(io.Discard, r, 1<<20)
		_ = r.Close()
	})
}
