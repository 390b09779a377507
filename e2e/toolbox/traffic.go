package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// traffic serve PORT answers connections that say with their first byte what they are:
// 'u', what comes until its end is counted; 'd' and eight bytes, that much is sent; 'e',
// each byte is sent back.
//
// traffic load ADDRESS MIB REQUESTS prints, of one connection at a time: MiB/s towards the
// server and from it, and the medians in microseconds of an exchange of one byte and of a
// connection with one exchange.
//
// traffic ask SOCKET REQUEST sends a request of one line, and fails if the answer speaks of an error.
func traffic(a []string) error {
	switch {
	case len(a) == 2 && a[0] == "serve":
		return trafficServe(a[1])
	case len(a) == 3 && a[0] == "ask":
		return trafficAsk(a[1], a[2])
	case len(a) == 4 && a[0] == "load":
		mib, err := strconv.Atoi(a[2])
		if err != nil {
			return err
		}
		requests, err := strconv.Atoi(a[3])
		if err != nil {
			return err
		}
		return trafficLoad(a[1], int64(mib)<<20, requests)
	}
	return errors.New("want serve PORT, load ADDRESS MIB REQUESTS or ask SOCKET REQUEST")
}

func trafficServe(port string) error {
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			_ = trafficAnswer(c)
		}()
	}
}

func trafficAnswer(c net.Conn) error {
	b := make([]byte, 256<<10)
	if _, err := io.ReadFull(c, b[:1]); err != nil {
		return err
	}
	switch b[0] {
	case 'u':
		var n uint64
		for {
			m, err := c.Read(b) // as a program reads, not as the kernel splices
			n += uint64(m)
			if errors.Is(err, io.EOF) {
				return binary.Write(c, binary.BigEndian, n)
			}
			if err != nil {
				return err
			}
		}
	case 'd':
		var n uint64
		if err := binary.Read(c, binary.BigEndian, &n); err != nil {
			return err
		}
		for n > 0 {
			m, err := c.Write(b[:min(n, uint64(len(b)))])
			if err != nil {
				return err
			}
			n -= uint64(m)
		}
	case 'e':
		for {
			if _, err := io.ReadFull(c, b[:1]); err != nil {
				return err
			}
			if _, err := c.Write(b[:1]); err != nil {
				return err
			}
		}
	}
	return nil
}

func trafficLoad(address string, size int64, requests int) error {
	up, err := timed(func() error { return upload(address, size) })
	if err != nil {
		return err
	}
	down, err := timed(func() error { return download(address, size) })
	if err != nil {
		return err
	}
	trip, err := roundTrips(address, requests)
	if err != nil {
		return err
	}
	var calls []time.Duration
	for range requests / 4 {
		took, err := timed(func() error { _, err := roundTrips(address, 1); return err })
		if err != nil {
			return err
		}
		calls = append(calls, took)
	}
	slices.Sort(calls)
	rate := func(took time.Duration) float64 { return float64(size>>20) / took.Seconds() }
	_, err = fmt.Printf("%.1f %.1f %.1f %.1f\n", rate(up), rate(down), micro(trip), micro(calls[len(calls)/2]))
	return err
}

func micro(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

func timed(f func() error) (time.Duration, error) {
	start := time.Now()
	err := f()
	return time.Since(start), err
}

func upload(address string, size int64) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte("u")); err != nil {
		return err
	}
	b := make([]byte, 256<<10)
	for left := size; left > 0; left -= int64(len(b)) {
		if _, err := c.Write(b[:min(left, int64(len(b)))]); err != nil {
			return err
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	var n int64
	if err := binary.Read(c, binary.BigEndian, &n); err != nil {
		return err
	}
	if n != size {
		return fmt.Errorf("%d bytes of %d arrived", n, size)
	}
	return nil
}

func download(address string, size int64) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write(binary.BigEndian.AppendUint64([]byte("d"), uint64(size))); err != nil {
		return err
	}
	b := make([]byte, 256<<10)
	for left := size; left > 0; {
		n, err := c.Read(b)
		if left -= int64(n); err != nil && left > 0 {
			return err
		}
	}
	return nil
}

// roundTrips is the median of n exchanges of one byte.
func roundTrips(address string, n int) (time.Duration, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	b := []byte("e")
	if _, err := c.Write(b); err != nil {
		return 0, err
	}
	var all []time.Duration
	for range n {
		took, err := timed(func() error {
			if _, err := c.Write(b); err != nil {
				return err
			}
			_, err := io.ReadFull(c, b)
			return err
		})
		if err != nil {
			return 0, err
		}
		all = append(all, took)
	}
	slices.Sort(all)
	return all[len(all)/2], nil
}

func trafficAsk(socket, request string) error {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, request); err != nil {
		return err
	}
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		return err
	}
	b, err := io.ReadAll(c)
	if err == nil && strings.Contains(string(b), "error") {
		err = errors.New(string(b))
	}
	return err
}
