package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	stdio "io"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"den/internal/daemon"
	"den/internal/registry"
)

type loginOptions struct {
	username      string
	password      string
	passwordStdin bool
}

func newLogin(g *globals, io streams) *cobra.Command {
	o := &loginOptions{}
	cmd := &cobra.Command{
		Use:   "login [OPTIONS] [SERVER]",
		Short: "Log in to a registry",
		Long:  "Log in to a registry. Without SERVER that is Docker Hub.",
		Args:  rangeArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runLogin(cmd.Context(), g, o, io, strings.Join(args, ""))
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.username, "username", "u", "", "Username")
	f.StringVarP(&o.password, "password", "p", "", "Password or token")
	f.BoolVar(&o.passwordStdin, "password-stdin", false, "Take the password from standard input")
	return cmd
}

func runLogin(ctx context.Context, g *globals, o *loginOptions, io streams, server string) error {
	do, err := g.daemonOptions(io)
	if err != nil {
		return err
	}
	reg, err := daemon.Registry(do)
	if err != nil {
		return err
	}
	cred, err := o.credential(io)
	if err != nil {
		return err
	}
	result, err := reg.Login(ctx, server, cred)
	if err != nil {
		return err
	}
	if result.Warning != "" {
		fmt.Fprintln(io.err, result.Warning)
	}
	fmt.Fprintln(io.out, "Login Succeeded")
	return nil
}

// maxPassword bounds what --password-stdin reads.
const maxPassword = 1 << 20

func (o *loginOptions) credential(io streams) (registry.Credential, error) {
	c := registry.Credential{Username: o.username, Password: o.password}
	interactive := term.IsTerminal(int(io.in.Fd()))
	if o.passwordStdin {
		if o.password != "" {
			return c, &usageError{"--password and --password-stdin are mutually exclusive"}
		}
		if o.username == "" {
			return c, &usageError{"give --username with --password-stdin"}
		}
		b, err := stdio.ReadAll(stdio.LimitReader(io.in, maxPassword))
		if c.Password = strings.TrimRight(string(b), "\r\n"); err == nil && c.Password == "" {
			err = errors.New("password is empty")
		}
		return c, err
	}
	if c.Password != "" {
		fmt.Fprintln(io.err, "WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
	}
	if (c.Username == "" || c.Password == "") && !interactive {
		return c, errors.New("cannot perform an interactive login from a non TTY device: give --username and --password-stdin")
	}
	if c.Username == "" {
		fmt.Fprint(io.err, "Username: ")
		line, err := bufio.NewReader(io.in).ReadString('\n')
		if err != nil {
			return c, err
		}
		c.Username = strings.TrimSpace(line)
	}
	if c.Password == "" {
		fmt.Fprint(io.err, "Password: ")
		b, err := term.ReadPassword(int(io.in.Fd()))
		fmt.Fprintln(io.err)
		if err != nil {
			return c, err
		}
		c.Password = string(b)
	}
	return c, nil
}

func newLogout(g *globals, io streams) *cobra.Command {
	return &cobra.Command{
		Use:   "logout [SERVER]",
		Short: "Log out from a registry",
		Args:  rangeArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			server := strings.Join(args, "")
			do, err := g.daemonOptions(io)
			if err != nil {
				return err
			}
			reg, err := daemon.Registry(do)
			if err != nil {
				return err
			}
			// Who is not logged in is out, as docker has it.
			if err := reg.Logout(cmd.Context(), server); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
			if server == "" {
				server = "https://index.docker.io/v1/"
			}
			fmt.Fprintln(io.out, "Removing login credentials for", server)
			return nil
		},
	}
}
