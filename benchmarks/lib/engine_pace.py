"""Prints the pace of a running platform's engine as JSON: `python -m benchmarks.lib.engine_pace ADDRESS FAMILY`.

A process of its own, because a driver of Ray stays connected. Its environment must have the cluster's token.
"""

from __future__ import annotations

import json
import logging
import sys

import ray
from ray import serve

from onbrand.serving.serve_generator import ENGINE, engine_app


def main(address: str, family: str) -> None:
    """Ask the first replica."""
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace="onbrand")
    pace = serve.get_deployment_handle(ENGINE, engine_app(family)).pace.remote().result(timeout_s=30)
    print(json.dumps(pace))


if __name__ == "__main__":
    main(*sys.argv[1:])
