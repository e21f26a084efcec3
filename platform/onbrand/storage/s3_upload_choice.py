"""Finds a store's upload method by trial: forms, or else presigned PUTs if they are as restrictive.

A method is used only if the announced upload is accepted and any other is refused. Gateways differ: some accept no
forms, some obey unsigned headers of a presigned PUT, which could copy another brand's object or make one public.
"""

from __future__ import annotations

import base64
import hashlib
import secrets as randomness
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx

from onbrand.config import S3Uploads
from onbrand.errors import ConfigurationError, OnbrandError
from onbrand.storage.layout import Bucket
from onbrand.storage.links import Announced, UploadLink
from onbrand.storage.s3_check import PROBES
from onbrand.storage.s3_clients import stranger
from onbrand.storage.s3_upload_methods import Way

if TYPE_CHECKING:
    from onbrand.storage.s3 import S3Backend

_BUCKET: Bucket = "training-data"
_SECONDS = 60
_DATA = b"what was announced"
_SECRET = b"another brand's"
_WHAT = Announced("image/png", len(_DATA), hashlib.sha256(_DATA).hexdigest())
_EVERYBODY = 'uri="http://acs.amazonaws.com/groups/global/AllUsers"'
_RIGHTS = ({"x-amz-acl": "public-read"}, {"x-amz-grant-read": _EVERYBODY})


class NotFit(Exception):
    """The store does not support a method, or is too permissive; the text says why."""


def decide(store: S3Backend, wanted: S3Uploads) -> Way:
    """The first of the `wanted` methods that is safe here. If none is, raises a one-line ConfigurationError."""
    if wanted == "none":
        return Way(None)
    faults = []
    for name, find in (("form", _form), ("put", _put)):
        if wanted in ("auto", name):
            try:
                return _tried(store, find)
            except NotFit as fault:
                faults.append(f"{'POST form' if name == 'form' else 'presigned PUT'}: {fault}")
    raise _unfit(store, "; ".join(faults))


def _unfit(store: S3Backend, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"files cannot go straight to the bucket {store.root(_BUCKET)} at {store.endpoint} ({why}); take another store "
        "or another ONBRAND_S3_UPLOADS: with none, files come through the API only",
        param="s3_uploads",
    )


def _tried(store: S3Backend, find: Callable[[Trial], Way]) -> Way:
    with stranger() as client:
        trial = Trial(store, client)
        try:
            return find(trial)
        except httpx.HTTPError as problem:  # not a statement about the method
            raise _unfit(store, f"it cannot be reached: {type(problem).__name__}") from None
        except OnbrandError as problem:
            raise _unfit(store, problem.fields.get("remedy", problem.message)) from None
        finally:
            trial.clean()


class Trial:
    """Upload links used by a client without credentials. `clean` removes the objects."""

    def __init__(self, store: S3Backend, client: httpx.Client) -> None:
        self.store, self._client = store, client
        self._folder = f"{PROBES}/{randomness.token_hex(8)}"
        self._used: set[str] = set()

    def link(self, way: Way, name: str) -> UploadLink:
        """An upload link for `name` by this method."""
        return self.store.upload_link_by(way, _BUCKET, self.at(name), _WHAT, _SECONDS)

    def at(self, name: str) -> str:
        """The key for `name`; `clean` will remove it."""
        self._used.add(f"{self._folder}/{name}")
        return f"{self._folder}/{name}"

    def secret(self) -> str:
        """Write an object that stands for another brand's; returns its bucket and key."""
        self.store.write(_BUCKET, self.at("secret"), _SECRET, "image/png")
        return f"/{self.store.root(_BUCKET)}/{self.at('secret')}"

    def send(self, link: UploadLink, data: bytes = _DATA, **changed: Any) -> httpx.Response:
        """Send as the link says, with the changes given as `url`, `headers`, `fields`."""
        url, headers = changed.get("url", link.url), {**link.headers, **changed.get("headers", {})}
        if link.method == "PUT":
            return self._client.put(url, content=data, headers=headers | {"Content-Length": str(len(data))})
        fields = {**link.fields, **changed.get("fields", {})}
        return self._client.post(url, data=fields, files={"file": ("file", data)}, headers=headers)

    def arrived(self, name: str) -> bytes | None:
        """The stored bytes; None if there is no object."""
        return self.store.read(_BUCKET, self.at(name)) if self.store.exists(_BUCKET, self.at(name)) else None

    def is_public(self, link: UploadLink, name: str) -> bool:
        """Whether anyone can read the object by its address without a signature."""
        bare = str(httpx.URL(link.url).copy_with(query=None))
        return self._client.get(bare if link.method == "PUT" else f"{bare.rstrip('/')}/{self.at(name)}").is_success

    def clean(self) -> None:
        """Remove all objects of the trial; errors are ignored."""
        for name in self._used:
            with suppress(OnbrandError):
                self.store.delete(_BUCKET, name)


