"""Uploads that nobody completed, and what was sent for those that ended: removed, an hour after their links.

Runs beside the internal routes. It learns whose bytes to remove from the dispatcher's function, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging

from onbrand.db.session import Doors
from onbrand.errors import OnbrandError
from onbrand.services import uploads
from onbrand.storage.store import ObjectStore

log = logging.getLogger(__name__)

LOOK_SECONDS = 300.0


async def watch(doors: Doors, store: ObjectStore) -> None:
    """Sweep again and again, until canceled."""
    while True:
        try:
            await sweep(doors, store)
        except OnbrandError as problem:
            log.warning("old uploads could not be swept: %s", problem.code)
        except Exception as problem:
            log.error("old uploads could not be swept: %s", type(problem).__name__)
        await asyncio.sleep(LOOK_SECONDS)


async def sweep(doors: Doors, store: ObjectStore) -> int:
    """Remove what is old now; how many uploads that were."""
    num_swept = 0
    while True:
        async with doors.dispatch_session() as session:
            num_now = await uploads.sweep(session, store)
        num_swept += num_now
        if num_now == 0:
            return num_swept
