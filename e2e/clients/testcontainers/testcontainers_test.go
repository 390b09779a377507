// Package testcontainers drives an engine (DOCKER_HOST) by Testcontainers for Go and by
// moby's Go client. The engine has the images small and testcontainers/ryuk:0.14.0.
package testcontainers

import (
	"context"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/exec"
	"github.com/testcontainers/testcontainers-go/network"
	"github.com/testcontainers/testcontainers-go/wait"
)

func need(t *testing.T) {
	t.Helper()
	if os.Getenv("DOCKER_HOST") == "" {
		t.Skip("needs DOCKER_HOST")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestContainersOfTestcontainers(t *testing.T) {
	need(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	net, err := network.New(ctx)
	must(t, err)
	web, err := testcontainers.Run(ctx, "small",
		testcontainers.WithCmd("sh", "-c", "mkdir -p /w; cat /etc/page > /w/index.html; echo ready; exec httpd -f -p 80 -h /w"),
		testcontainers.WithFiles(testcontainers.ContainerFile{Reader: strings.NewReader("paged"), ContainerFilePath: "/etc/page", FileMode: 0o644}),
		testcontainers.WithExposedPorts("80/tcp"),
		network.WithNetwork([]string{"web"}, net),
		testcontainers.WithWaitStrategy(wait.ForAll(wait.ForLog("ready"), wait.ForHTTP("/").WithPort("80/tcp"))),
	)
	must(t, err)
	endpoint, err := web.PortEndpoint(ctx, "80/tcp", "http")
	must(t, err)
	res, err := http.Get(endpoint)
	must(t, err)
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || string(b) != "paged" {
		t.Errorf("the page: %q, %v", b, err)
	}
	code, out, err := web.Exec(ctx, []string{"sh", "-c", "echo from exec; exit 4"}, exec.Multiplexed())
	must(t, err)
	if b, _ := io.ReadAll(out); code != 4 || string(b) != "from exec\n" {
		t.Errorf("exec: %d %q", code, b)
	}
	other, err := testcontainers.Run(ctx, "small", testcontainers.WithCmd("wget", "-q", "-O", "-", "http://web/"),
		network.WithNetwork(nil, net), testcontainers.WithWaitStrategy(wait.ForExit()))
	must(t, err)
	logs, err := other.Logs(ctx)
	must(t, err)
	if b, _ := io.ReadAll(logs); !strings.Contains(string(b), "paged") {
		t.Errorf("the other's log: %q", b)
	}
	r, err := web.CopyFileFromContainer(ctx, "/etc/page")
	must(t, err)
	if b, _ := io.ReadAll(r); string(b) != "paged" {
		t.Errorf("the copy: %q", b)
	}
	must(t, other.Terminate(ctx))
	must(t, web.Terminate(ctx))
	must(t, net.Remove(ctx))
}

// What a test that dies leaves is Ryuk's to remove: nothing is removed here.
func TestLeftToTheReaper(t *testing.T) {
	need(t)
	_, err := testcontainers.Run(t.Context(), "small", testcontainers.WithCmd("sleep", "1000"), testcontainers.WithName("abandoned"))
	must(t, err)
}

func TestMobyClient(t *testing.T) {
	need(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := client.New(client.FromEnv)
	must(t, err)
	defer c.Close()
	made, err := c.ContainerCreate(ctx, client.ContainerCreateOptions{Config: &container.Config{Image: "small", Cmd: []string{"sh", "-c", "read x; echo got $x; echo bad >&2"}, OpenStdin: true, StdinOnce: true, AttachStdin: true, AttachStdout: true, AttachStderr: true}})
	must(t, err)
	a, err := c.ContainerAttach(ctx, made.ID, client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
	must(t, err)
	defer a.Close()
	w := c.ContainerWait(ctx, made.ID, client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	_, err = c.ContainerStart(ctx, made.ID, client.ContainerStartOptions{})
	must(t, err)
	_, err = io.WriteString(a.Conn, "it\n")
	must(t, err)
	must(t, a.CloseWrite())
	var out, errs strings.Builder
	_, err = stdcopy.StdCopy(&out, &errs, a.Reader)
	must(t, err)
	if out.String() != "got it\n" || errs.String() != "bad\n" {
		t.Errorf("%q %q", out.String(), errs.String())
	}
	select {
	case r := <-w.Result:
		if r.StatusCode != 0 {
			t.Errorf("exit %d", r.StatusCode)
		}
	case err := <-w.Error:
		t.Error(err)
	}
	_, err = c.ContainerRemove(ctx, made.ID, client.ContainerRemoveOptions{})
	must(t, err)
}
