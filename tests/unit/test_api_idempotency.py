"""The fingerprint of a request with an `Idempotency-Key`. Forms are hashed in pieces, outside the event loop."""

from __future__ import annotations

import io
import threading
from typing import Any

from fastapi import FastAPI, Request
from starlette.datastructures import FormData, UploadFile

from onbrand.api import idempotency
from onbrand.api.forms import READ_FORM
from onbrand.api.http import early_authentication
from onbrand.brand import Scope
from onbrand.fair_turns import FairTurns

FILE_BYTES = 3 * 2**20


class Watched(io.BufferedIOBase):
    """A file that records the thread and the pieces of each read."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)
        self.threads: set[int] = set()
        self.pieces: list[int] = []

    def readable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = 0) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        self.threads.add(threading.get_ident())
        self.pieces.append(len(buffer))
        return self._file.readinto(buffer)

    def read(self, size: int | None = -1) -> bytes:
        self.threads.add(threading.get_ident())
        data = self._file.read(size)
        self.pieces.append(len(data))
        return data


def request(form: FormData | None, body: bytes = b"") -> Request:
    app = FastAPI()
    app.state.onbrand, app.state.hashing = None, FairTurns(2, 2)
    headers = [(b"content-type", b"multipart/form-data; boundary=x")]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/v1/x", "headers": headers, "app": app}
    scope[early_authentication.CALLER] = Scope("00000000-0000-0000-0000-000000000001")
    if form is not None:
        scope[READ_FORM] = form

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(scope, receive)


def form(file: Any, filename: str = "a.png", **fields: str) -> FormData:
    return FormData([("files", UploadFile(file, filename=filename)), *fields.items()])


async def test_a_form_is_hashed_in_pieces_and_not_in_the_event_loop() -> None:
    file = Watched(b"a" * FILE_BYTES)
    file.seek(7)
    await idempotency._digest(request(form(file)))
    assert file.threads
    assert threading.get_ident() not in file.threads
    assert max(file.pieces) <= 2**20
    assert file.tell() == 0


async def test_a_form_is_known_by_its_names_values_and_bytes() -> None:
    def digest(data: bytes, filename: str = "a.png", **fields: str) -> Any:
        return idempotency._digest(request(form(io.BytesIO(data), filename, **fields)))

    assert await digest(b"a", object="logo") == await digest(b"a", object="logo")
    others = [await digest(b"b", object="logo"), await digest(b"a", "b.png", object="logo"), await digest(b"a")]
    assert len({await digest(b"a", object="logo"), *others}) == 4


async def test_a_form_that_no_route_has_read_is_not_parsed() -> None:
    asked = request(None, b"--x\r\n" * 1000)
    assert await idempotency._digest(asked)
    assert asked._form is None
