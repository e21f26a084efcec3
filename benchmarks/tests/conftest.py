"""A platform in this process, with a database of its own, for the tests of benchmarks."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from onbrand.config import Limits, Settings
from onbrand.db.embedded import start
from onbrand.db.session import Database
from onbrand.secrets_file import load_secrets
from tools.harness.in_process_platform import Platform, serving


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def platform() -> AsyncIterator[Platform]:
    """The platform, served on a free port. All tests come from one client address, so sign-ups are not limited."""
    many = Limits(logins_per_address=10_000, sign_ups_per_address=10_000)
    with tempfile.TemporaryDirectory(prefix="onbrand-test-") as folder:
        settings = Settings(data_dir=Path(folder), limits=many)
        secrets = load_secrets(settings)
        database = start(settings, secrets)
        try:
            db = await Database.open(database.web_url, database.system_url, claims_key=secrets.claims)
            async with serving(settings, secrets, db) as running:
                yield running
            await db.close()
        finally:
            database.stop()
