"""The command line: `outlast run`, `worker`, `list`, `show` and the other commands (see `main`)."""
