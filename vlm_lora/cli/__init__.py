"""The command line: verbs, exit codes, and the only place that turns an error into a message."""