def _form(trial: Trial) -> Way:
    way = Way("POST")
    _must_take(trial, way)
    changes: Mapping[str, dict[str, Any]] = {
        "more bytes": {"data": _DATA + b"!"},
        "another type": {"fields": {"Content-Type": "text/html"}},
        "another key": {"fields": {"key": trial.at("elsewhere")}},
        "rights for everybody": {"fields": {"acl": "public-read"}},
    }
    _must_refuse(trial, way, changes)
    _must_obey_nobody(trial, way)
    return way


def _put(trial: Trial) -> Way:
    way = _once_or_not(trial)
    other = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    changes: Mapping[str, dict[str, Any]] = {
        "more bytes": {"data": _DATA + b"!"},
        "another type": {"headers": {"Content-Type": "text/html"}},
        "another hash": {"headers": {"x-amz-checksum-sha256": other}},
    }
    _must_refuse(trial, way, changes)
    _must_obey_nobody(trial, way)
    return way


def _once_or_not(trial: Trial) -> Way:
    """PUT with ``If-None-Match: *`` if the store obeys it, else without."""
    once, again = Way("PUT", is_once=True), Way("PUT")
    link = trial.link(once, "once")
    if not trial.send(link).is_success:
        _must_take(trial, again)
        return again
    must_have(trial.arrived("once") == _DATA, "what arrived is not what was sent")
    return again if trial.send(link).is_success else once


def _must_take(trial: Trial, way: Way) -> None:
    answer = trial.send(trial.link(way, "taken"))
    must_have(answer.is_success, f"the store answered {answer.status_code}")
    must_have(trial.arrived("taken") == _DATA, "what arrived is not what was sent")


def _must_refuse(trial: Trial, way: Way, changes: Mapping[str, dict[str, Any]]) -> None:
    for number, (what, changed) in enumerate(changes.items()):
        answer = trial.send(trial.link(way, f"refused-{number}"), **changed)
        is_there = trial.arrived(f"refused-{number}") is not None or trial.arrived("elsewhere") is not None
        must_have(answer.is_error and not is_there, f"the store takes {what}, which nobody signed")


def _must_obey_nobody(trial: Trial, way: Way) -> None:
    """Raise NotFit unless unsigned headers are refused or ignored."""
    link = trial.link(way, "copied")
    trial.send(link, headers={"x-amz-copy-source": trial.secret()})
    must_have(trial.arrived("copied") in (None, _DATA), "the store copies what x-amz-copy-source names, unsigned")
    for number, rights in enumerate(_RIGHTS):
        link = trial.link(way, f"public-{number}")
        trial.send(link, headers=rights)
        is_public = trial.is_public(link, f"public-{number}")
        must_have(not is_public, f"the store obeys {next(iter(rights))}, unsigned")


def must_have(fact: bool, otherwise: str) -> None:
    """Raise NotFit with the text `otherwise` unless `fact` holds."""
    if not fact:
        raise NotFit(otherwise)
