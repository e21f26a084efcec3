"""`python -m tests.isolation.faults` breaks Onbrand one line at a time, and checks that its tests fail.

`--only TEXT` tries the faults whose id contains TEXT, `--some` a fixed part of each area, `--at-once N` runs N trials
at a time.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys

LIBRARIES = (
    "anyio", "argon2", "botocore.session", "diffusers", "fastapi", "fastapi.testclient", "fsspec", "httpx", "jwt",
    "numpy", "peft", "PIL.Image", "psutil", "psycopg_pool", "pwdlib", "pydantic_settings", "pytest_asyncio",
    "pytest_timeout", "python_multipart", "requests", "s3fs", "safetensors.torch", "torch", "torch.fx", "transformers",
    "uvicorn", "yaml", "yoyo",
)  # fmt: skip
"""Modules that trials import anyway: imported once, before the first fork."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.isolation.faults", description=__doc__)
    parser.add_argument("--only", default="", help="faults whose id has this text")
    parser.add_argument("--some", action="store_true", help="a part of each area: what 'make test' tries")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is there; a forked process starts no team of threads
    from tests.isolation.faults.catalogue import BadCatalogue, read_catalogue, some
    from tests.isolation.faults.proof import prove

    try:
        faults = [fault for fault in read_catalogue() if asked.only in fault.id]
        for fault in faults:
            fault.broken_text()
        faults = some(faults) if asked.some else faults
    except BadCatalogue as problem:
        print(problem, file=sys.stderr)
        return 2
    for name in LIBRARIES:
        importlib.import_module(name)
    return 0 if prove(faults, asked.at_once, lambda line: print(line, flush=True)) else 1


if __name__ == "__main__":
    sys.exit(main())
