"""Cache of latents and text embeddings on a worker's disk, for restarted and later runs.

An entry's name is a digest of brand, content, base, dtype and preparation. The entry is encrypted with a key derived
from the content itself. It cannot be read without the picture or the caption, so a deleted picture's latents become
unreadable. No name contains a path or a person's name.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from safetensors import SafetensorError
from torch import Tensor

from onbrand.brand import must_be_brand_id

MAX_BYTES = 20 * 2**30
MAX_AGE_SECONDS = 30 * 86_400.0
_NONCE_BYTES = 12

log = logging.getLogger(__name__)
Tensors = Mapping[str, Tensor]


class Cache:
    """A cache for encoded tensors. This one keeps nothing."""

    def tensors(self, content: bytes, how: str, make: Callable[[], Tensors]) -> Tensors:
        """The cached tensors for `content` and `how`, else the result of `make`.

        Args:
            content: a digest of pixels, or a caption.
            how: preparation of the content, e.g. size and crop.
        """
        return make()


class DiskCache(Cache):
    """Entries of one brand and one base, in a folder with mode 0700.

    Args:
        folder: contains the folders of all brands.
        base_revision: `Family.revision`.
        dtype: the base's, as torch prints it.
    """

    def __init__(self, folder: Path, brand_id: str, base_revision: str, dtype: str) -> None:
        self._folder = folder / must_be_brand_id(brand_id)
        self._about = f"{brand_id}\0{base_revision}\0{dtype}"

    def __repr__(self) -> str:
        return "DiskCache(...)"

    def tensors(self, content: bytes, how: str, make: Callable[[], Tensors]) -> Tensors:
        path = self._folder / f"{self._digest('name', content, how).hex()}.sealed"
        seal = AESGCM(self._digest("key", content, how))
        found = _opened(path, seal)
        if found is None:
            found = make()
            self._keep(path, seal, found)
        return found

    def _digest(self, purpose: str, content: bytes, how: str) -> bytes:
        about = f"{purpose}\0{self._about}\0{how}\0".encode()
        return hashlib.sha256(about + hashlib.sha256(content).digest()).digest()

    def _keep(self, path: Path, seal: AESGCM, tensors: Tensors) -> None:
        """Write an entry atomically. If that fails, e.g. on a full disk, only a warning is logged."""
        plain = safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
        nonce = os.urandom(_NONCE_BYTES)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(0o700)
            handle, draft = tempfile.mkstemp(dir=self._folder, suffix=".draft")
            with os.fdopen(handle, "wb") as file:
                file.write(nonce + seal.encrypt(nonce, plain, None))
            os.replace(draft, path)
        except OSError as problem:
            log.warning("an encoded picture or caption could not be kept (%s)", type(problem).__name__)


def _opened(path: Path, seal: AESGCM) -> Tensors | None:
    """The entry; None if it is missing or damaged."""
    try:
        sealed = path.read_bytes()
        tensors = safetensors.torch.load(seal.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None))
        os.utime(path)
    except (OSError, InvalidTag, ValueError, SafetensorError):
        return None
    return tensors


def prune(folder: Path, max_bytes: int = MAX_BYTES, max_age_seconds: float = MAX_AGE_SECONDS) -> int:
    """Remove entries unused for `max_age_seconds`, and the least recently used beyond `max_bytes`; returns how many."""
    entries = []
    for path in folder.glob("*/*"):
        with contextlib.suppress(OSError):
            facts = path.stat()
            entries.append((facts.st_mtime, facts.st_size, path))
    kept, removed, oldest = 0, 0, time.time() - max_age_seconds
    for used_at, size, path in sorted(entries, reverse=True):
        if used_at >= oldest and kept + size <= max_bytes:
            kept += size
            continue
        with contextlib.suppress(OSError):
            path.unlink()
            removed += 1
    return removed
