"""Adapters on a node: one file and one fetch for all replicas, shared pages, and nothing kept of a refused one."""

from __future__ import annotations

import fcntl
import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier, Event, Semaphore
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from onbrand.adapter import AdapterRef
from onbrand.errors import AdapterRefused, ModelGone, NotFound, Unavailable
from onbrand.families.lora import AdapterWeights
from onbrand.serving.adapter_store import AdapterFiles, AdapterStore

WAIT = 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "adapters"


def published(value: float = 1.0, name: str = "unet.x") -> bytes:
    parts = {f"{name}.lora_A.weight": torch.full((2, 6), value), f"{name}.lora_B.weight": torch.ones(5, 2)}
    return safetensors.torch.save(parts, {"format": "pt"})


def ref_of(data: bytes, brand: str = "acme", number: int = 1) -> AdapterRef:
    return AdapterRef(brand, f"1d2e3f40-0000-4000-8000-{number:012d}", "sd15", 1, hashlib.sha256(data).hexdigest())


def replica(folder: Path, disk_bytes: int = 2**20, host_bytes: int = 2**20) -> AdapterStore:
    """The adapter store of one replica of the node."""
    spec = SimpleNamespace(name="sd15", title="SD 1.5", component="unet", rank_max=128)
    family: Any = SimpleNamespace(spec=spec, denoiser=nn.ModuleDict({"x": nn.Linear(6, 5)}), device="cpu")
    return AdapterStore(family, AdapterFiles(folder, disk_bytes), host_bytes)


def never() -> bytes:
    raise AssertionError("it was fetched again")


def mapped_files() -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if ".safetensors" in line]


def test_replicas_of_a_node_read_the_same_pages(folder):
    """The tensors lie in the mapped file: nothing was copied, and a second replica maps the same one."""
    data = published()
    first, second = replica(folder), replica(folder)
    ours = first.weights(ref_of(data), lambda: data)
    theirs = second.weights(ref_of(data), never)
    (file,) = folder.glob("*.safetensors")
    mapped = [line.split() for line in mapped_files() if str(file) in line]
    assert {int(line[4]) for line in mapped} == {file.stat().st_ino}
    spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in mapped]
    for weights in (ours, theirs):
        for tensor in (weights.layers["x"].a, weights.layers["x"].b):
            assert any(low <= tensor.data_ptr() < high for low, high in spans)
    torch.testing.assert_close(ours.layers["x"].a, torch.ones(2, 6))


def test_a_mapped_file_holds_no_descriptor(folder):
    """Thousands are mapped in one process."""
    library = replica(folder)
    before = len(os.listdir("/proc/self/fd"))
    files = [published(float(n)) for n in range(20)]
    kept = [library.weights(ref_of(data), lambda data=data: data) for data in files]
    assert len(os.listdir("/proc/self/fd")) <= before
    assert [float(each.layers["x"].a[0, 0]) for each in kept] == [float(n) for n in range(20)]


def test_what_one_replica_does_to_its_tensors_no_other_sees(folder):
    data = published()
    first, second = replica(folder), replica(folder)
    first.weights(ref_of(data), lambda: data).layers["x"].a.zero_()
    assert bool(second.weights(ref_of(data), never).layers["x"].a.all())
    (file,) = folder.glob("*.safetensors")
    assert file.read_bytes() == data


def test_of_a_nodes_replicas_one_fetches(folder):
    data, begun, release, fetches = published(), Event(), Event(), []

    def fetch() -> bytes:
        fetches.append(1)
        begun.set()
        assert release.wait(WAIT)
        return data

    replicas = [replica(folder) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(each.weights, ref_of(data), fetch) for each in replicas]
        assert begun.wait(WAIT)
        release.set()
        assert [load.result(WAIT).rank for load in loads] == [2] * 4
    assert len(fetches) == 1
    assert [path.name.startswith(".") for path in folder.iterdir()] == [False]


def test_a_fetch_that_fails_is_not_the_other_replicas(folder):
    """A waiting request fetches with its own ticket."""
    data, begun, release = published(), Event(), Event()

    def lost() -> bytes:
        begun.set()
        assert release.wait(WAIT)
        raise Unavailable("the platform went away")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(replica(folder).weights, ref_of(data), lost)
        assert begun.wait(WAIT)
        second = pool.submit(replica(folder).weights, ref_of(data), lambda: data)
        release.set()
        assert second.result(WAIT).rank == 2
        assert isinstance(first.exception(WAIT), Unavailable)


def test_loads_of_different_adapters_overlap(folder):
    both_here, library = Barrier(2, timeout=WAIT), replica(folder)

    def fetched(data: bytes) -> bytes:
        both_here.wait()
        return data

    files = [published(1.0), published(2.0)]
    loads = [library.prefetch(ref_of(data), lambda data=data: fetched(data)) for data in files]
    assert [float(load.result(WAIT).layers["x"].a[0, 0]) for load in loads] == [1.0, 2.0]
    library.close()


def test_one_brands_slow_loads_hold_up_neither_what_is_in_memory_nor_another_brand(folder):
    """Sixteen requests for one adapter that does not come, sixteen for others: other brands have theirs."""
    library, release, begun = replica(folder), Event(), []

    def slow() -> bytes:
        begun.append(1)
        assert release.wait(WAIT)
        return slow_data

    here, slow_data = published(1.0), published(2.0)
    assert library.weights(ref_of(here, "globex"), lambda: here).rank == 2
    waiting = [library.prefetch(ref_of(slow_data), slow) for _ in range(16)]
    waiting += [library.prefetch(ref_of(published(10.0 + n)), slow) for n in range(16)]
    assert library.prefetch(ref_of(here, "globex"), never).done()
    assert library.weights(ref_of(published(3.0), "globex"), lambda: published(3.0)).rank == 2
    assert len(begun) <= 4
    assert not any(each.done() for each in waiting)
    release.set()
    assert [each.result(WAIT).rank for each in waiting[:16]] == [2] * 16
    assert all(isinstance(each.exception(WAIT), AdapterRefused) for each in waiting[16:])
    library.close()


