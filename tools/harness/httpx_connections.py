"""Connections of the asynchronous internal client over an httpx transport: an app of this process, or a fake."""

from __future__ import annotations

import httpx

from onbrand.internal.client import Call


class HttpxConnections:
    """`onbrand.internal.async_client.Connections` over an httpx transport."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._http = httpx.AsyncClient(base_url="http://test", transport=transport)

    async def send(self, call: Call, token: str) -> httpx.Response:
        return await self._http.send(call.request(self._http, token))

    async def close(self) -> None:
        await self._http.aclose()
