"""Pictures are decoded in one batch only where a check showed equal bits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from onbrand.engine import decoding
from onbrand.engine.decoding import Decoder


class Vae:
    """A family that halves its latents' values; with `drift` a batch of several rounds differently."""

    vae_scale = 8
    device = torch.device("cpu")

    def __init__(self, drift: float = 0.0) -> None:
        self._drift, self.sizes = drift, []

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        self.sizes.append(len(latents_BCHW))
        if (latents_BCHW > 1e6).any():
            raise RuntimeError("too large")
        return latents_BCHW / 2 + (self._drift if len(latents_BCHW) > 1 else 0.0)


def latents(*values: float, side: int = 8) -> list[Tensor]:
    return [torch.full((1, 3, side, side), value) for value in values]


def values(pictures) -> list[float]:
    return [float(picture.mean()) for picture in pictures]


def test_the_first_of_a_number_are_decoded_both_ways_and_the_next_at_once():
    vae = Vae()
    decoder = Decoder(vae)
    for _ in range(2):
        assert values(decoder.images(latents(2, 4, 6))) == [1, 2, 3]
    assert vae.sizes == [3, 1, 1, 1, 3]
    assert [picture.shape for picture in decoder.images(latents(2, 4, 6))] == [(3, 8, 8)] * 3


def test_where_a_bit_changes_they_are_decoded_one_by_one():
    vae = Vae(drift=1e-6)
    decoder = Decoder(vae)
    for _ in range(2):
        assert values(decoder.images(latents(2, 4))) == [1, 2]
    assert vae.sizes == [2, 1, 1, 1, 1]


def test_every_number_and_shape_is_looked_at_by_itself():
    vae = Vae()
    decoder = Decoder(vae)
    for few in (latents(2, 4), latents(2, 4, 6), latents(2, 4, side=16)):
        decoder.images(few)
    assert vae.sizes == [2, 1, 1, 3, 1, 1, 1, 2, 1, 1]


@pytest.mark.parametrize("bad", [float("nan"), 1e7])
def test_one_that_cannot_be_decoded_is_told_and_the_others_are(bad):
    first, broken, last = Decoder(Vae()).images(latents(2, bad, 6))
    assert values([first, last]) == [1, 3]
    assert isinstance(broken, Exception)


@pytest.mark.parametrize("change", [{"device": torch.device("cuda")}, {"vae_scale": 512}])
def test_on_a_gpu_and_in_large_they_are_decoded_one_by_one(change):
    vae = Vae()
    family = SimpleNamespace(**({"decode": vae.decode, "device": vae.device, "vae_scale": 8} | change))
    assert values(Decoder(family).images(latents(2, 4))) == [1, 2]
    assert vae.sizes == [1, 1]
    assert decoding._MOST_AT_ONCE < 2 * 64 * 512**2
