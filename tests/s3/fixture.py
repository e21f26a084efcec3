"""The fixture `s3_server`: one real S3 for a test session, downloaded once into a cache folder.

Tests that need it are skipped with the reason where it cannot be installed (not Debian 12 on x86_64, or no network).
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3.ceph import HERE, CephS3
from tests.s3.gateway import Manners, gateway

FETCH_SECONDS = 240


def packages_folder() -> Path:
    """The folder of Ceph's unpacked packages: ``$ONBRAND_TEST_CEPH`` or a cache folder outside the checkout."""
    return Path(os.environ.get("ONBRAND_TEST_CEPH", "~/.cache/onbrand/ceph-s3")).expanduser()


def fetch_ceph(folder: Path) -> str | None:
    """Download missing packages; two sessions at once wait for each other. Returns the reason if that fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            done = subprocess.run(
                [str(HERE / "install_ceph.sh"), str(folder)],
                capture_output=True,
                text=True,
                timeout=FETCH_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as problem:
            return str(problem)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it could not be fetched"])[-1]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[CephS3]:
    """A running S3; ask it for `endpoint`, `admin` (access key, secret key) and `user(...)`."""
    reason = fetch_ceph(packages_folder())
    if reason:
        pytest.skip(f"no real S3 for this test: {reason}")
    with CephS3(packages_folder()) as server:
        yield server


@pytest.fixture(scope="session")
def s3_without_forms(s3_server: CephS3) -> Iterator[str]:
    """The address of a gateway that refuses forms, as Cloudflare's R2 does, in front of the same S3."""
    with gateway(s3_server.endpoint, Manners()) as endpoint:
        yield endpoint
