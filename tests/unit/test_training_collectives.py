"""Shared work of several workers: each does its part, all get everything, and the bits equal those of one worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from onbrand.errors import InvalidInput, NotFound
from onbrand.families.family import Family
from onbrand.training import samples
from onbrand.training.data import encoding
from onbrand.training.data.cache import DiskCache
from onbrand.training.data.dataset import CaptionVariants, Examples, Picture
from onbrand.training.data.encoding import encode
from onbrand.training.ray.collectives import Collectives, gather_bytes, shared
from tests.unit.test_training_trainer import Together
from tests.unit.training_bases import FAMILIES, SIDE, drawn, fresh_family, small_trainer

T = TypeVar("T")
NUM_PICTURES, NUM_PRIOR = 5, 20
WORDING = CaptionVariants("acme", shuffle=True, classes=True)


def on_all(num_workers: int, work: Callable[[Collectives], T]) -> list[T]:
    """The result (or error) of `work` on each of this many workers, which are threads."""
    group = Together(num_workers)
    with ThreadPoolExecutor(num_workers) as pool:
        return [each.result(60) for each in [pool.submit(work, group.worker(rank)) for rank in range(num_workers)]]


class Counted(Sequence[Picture]):
    """Pictures that note who was looked up."""

    def __init__(self) -> None:
        self.looked_up: list[int] = []

    def __len__(self) -> int:
        return NUM_PICTURES

    def __getitem__(self, place: int) -> Picture:  # type: ignore[override]
        self.looked_up.append(place)
        picture = drawn(place)
        return Picture(picture.image, f"photo of acme logo, red, round, {place}", picture.name)


def encoded(
    family: Family, collectives: Collectives, pictures: Sequence[Picture], cache: DiskCache | None = None
) -> Examples:
    prior = [drawn(n, "prior") for n in range(30, 30 + NUM_PRIOR)]
    return encode(family, pictures, (48, SIDE), prior, WORDING, cache, collectives)


def must_be_equal(one: Examples, other: Examples) -> None:
    assert (one.names, one.digest, one.no_caption) == (other.names, other.digest, other.no_caption)
    assert torch.equal(one.text_rows_NV, other.text_rows_NV)
    assert torch.equal(one.class_rows_N, other.class_rows_N)
    assert torch.equal(one.thumbs_P3SS, other.thumbs_P3SS)
    assert all(torch.equal(a, b) for a, b in zip(one.latents, other.latents, strict=True))
    assert all(torch.equal(one.text[name], other.text[name]) for name in one.text.tensors)


def test_bytes_of_any_length_reach_every_worker_in_the_order_of_ranks():
    told = [b"", b"one", b"the third is longer"]
    assert on_all(3, lambda collectives: gather_bytes(collectives, told[collectives.rank])) == [told] * 3


def test_each_thing_is_made_by_one_worker_and_everybody_has_all():
    made: list[int] = []

    def make(number: int) -> dict[str, torch.Tensor]:
        made.append(number)
        return {"square": torch.tensor(number**2), "name/of": torch.full((number,), 1.5, dtype=torch.bfloat16)}

    results = on_all(3, lambda collectives: shared(collectives, range(7), make))
    assert sorted(made) == list(range(7))
    for result in results:
        assert [int(each["square"]) for each in result] == [n**2 for n in range(7)]
        assert result[4]["name/of"].dtype == torch.bfloat16


def test_what_is_wrong_for_one_worker_ends_all_in_the_same_way():
    def make(number: int) -> dict[str, torch.Tensor]:
        if number == 2:
            raise InvalidInput("picture 2 does not decode", param="training_asset_ids")
        return {}

    def told(collectives: Collectives) -> InvalidInput:
        with pytest.raises(InvalidInput, match="picture 2") as caught:
            shared(collectives, range(5), make)
        return caught.value

    assert [problem.param for problem in on_all(3, told)] == ["training_asset_ids"] * 3


def test_an_asset_that_is_gone_is_gone_for_all():
    def make(number: int) -> dict[str, torch.Tensor]:
        raise NotFound("no such asset")

    def told(collectives: Collectives) -> bool:
        with pytest.raises(NotFound):
            shared(collectives, [0], make)
        return True

    assert on_all(2, told) == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_examples_have_the_same_bits_whoever_encodes_them_and_each_picture_is_read_once(name):
    alone = encoded(fresh_family(name), Collectives(), Counted())
    families, pictures = [fresh_family(name) for _ in range(3)], Counted()
    for together in on_all(3, lambda collectives: encoded(families[collectives.rank], collectives, pictures)):
        must_be_equal(alone, together)
    assert sorted(pictures.looked_up) == list(range(NUM_PICTURES))


def test_no_worker_encodes_what_another_one_does(monkeypatch):
    rows: list[int] = []
    real = encoding._latents
    monkeypatch.setattr(encoding, "_latents", lambda family, images: rows.append(len(images)) or real(family, images))
    families = [fresh_family() for _ in range(2)]
    on_all(2, lambda collectives: encoded(families[collectives.rank], collectives, Counted()))
    assert sum(rows) == 2 * NUM_PICTURES + NUM_PRIOR


def test_prior_pictures_are_encoded_once_for_all_runs_of_a_brand(tmp_path: Path, monkeypatch):
    family = fresh_family()
    cache = DiskCache(tmp_path, "acme", family.revision, str(family.dtype))
    first = encoded(family, Collectives(), Counted(), cache)
    monkeypatch.setattr(encoding, "_latents", None)
    must_be_equal(first, encoded(family, Collectives(), Counted(), cache))


@pytest.mark.slow
def test_samples_have_the_same_bits_whoever_draws_them():
    prompts = ("photo of acme logo", "a cat", "a red house")
    alone = samples.draw_samples(small_trainer(), prompts)
    together = Together(2)
    trainers = [small_trainer(collectives=together.worker(rank)) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        drawings = list(pool.map(lambda trainer: samples.draw_samples(trainer, prompts), trainers))
    assert torch.equal(drawings[0], alone)
    assert torch.equal(drawings[1], alone)
