"""A training job's ticket on its way to the workers: a file only we can read, beside the run's checkpoints.

Never the environment, the command line or Ray's metadata: the dashboard shows those.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

import fsspec

from onbrand.brand import must_be_brand_id
from onbrand.config import Settings
from onbrand.errors import InvalidInput, TicketRefused

_HEX = frozenset("0123456789abcdef-")


def must_be_job_id(text: str) -> str:
    """Return `text` if it can be a job's id (a UUID), else raise InvalidInput. Safe in a path and in a shell."""
    if len(text) != 36 or not set(text) <= _HEX:
        raise InvalidInput("job must be a UUID in lower case", param="job")
    return text


def run_url(settings: Settings, brand_id: str, job_id: str) -> str:
    """The folder of one run: its ticket and its checkpoints. Made of ids only, never of a caller's text."""
    return f"{settings.runs_url.rstrip('/')}/{must_be_brand_id(brand_id)}/{must_be_job_id(job_id)}"


def write_ticket(settings: Settings, brand_id: str, job_id: str, token: str) -> None:
    """Leave `token` for the workers, replacing an older one in a single step; mode 0600 on a local disk."""
    folder = run_url(settings, brand_id, job_id)
    if not _is_local(folder):
        _filesystem(settings).pipe_file(f"{folder}/ticket", token.encode())
        return
    folder = folder.removeprefix("file://")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    draft = f"{folder}/.ticket.{os.getpid()}"
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(token)
    os.replace(draft, f"{folder}/ticket")


def read_ticket(settings: Settings, brand_id: str, job_id: str) -> str:
    """The newest token of this job. Raises TicketRefused if the dispatcher left none."""
    folder = run_url(settings, brand_id, job_id)
    try:
        if not _is_local(folder):
            return str(_filesystem(settings).cat_file(f"{folder}/ticket").decode())
        with open(f"{folder.removeprefix('file://')}/ticket") as file:
            return file.read()
    except FileNotFoundError:
        raise TicketRefused("this job has no ticket; jobs are started by the platform's dispatcher") from None


def remove_ticket(settings: Settings, brand_id: str, job_id: str) -> None:
    """The job has ended: its ticket goes. Nothing happens if it is gone."""
    folder = run_url(settings, brand_id, job_id)
    try:
        if not _is_local(folder):
            _filesystem(settings).rm_file(f"{folder}/ticket")
        else:
            os.unlink(f"{folder.removeprefix('file://')}/ticket")
    except FileNotFoundError:
        pass


def _is_local(url: str) -> bool:
    return urlsplit(url).scheme in ("", "file")


def _filesystem(settings: Settings) -> fsspec.AbstractFileSystem:
    return fsspec.filesystem("s3", **s3_options(settings))


def s3_options(settings: Settings) -> dict[str, object]:
    """How s3fs reaches the store of the runs; credentials that are not set come from the machine's own (AWS) chain."""
    client = {"endpoint_url": settings.s3_endpoint} if settings.s3_endpoint else {}
    return {"key": settings.s3_access_key, "secret": settings.s3_secret_key, "client_kwargs": client}
