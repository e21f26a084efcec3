"""The command `onbrand`. One file a noun; `main` joins them and turns every error into one line and an exit code.

Only `up`, `demo` and `tiny` load the platform (torch, Ray); everything else talks to a running one through the SDK.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code; loading it may be interrupted too."""
    try:
        from onbrand.cli.main import main as run
    except KeyboardInterrupt:
        print("onbrand: interrupted", file=sys.stderr)
        sys.exit(130)
    run(arguments)
