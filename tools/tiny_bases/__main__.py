"""Runs the command `python -m tools.tiny_bases`."""

import sys

from onbrand.cli.exits import Refused
from tools.tiny_bases.command import app

try:
    app()
except Refused as refused:
    sys.exit(f"error: {refused}")
