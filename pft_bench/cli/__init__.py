"""The command line, one file per command."""

from .exits import INTERRUPTED

__all__ = ["main"]


def main() -> None:
    """Run the program; Ctrl-C ends it without a traceback, from its first import on."""
    try:
        from .app import main as program

        program()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
