"""Adapters on their way to the engine: the platform's internal routes -> local disk -> host memory.

Every file is checked against the sha256 of its row before it is read, wherever it came from.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from onbrand.adapter import AdapterRef
from onbrand.engine.adapters import AdapterKey, HostCache
from onbrand.errors import AdapterRefused
from onbrand.families.family import Family
from onbrand.families.lora import AdapterWeights, read_adapter

security_log = logging.getLogger("onbrand.security")

Fetch = Callable[[], bytes]


def must_be_content(data: bytes, ref: AdapterRef) -> bytes:
    """Return `data` if it is the file that the row names, else raise AdapterRefused."""
    if hashlib.sha256(data).hexdigest() != ref.sha256:
        raise AdapterRefused(f"the weights of {ref.name} are not those that were published; train or publish it again")
    return data


class AdapterFiles:
    """Published files on this node's disk, named by an opaque digest of brand and content; only we can read them.

    Args:
        max_bytes: least recently used files go when there are more.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._folder, self._max_bytes = folder, max_bytes

    def read(self, ref: AdapterRef) -> bytes | None:
        """The file, or None. One that is not what it should be is removed."""
        path = self._path(ref)
        try:
            data = must_be_content(path.read_bytes(), ref)
            os.utime(path)
        except FileNotFoundError:
            return None
        except AdapterRefused:
            path.unlink(missing_ok=True)
            return None
        return data

    def write(self, ref: AdapterRef, data: bytes) -> None:
        """Keep a file, in one step."""
        draft = self._folder / f".{ref.routing_id}.{os.getpid()}"
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        draft.replace(self._path(ref))
        self._make_room()

    def _path(self, ref: AdapterRef) -> Path:
        return self._folder / f"{ref.routing_id}.safetensors"

    def _make_room(self) -> None:
        files = sorted(self._folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in files)
        for path in files[:-1]:
            if total <= self._max_bytes:
                return
            total -= path.stat().st_size
            path.unlink(missing_ok=True)


class AdapterLibrary:
    """Validated weights by reference, loaded once however many ask. Blocking: call it from a thread."""

    def __init__(self, family: Family, files: AdapterFiles, host_bytes: int) -> None:
        self._family, self._files = family, files
        self._memory = HostCache(host_bytes)

    def weights(self, ref: AdapterRef, fetch: Fetch) -> AdapterWeights:
        """The weights that `ref` names.

        Args:
            fetch: gets the file's bytes with the caller's own ticket; called when neither memory nor disk has them.

        Raises:
            AdapterRefused: another family's, not the published content, or not a LoRA for this base.
        """
        if ref.family != self._family.spec.name:
            raise AdapterRefused(f"{ref.name} is a model of {ref.family}, not of {self._family.spec.name}")
        try:
            return self._memory.get(AdapterKey(ref.brand_id, ref.sha256), lambda: self._load(ref, fetch))
        except AdapterRefused as problem:
            security_log.warning("adapter of model %s refused: %s", ref.model_id, problem.message)
            raise

    def _load(self, ref: AdapterRef, fetch: Fetch) -> AdapterWeights:
        data = self._files.read(ref)
        if data is not None:
            return read_adapter(data, self._family)
        data = must_be_content(fetch(), ref)
        weights = read_adapter(data, self._family)
        try:
            self._files.write(ref, data)
        except OSError as problem:
            logging.getLogger(__name__).warning("an adapter was not kept on disk: %s", problem.strerror)
        return weights
