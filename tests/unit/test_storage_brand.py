"""The two checks of a brand's store, each alone: the pattern of a key, and the place that it resolves to."""

from __future__ import annotations

from typing import Any

import pytest

from onbrand.errors import NotFound
from onbrand.storage.layout import Key
from onbrand.storage.store import BrandStore


class Trusting:
    """A backend that accepts every place, or none."""

    def __init__(self, trusts: bool = True) -> None:
        self.trusts = trusts

    def must_lie_in(self, bucket: str, name: str, folder: str) -> None:
        if not self.trusts:
            raise NotFound("there is no such object")

    def exists(self, bucket: str, name: str) -> bool:
        return True


def store(trusts: bool = True) -> BrandStore:
    backend: Any = Trusting(trusts)
    return BrandStore(backend, "acme")


def test_a_brands_own_key_passes_both() -> None:
    assert store().exists(Key("models", "acme/sd15-lora-v1.safetensors"))


@pytest.mark.parametrize("name", ["acme-2/logo-001.png", "acme2/logo-001.png", "globex/logo-001.png"])
def test_the_pattern_alone_keeps_another_brand_out(name: str) -> None:
    with pytest.raises(NotFound):
        store().exists(Key("training-data", name))


def test_the_place_alone_keeps_another_brand_out() -> None:
    with pytest.raises(NotFound):
        store(trusts=False).exists(Key("training-data", "acme/logo-001.png"))
