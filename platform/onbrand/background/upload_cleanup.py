"""Removes the bytes of uploads that were not completed or have ended, an hour after their links expire.

Runs in the process of the internal routes. The database's sweep function tells it only which bytes to remove.
"""

from __future__ import annotations

import asyncio
import logging

from onbrand.db.session import Database
from onbrand.errors import OnbrandError
from onbrand.services import uploads
from onbrand.storage.store import ObjectStore

log = logging.getLogger(__name__)

LOOK_SECONDS = 300.0


async def watch(db: Database, store: ObjectStore) -> None:
    """Sweep every LOOK_SECONDS until canceled."""
    while True:
        try:
            await sweep(db, store)
        except OnbrandError as problem:
            log.warning("old uploads could not be swept: %s", problem.code)
        except Exception as problem:
            log.error("old uploads could not be swept: %s", type(problem).__name__)
        await asyncio.sleep(LOOK_SECONDS)


async def sweep(db: Database, store: ObjectStore) -> int:
    """Remove the bytes of old uploads; how many uploads were swept."""
    num_swept = 0
    while True:
        async with db.dispatch_session() as session:
            num_now = await uploads.sweep(session, store)
        num_swept += num_now
        if num_now == 0:
            return num_swept