def test_a_load_that_nobody_wants_any_more_is_not_begun(folder):
    library, release = replica(folder), Event()
    busy = held_loads(library, 4, release)
    unwanted = published(9.0)
    begun: list[int] = []
    first = library.prefetch(ref_of(unwanted), lambda: begun.append(1) or unwanted)
    second = library.prefetch(ref_of(unwanted), lambda: unwanted)  # who waits with them begins for itself
    assert first.cancel()
    release.set()
    assert second.result(WAIT).rank == 2
    assert [each.result(WAIT).rank for each in busy] == [2] * 4
    assert not begun
    library.close()


def held_loads(library: AdapterStore, num: int, release: Event) -> list[Future[AdapterWeights]]:
    """Loads of adapters 0, 1, ... that finish when `release` is set; the first four have begun."""
    under_way = Semaphore(0)

    def held(data: bytes) -> bytes:
        under_way.release()
        assert release.wait(WAIT)
        return data

    files = [published(float(n)) for n in range(num)]
    loads = [library.prefetch(ref_of(data), partial(held, data)) for data in files]
    assert all(under_way.acquire(timeout=WAIT) for _ in range(4))
    return loads


def test_who_waits_for_a_load_is_told_when_the_library_closes(folder):
    library, release = replica(folder), Event()
    loads = held_loads(library, 6, release)
    loads.append(library.prefetch(ref_of(published(5.0)), never))
    library.close()
    assert all(isinstance(load.exception(WAIT), Unavailable) for load in loads[4:])
    release.set()
    assert [load.result(WAIT).rank for load in loads[:4]] == [2] * 4
    with pytest.raises(Unavailable):
        library.weights(ref_of(published(7.0)), never)


def test_a_prefetched_adapter_is_not_fetched_again(folder):
    data, library = published(), replica(folder)
    library.prefetch(ref_of(data), lambda: data).result(WAIT)
    assert library.weights(ref_of(data), never).rank == 2
    assert library.holdings() == [ref_of(data).routing_id]
    library.close()


@pytest.mark.parametrize("what", ["another layer", "a value that is none", "other bytes"])
def test_a_refused_file_is_not_kept(folder, what):
    data = {"another layer": published(name="unet.attic"), "a value that is none": published(float("nan"))}.get(
        what, published()
    )
    sent = published(9.0) if what == "other bytes" else data
    with pytest.raises(AdapterRefused):
        replica(folder).weights(ref_of(data), lambda: sent)
    assert list(folder.iterdir()) == []


def test_a_file_that_was_cut_short_is_fetched_anew(folder):
    data = published()
    replica(folder).weights(ref_of(data), lambda: data)
    (file,) = folder.glob("*.safetensors")
    for rest in (data[:-4], b""):
        file.write_bytes(rest)
        assert replica(folder).weights(ref_of(data), lambda: data).rank == 2
        assert file.read_bytes() == data


def test_a_file_that_left_the_disk_serves_on_where_it_is_mapped(folder):
    small = published(1.0)
    library = replica(folder, disk_bytes=len(small))
    ours = library.weights(ref_of(small), lambda: small)
    other = published(2.0)
    library.weights(ref_of(other), lambda: other)
    assert [path.name for path in folder.iterdir()] == [f"{ref_of(other).routing_id}.safetensors"]
    torch.testing.assert_close(ours.layers["x"].a, torch.ones(2, 6))


def test_drafts_of_replicas_that_died_are_removed_and_others_are_not(folder):
    folder.mkdir()
    (folder / ".dead.part").write_bytes(b"half")
    with (folder / ".alive.part").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        AdapterFiles(folder, 2**20)
        assert [path.name for path in folder.iterdir()] == [".alive.part"]


def test_a_disk_that_takes_nothing_stops_no_generation(folder, caplog):
    data, library = published(), replica(folder)
    folder.rmdir()
    folder.write_text("no folder any more")
    assert library.weights(ref_of(data), lambda: data).rank == 2
    assert "disk" in caplog.text


def test_only_we_can_read_what_is_kept(folder):
    data = published()
    replica(folder).weights(ref_of(data), lambda: data)
    (file,) = folder.iterdir()
    assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    assert "acme" not in file.name
    assert os.path.basename(file) == f"{ref_of(data).routing_id}.safetensors"


def test_a_deleted_model_costs_one_question(folder):
    data, asked, library = published(), [], replica(folder)

    def gone() -> bytes:
        asked.append(1)
        raise ModelGone("it was deleted")

    for _ in range(3):
        with pytest.raises(ModelGone):
            library.weights(ref_of(data), gone)
    assert len(asked) == 1


def test_a_deleted_model_says_nothing_of_others(folder):
    """Neither of the same file published again, nor of another brand's, nor is "not found" by itself believed."""
    data, library = published(), replica(folder)

    def gone() -> bytes:
        raise ModelGone("it was deleted")

    def lost() -> bytes:
        raise NotFound("this ticket's generation is gone")

    with pytest.raises(ModelGone):
        library.weights(ref_of(data, "globex", 1), gone)
    with pytest.raises(NotFound):
        library.weights(ref_of(data, "acme", 1), lost)
    found: AdapterWeights = library.weights(ref_of(data, "acme", 1), lambda: data)
    assert found.rank == 2
    again = published(3.0)
    with pytest.raises(ModelGone):
        library.weights(ref_of(again, number=2), gone)
    assert library.weights(ref_of(again, number=3), lambda: again).rank == 2
