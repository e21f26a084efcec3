"""Forms with files. A form is read whole before the transaction of the call, and only for authorized callers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from onbrand.api.http.media_types import FORM, media_type_of, must_be_utf8_form
from onbrand.errors import InvalidInput, TooLarge, UnsupportedMedia
from onbrand.sandbox.incoming_files import SentFile

READ_FORM = "onbrand.form"
"""Key of the parsed form in a request's ASGI scope."""
_FIELDS_MAX = 200
_FIELD_BYTES_MAX = 2**18


@asynccontextmanager
async def read_form(request: Request, max_files: int, param: str) -> AsyncIterator[FormData]:
    """The request's form. Its files are temporary files (below 1 MiB in memory) until the context ends.

    Args:
        param: the field that files are sent in, for errors.

    Raises:
        UnsupportedMedia: the body is no multipart form.
        TooLarge: more files than `max_files`.
    """
    if media_type_of(request.headers) != FORM:
        raise UnsupportedMedia(f"send multipart/form-data, with files in the field {param!r}", param=param)
    must_be_utf8_form(request.headers)
    try:
        form = await request.form(max_files=max_files, max_fields=_FIELDS_MAX, max_part_size=_FIELD_BYTES_MAX)
    except HTTPException as problem:
        if "Too many files" in str(problem.detail):
            raise too_many_files(max_files, param) from None
        raise
    request.scope[READ_FORM] = form
    try:
        yield form
    finally:
        await form.close()


def too_many_files(most: int, param: str) -> TooLarge:
    """The error for a request with more than `most` files."""
    return TooLarge(f"at most {most} files go in one request; send the others in another", param=param)


def must_have_only(form: FormData, fields: frozenset[str]) -> None:
    """Raise InvalidInput naming the first field of the form that is not in `fields`."""
    if unknown := sorted(set(form) - fields):
        raise InvalidInput(f"{unknown[0][:80]} is not a field of this form; leave it out", param=unknown[0][:80])


async def file_of(part: Any, bytes_max: int, param: str) -> tuple[str, SentFile]:
    """File name and (unread) file of a form's part. Raises InvalidInput for a text field, TooLarge."""
    if not isinstance(part, UploadFile):
        raise InvalidInput(f"send files with names in the field {param!r}", param=param)
    sent = SentFile(await _read(part, 4), part.size or 0, partial(_read, part))
    must_be_short(part.filename or "a file", sent, bytes_max, param)
    return part.filename or "file", sent


def must_be_short(filename: str, sent: SentFile, bytes_max: int, param: str) -> None:
    """Raise TooLarge for a file of more than `bytes_max` bytes."""
    if sent.size > bytes_max:
        raise TooLarge(f"{filename[:80]!r} has more than {bytes_max} bytes", param=param)


async def _read(part: UploadFile, num_bytes: int = -1) -> bytes:
    await part.seek(0)
    return await part.read(num_bytes)
