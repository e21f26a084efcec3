"""The command of a training's Ray job: `python -m onbrand.training.job --brand B --job J`. See `ray.driver`."""

from __future__ import annotations

import sys

from onbrand.training.ray.driver import main

if __name__ == "__main__":
    sys.exit(main())
