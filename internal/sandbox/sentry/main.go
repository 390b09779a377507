package sentry

import (
	"os"
	"runtime/debug"
)

// Names of den's children, as argv[0]; what follows are the arguments of each.
const (
	sentryName = "den-sentry" // platform, network
	goferName  = "den-gofer"
	trialName  = "den-trial" // platform
)

// Exit codes of the children. A trial that went well has one of its own, which no program
// has that does not know of Main.
const (
	exitTrouble = 125
	exitWorks   = 63
	exitGreedy  = 62 // of a sentry whose payload took far more memory than it may
)

// Main reports whether this process is one of den's children of this package;
// then that is done. A main function calls it before it looks at its flags.
func Main() bool {
	switch os.Args[0] {
	case sentryName, goferName, trialName:
	default:
		return false
	}
	// It stays dumpable, or it could not trace the processes in which a payload's code runs.
	debug.SetTraceback("single")
	var err error
	switch {
	case os.Args[0] == goferName:
		err = goferMain()
	case os.Args[0] == trialName && len(os.Args) == 2:
		err = trialMain(os.Args[1])
	case len(os.Args) == 3:
		err = sentryMain(os.Args[1], os.Args[2])
	}
	if err != nil {
		_, _ = os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(exitTrouble)
	}
	return true
}
