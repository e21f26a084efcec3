"""Location of a training job's run: a folder or an S3 prefix, built from ids only, never from a caller's text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from onbrand.addresses import is_url, must_be_plain_path, path_of_file_url
from onbrand.brand import must_be_brand_id
from onbrand.config import Settings
from onbrand.errors import ConfigurationError, InvalidInput

_HEX = frozenset("0123456789abcdef-")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*)?")


def must_be_job_id(text: str) -> str:
    """Return `text` if it can be a job's id (a UUID), else raise InvalidInput. Safe in a path and in a shell."""
    if len(text) != 36 or not set(text) <= _HEX:
        raise InvalidInput("job must be a UUID in lower case", param="job")
    return text


def runs_folder(settings: Settings) -> Path | None:
    """The folder of all runs; None when they lie on S3. Raises ConfigurationError for a path that is not plain."""
    place = settings.runs_url
    if not is_url(place):
        return must_be_plain_path(Path(place), "run_storage")
    return path_of_file_url(place, "run_storage") if place.startswith("file:") else None


def brand_folder(settings: Settings, brand_id: str) -> Path:
    """The folder of one brand's runs; call it only if runs lie in a folder."""
    folder = runs_folder(settings)
    assert folder is not None
    return folder / must_be_brand_id(brand_id)


def run_folder(settings: Settings, brand_id: str, job_id: str) -> Path:
    """The folder of one run; call it only if runs lie in a folder."""
    return brand_folder(settings, brand_id) / must_be_job_id(job_id)


@dataclass(frozen=True, slots=True)
class RunsBucket:
    """The part of an S3 bucket that holds all runs: `{prefix}{brand_id}/{job_id}/...`.

    Args:
        prefix: empty, or ending in a slash.
    """

    bucket: str
    prefix: str

    def folder(self, brand_id: str, job_id: str) -> str:
        """The key prefix of one run, ending in a slash."""
        return f"{self.prefix}{must_be_brand_id(brand_id)}/{must_be_job_id(job_id)}/"


def runs_bucket(settings: Settings) -> RunsBucket | None:
    """The bucket and prefix of runs on S3; None for runs in a folder. Raises ConfigurationError for other addresses.

    Only plain names are accepted, because they become part of a policy, where `*` and `$` have a meaning.
    """
    if runs_folder(settings) is not None:
        return None
    parts = urlsplit(settings.runs_url)
    prefix = parts.path.strip("/")
    if parts.scheme != "s3" or not _BUCKET.fullmatch(parts.netloc) or not _PREFIX.fullmatch(prefix):
        raise ConfigurationError(
            "ONBRAND_RUN_STORAGE must be a folder or s3://bucket/prefix, in letters, digits, '.', '_' and '-'",
            param="run_storage",
        )
    return RunsBucket(parts.netloc, f"{prefix}/" if prefix else "")
