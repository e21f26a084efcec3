"""Adapter files: internal routes -> the node's disk -> memory shared by the node's replicas.

Files are kept as published, and mapped. A published file has the layout that the engine copies into a slot, so the
replicas of one node read the same pages and none converts anything. Every file is checked against the sha256 of its row
when it is mapped, whatever its source.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from onbrand.adapter import AdapterRef
from onbrand.engine.adapters import AdapterKey
from onbrand.engine.host_cache import HostCache
from onbrand.errors import AdapterRefused, ModelGone, NotAsPublished, OnbrandError, Unavailable
from onbrand.families.family import Family
from onbrand.families.lora import AdapterWeights, LayerWeights, read_adapter
from onbrand.serving.fair_thread_pool import FairThreadPool

logger = logging.getLogger(__name__)
security_log = logging.getLogger("onbrand.security")

_NUM_LOADERS = 8
_GONE_REMEMBERED = 4096

Fetch = Callable[[], bytes]
Check = Callable[[bytes | memoryview], AdapterWeights]


def must_be_content(data: bytes | memoryview, ref: AdapterRef) -> None:
    """Raise NotAsPublished unless `data` is the file named by the row."""
    if hashlib.sha256(data).hexdigest() != ref.sha256:
        raise NotAsPublished(f"the weights of {ref.name} are not those that were published; train or publish it again")


class AdapterFiles:
    """Published files on this node's disk, for all its replicas; named by an opaque digest of brand and content.

    Only this user can read them. A file becomes visible when it is complete and checked.

    Args:
        max_bytes: above it, the least recently used files are deleted. Existing mappings keep their pages.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._folder, self._max_bytes = folder, max_bytes
        self._remove_leftovers()

    def weights(self, ref: AdapterRef, fetch: Fetch, check: Check) -> AdapterWeights:
        """The file's weights. If it is not here, one replica of the node fetches it, and the others wait.

        Args:
            check: reads the file; raises AdapterRefused for content that may not be served, which is not kept.

        Raises AdapterRefused, and the errors of `fetch`; the waiting replicas then fetch for themselves.
        """
        found = self._mapped(ref)
        if found is not None:
            return check(found)
        with self._draft(ref) as draft:
            found = self._mapped(ref)
            if found is not None:
                return check(found)
            data = fetch()
            must_be_content(data, ref)
            return check(data) if draft is None else self._kept(ref, draft, data, check)

    def _mapped(self, ref: AdapterRef) -> memoryview | None:
        """The mapped file, or None. A file with wrong content is removed."""
        path = self._path(ref)
        try:
            mapped = _map(path)
            must_be_content(mapped, ref)
            os.utime(path)
        except OSError:  # most often there is none
            return None
        except AdapterRefused:
            security_log.error(
                "the file of model %s on this node is not what was published; it is fetched anew", ref.model_id
            )
            path.unlink(missing_ok=True)
            return None
        return mapped

    def _kept(self, ref: AdapterRef, draft: BinaryIO, data: bytes, check: Check) -> AdapterWeights:
        """The weights of `data`, read from its new file, or from memory if the disk does not accept it."""
        try:
            draft.truncate(0)
            draft.write(data)
            draft.flush()
            mapped = _map(self._draft_path(ref))
        except OSError as problem:
            logger.warning("an adapter was not kept on disk: %s", type(problem).__name__)
            return check(data)
        weights = check(mapped)
        self._draft_path(ref).replace(self._path(ref))
        self._make_room()
        return weights

    @contextmanager
    def _draft(self, ref: AdapterRef) -> Iterator[BinaryIO | None]:
        """The file to write `ref` into, or None if the disk allows none.

        It is locked on the node: other replicas wait here while this one fetches.
        """
        path = self._draft_path(ref)
        while True:
            try:
                file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
            except OSError as problem:
                logger.warning("no adapter can be kept on disk: %s", type(problem).__name__)
                yield None
                return
            with file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not _is_at(file, path):  # its last holder has published or dropped it
                    continue
                try:
                    yield file
                finally:
                    if _is_at(file, path):
                        path.unlink()
                return  # closing releases the lock: nothing else holds this descriptor

    def _draft_path(self, ref: AdapterRef) -> Path:
        return self._folder / f".{ref.routing_id}.part"

    def _path(self, ref: AdapterRef) -> Path:
        return self._folder / f"{ref.routing_id}.safetensors"

    def _make_room(self) -> None:
        facts = {path: found for path in self._folder.glob("*.safetensors") if (found := _stat(path))}
        total = sum(found.st_size for found in facts.values())
        for path in sorted(facts, key=lambda path: facts[path].st_mtime)[:-1]:
            if total <= self._max_bytes:
                return
            total -= facts[path].st_size
            path.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        """Delete drafts of dead replicas. A draft in use is locked."""
        for path in self._folder.glob(".*"):
            with suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)


