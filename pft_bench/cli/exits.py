"""How a command ends."""

FAILURE, USAGE, INTERRUPTED = 1, 2, 130
"""Exit codes: something was measured and found wrong; the command cannot be carried out as given; Ctrl-C, SIGTERM or
SIGHUP."""
