"""The command line: `outlast run`, `worker`, `list`, `show`, `history`, `demo`."""
