"""The internal routes at a socket in the data directory, for callers on the same node.

A call by the socket skips Serve's HTTP proxy. Only our user may enter the socket's folder. Callers on other nodes, and
those whose path to it is too long, use Serve's port (`settings.system_url`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from onbrand.folders import make_private
from onbrand.internal.async_client import socket_in


class _Server(uvicorn.Server):
    """A server that leaves signals to its process and tells when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def internal_socket(app: ASGIApp, folder: Path) -> AsyncIterator[None]:
    """Serve `app` at the socket of a data directory while this context is open.

    Args:
        app: the internal app; its lifespan is not run.
    """
    path = socket_in(folder)
    if path is None:
        yield
        return
    path.parent.mkdir(mode=0o700, exist_ok=True)
    make_private(path.parent, is_inner=True)
    draft = path.with_name(f"{os.getpid()}.{time.monotonic_ns()}")  # renamed once it accepts calls
    config = uvicorn.Config(
        app,
        uds=str(draft),
        lifespan="off",
        log_config=None,
        access_log=False,
        ws="none",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=3,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(), name="internal-socket")
    await server.listens.wait()
    own = draft.stat().st_ino
    draft.rename(path)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == own:  # not that of a replica which has taken over
                path.unlink()
        server.should_exit = True
        await serving
