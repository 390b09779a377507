// Command reaper does what Testcontainers' Ryuk does, by its protocol: over the
// Docker socket that is mounted into its container it removes what carries the labels that a
// client named, once that client is gone. Ryuk's own source is not to be had from
// every module proxy.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
)

var docker = http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", "/var/run/docker.sock")
}}}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "reaper:", err)
		os.Exit(1)
	}
}

func run() error {
	if _, err := call("GET", "/_ping"); err != nil {
		return err
	}
	l, err := net.Listen("tcp", ":8080")
	if err != nil {
		return err
	}
	fmt.Println("Started!")
	var mu sync.Mutex
	filters := map[string]bool{}
	came, went := make(chan struct{}), make(chan struct{})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				said := false
				for s := bufio.NewScanner(c); s.Scan(); {
					if !said {
						said = true
						came <- struct{}{}
					}
					mu.Lock()
					filters[strings.TrimSpace(s.Text())] = true
					mu.Unlock()
					fmt.Fprintln(c, "ACK")
				}
				if said {
					went <- struct{}{}
				}
			}()
		}
	}()
	// A client may come back: Ryuk waits for ten seconds.
	const reconnection = 3 * time.Second
	clients, gone := 0, (<-chan time.Time)(nil)
	for over := false; !over; {
		select {
		case <-came:
			clients, gone = clients+1, nil
		case <-went:
			if clients--; clients == 0 {
				gone = time.After(reconnection)
			}
		case <-gone:
			over = true
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for f := range filters {
		reap(f)
	}
	return nil
}

// reap removes what has all of the labels of a line such as "label=a=b&label=c=d".
func reap(line string) {
	q, err := url.ParseQuery(line)
	if err != nil {
		return
	}
	b, _ := json.Marshal(map[string][]string{"label": q["label"]})
	f := "filters=" + url.QueryEscape(string(b))
	var containers []struct{ Id string }
	if list("/containers/json?all=1&"+f, &containers) {
		for _, c := range containers {
			call("DELETE", "/containers/"+c.Id+"?force=1&v=1")
		}
	}
	var networks []struct{ Id string }
	if list("/networks?"+f, &networks) {
		for _, n := range networks {
			call("DELETE", "/networks/"+n.Id)
		}
	}
}

func list(path string, into any) bool {
	b, err := call("GET", path)
	return err == nil && json.Unmarshal(b, into) == nil
}

func call(method, path string) ([]byte, error) {
	req, err := http.NewRequest(method, "http://docker"+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := docker.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var b strings.Builder
	r := bufio.NewReader(res.Body)
	if _, err := r.WriteTo(&b); err != nil {
		return nil, err
	}
	if res.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, res.Status, b.String())
		fmt.Fprintln(os.Stderr, "reaper:", err)
	}
	return []byte(b.String()), err
}
