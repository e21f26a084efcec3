"""The command `onbrand`: one module per group of commands; `main` turns errors into one line and an exit code.

Only `up` and `demo` load the platform (torch, Ray). Other commands call a running platform through the SDK, or
its database directly (for operators).
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; handles an interrupt during imports too."""
    try:
        from onbrand.cli.main import main as run
    except KeyboardInterrupt:
        print("onbrand: interrupted", file=sys.stderr)
        sys.exit(130)
    run(arguments)
