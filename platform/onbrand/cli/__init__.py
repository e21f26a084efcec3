"""The command `onbrand`. One file a noun; this one joins them and turns every error into one line and an exit code.

Only `up`, `demo` and `tiny` load the platform (torch, Ray); everything else talks to a running one through the SDK.
"""

from onbrand.cli.main import main

__all__ = ["main"]