def _map(path: Path) -> memoryview:
    """The file in memory: pages shared with other mappings, copied on write. Keeps no descriptor open.

    Python's own mmap would keep one, and with it the draft's lock. Raises OSError.
    """
    num_bytes = path.stat().st_size
    if not num_bytes:
        return memoryview(b"")
    try:
        mapped = torch.from_file(str(path), shared=False, size=num_bytes, dtype=torch.uint8)
    except RuntimeError as problem:
        raise OSError(str(problem)) from None
    return mapped.numpy().data


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # another replica removed it
        return None


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    here, there = os.fstat(file.fileno()), _stat(path)
    return there is not None and (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


class AdapterStore:
    """Checked weights by reference. Each is loaded once for all callers; refusals and deletions are remembered.

    Weights in memory are returned at once, whatever else is loading. Waiting for a load uses no thread.

    Args:
        host_bytes: memory limit for kept adapters. Mapped files count, though the replicas of a node share their pages;
            for a GPU each replica has page-locked copies of its own.
    """

    def __init__(self, family: Family, files: AdapterFiles, host_bytes: int) -> None:
        self._family, self._files = family, files
        self._memory = HostCache(host_bytes)
        self._gone: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._loaders = FairThreadPool(_NUM_LOADERS)
        self._closed = False

    def weights(self, ref: AdapterRef, fetch: Fetch) -> AdapterWeights:
        """The weights that `ref` names; blocks until they are loaded.

        Args:
            fetch: gets the file's bytes with the caller's own ticket; called when neither memory nor disk has them.

        Raises:
            AdapterRefused: another family's, not the published content, or not a LoRA for this base.
            ModelGone: raised by `fetch`, now or before.
            Unavailable: closed.
        """
        return self.prefetch(ref, fetch).result()

    def prefetch(self, ref: AdapterRef, fetch: Fetch, account_id: str | None = None) -> Future[AdapterWeights]:
        """A future of the weights; loads of different adapters overlap. The future holds the errors of `weights`.

        Args:
            account_id: account whose turn the load takes; None: the brand's.

        If the future is canceled, a load that no other caller has started does not start.
        """
        result: Future[AdapterWeights] = Future()
        self._get_or_load(result, ref, fetch, account_id or ref.brand_id)
        return result

    def holdings(self) -> list[str]:
        """Routing ids of the adapters in memory, most recently used first. From any thread."""
        return [key.routing_id for key in self._memory.kept()]

    def close(self) -> None:
        """Start no more loads; waiting callers get an error."""
        self._closed = True
        for work in self._loaders.close():
            work()

    def _get_or_load(self, result: Future[AdapterWeights], ref: AdapterRef, fetch: Fetch, account_id: str) -> None:
        try:
            self._must_be_available(ref)
            loading, must_load = self._memory.get_or_start(_key_of(ref))
        except OnbrandError as problem:
            self._fail(result, ref, problem)
            return
        if must_load:
            work = partial(self._load, result, loading, ref, fetch)
            if not self._loaders.submit(account_id, work):
                work()
        loading.add_done_callback(partial(self._on_loaded, result, ref, fetch, account_id, must_load))

    def _must_be_available(self, ref: AdapterRef) -> None:
        if ref.family != self._family.spec.name:
            raise AdapterRefused(f"{ref.name} is a model of {ref.family}, not of {self._family.spec.name}")
        if (ref.brand_id, ref.model_id) in self._gone:
            raise ModelGone(f"the model {ref.name} was deleted")
        if self._closed:
            raise _closed()

    def _load(
        self, result: Future[AdapterWeights], loading: Future[AdapterWeights], ref: AdapterRef, fetch: Fetch
    ) -> None:
        """In a loader's thread: load, unless the caller that began it has canceled (others then begin their own)."""

        def load() -> AdapterWeights:
            if self._closed or result.cancelled():
                raise _closed()
            weights = self._files.weights(ref, fetch, lambda data: read_adapter(data, self._family))
            return page_locked(weights) if self._on_gpu else weights

        self._memory.run_load(_key_of(ref), loading, load)

    def _on_loaded(
        self,
        result: Future[AdapterWeights],
        ref: AdapterRef,
        fetch: Fetch,
        account_id: str,
        must_load: bool,
        loading: Future[AdapterWeights],
    ) -> None:
        problem = loading.exception()
        if problem is None:
            if result.set_running_or_notify_cancel():
                result.set_result(loading.result())
        elif must_load:
            self._fail(result, ref, problem)
        elif not result.cancelled():
            self._get_or_load(result, ref, fetch, account_id)  # again, with its own ticket

    def _fail(self, result: Future[AdapterWeights], ref: AdapterRef, problem: BaseException) -> None:
        if isinstance(problem, AdapterRefused):
            security_log.warning("adapter of model %s refused: %s", ref.model_id, problem.message)
        if isinstance(problem, ModelGone):
            self._gone[ref.brand_id, ref.model_id] = None  # ids are never reused
            while len(self._gone) > _GONE_REMEMBERED:
                self._gone.popitem(last=False)
        if result.set_running_or_notify_cancel():
            result.set_exception(problem)

    @property
    def _on_gpu(self) -> bool:
        return str(getattr(self._family, "device", "cpu")).startswith("cuda")


def _key_of(ref: AdapterRef) -> AdapterKey:
    return AdapterKey(ref.brand_id, ref.sha256)


def _closed() -> Unavailable:
    return Unavailable("this replica is stopping; try again", retry_after=1)


def page_locked(weights: AdapterWeights) -> AdapterWeights:
    """A copy in page-locked memory, so that copying to the GPU overlaps with its other work."""

    def locked(tensor: Tensor) -> Tensor:
        return tensor.pin_memory()

    layers = {name: LayerWeights(locked(layer.a), locked(layer.b)) for name, layer in weights.layers.items()}
    return replace(weights, layers=layers)
