"""Encodings on disk are found by content alone, and are useless without the content."""

import os
import stat

import pytest
import torch

from onbrand.training.data.cache import DiskCache, prune


class Maker:
    def __init__(self, value: float = 1.0) -> None:
        self.value, self.calls = value, 0

    def __call__(self) -> dict[str, torch.Tensor]:
        self.calls += 1
        return {"latents": torch.full((2, 3), self.value)}


def cache_of(folder, brand="acme", base="revision", dtype="float32"):
    return DiskCache(folder, brand, base, dtype)


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_the_same_content_is_made_once(tmp_path):
    maker = Maker()
    first = cache_of(tmp_path).tensors(b"pixels", "64x64", maker)
    again = cache_of(tmp_path).tensors(b"pixels", "64x64", maker)
    assert maker.calls == 1
    assert torch.equal(first["latents"], again["latents"])


@pytest.mark.parametrize(
    "other",
    [
        {"brand": "other"},
        {"base": "another"},
        {"dtype": "bfloat16"},
        {"content": b"pixelz"},
        {"how": "72x56"},
    ],
    ids=str,
)
def test_another_brand_base_dtype_content_or_crop_is_another_entry(tmp_path, other):
    maker = Maker()
    content, how = other.pop("content", b"pixels"), other.pop("how", "64x64")
    cache_of(tmp_path).tensors(b"pixels", "64x64", maker)
    cache_of(tmp_path, **other).tensors(content, how, maker)
    assert maker.calls == 2
    assert len(files(tmp_path)) == 2


def test_an_entry_in_another_brands_folder_has_another_name_and_is_of_no_use_under_theirs(tmp_path):
    theirs, ours = Maker(1.0), Maker(2.0)
    cache_of(tmp_path, "acme").tensors(b"pixels", "64x64", theirs)
    cache_of(tmp_path, "other").tensors(b"pixels", "64x64", ours)
    [of_acme], [of_other] = files(tmp_path / "acme"), files(tmp_path / "other")
    assert of_acme.name != of_other.name
    of_other.write_bytes(of_acme.read_bytes())
    assert torch.equal(
        cache_of(tmp_path, "other").tensors(b"pixels", "64x64", ours)["latents"], torch.full((2, 3), 2.0)
    )
    assert ours.calls == 2


def test_only_this_user_may_look_and_no_name_tells_anything(tmp_path):
    cache_of(tmp_path / "encoded").tensors(b"photo of acme logo", "text 32", Maker())
    [file] = files(tmp_path)
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.stem == file.stem.strip("ghijklmnopqrstuvwxyz")


def test_an_entry_cannot_be_read_without_the_content_it_was_made_of(tmp_path):
    values = torch.arange(64.0)
    cache_of(tmp_path).tensors(b"pixels", "64x64", lambda: {"latents": values})
    [file] = files(tmp_path)
    assert values.numpy().tobytes()[64:128] not in file.read_bytes()
    assert b"latents" not in file.read_bytes()
    maker, stolen = Maker(), cache_of(tmp_path)
    stolen.tensors(b"other pixels", "64x64", maker)
    [theirs] = set(files(tmp_path)) - {file}
    theirs.write_bytes(file.read_bytes())
    stolen.tensors(b"other pixels", "64x64", maker)
    assert maker.calls == 2


@pytest.mark.parametrize("harm", [b"", b"short", None], ids=["empty", "short", "one bit"])
def test_an_entry_that_is_not_whole_is_made_again(tmp_path, harm):
    maker = Maker()
    cache_of(tmp_path).tensors(b"pixels", "64x64", maker)
    [file] = files(tmp_path)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data) if harm is None else harm)
    for _ in range(2):
        assert torch.equal(cache_of(tmp_path).tensors(b"pixels", "64x64", maker)["latents"], torch.ones(2, 3))
    assert maker.calls == 2


def test_a_disk_that_takes_nothing_costs_the_entry_and_not_the_run(tmp_path):
    (tmp_path / "acme").write_text("a file where the folder should be")
    maker = Maker()
    assert cache_of(tmp_path).tensors(b"pixels", "64x64", maker)["latents"].sum() == 6


def test_what_was_used_least_recently_goes_first_and_what_is_old_goes_anyway(tmp_path):
    cache = cache_of(tmp_path)
    for number in range(4):
        cache.tensors(bytes([number]), "64x64", Maker(number))
        newest = max(files(tmp_path), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (10**9 + number, 10**9 + number))
    cache.tensors(bytes([0]), "64x64", Maker())  # used now
    size = files(tmp_path)[0].stat().st_size
    assert prune(tmp_path, max_bytes=2 * size, max_age_seconds=10**10) == 2
    left = Maker()
    cache.tensors(bytes([0]), "64x64", left)
    cache.tensors(bytes([3]), "64x64", left)
    assert left.calls == 0
    assert prune(tmp_path, max_age_seconds=-1) == 2
