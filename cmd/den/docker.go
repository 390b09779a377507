package main

// dockerCommands are docker's commands that den answers to.
func dockerCommands() []string {
	return []string{"build", "exec", "images", "info", "inspect", "kill", "login", "logout", "logs", "ps", "pull", "push", "rm", "rmi", "run", "start", "stop", "tag", "version"}
}
