"""Weights on their way to the engine: owner and content are checked, whatever place they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from onbrand.adapter import AdapterRef
from onbrand.brand import Ticket
from onbrand.errors import AdapterRefused, NotFound, TicketRefused
from onbrand.internal.generation import GenerationParameters, RenderRequest
from onbrand.serving.adapter_store import AdapterFiles, AdapterStore
from onbrand.serving.generation_runner import must_be_for

GENERATION = "0b3d4a3e-9f1c-4a66-8e5a-0c6f1d9c2b11"
MEMBER = "7c1f7f0a-54a5-4b0e-9a3c-3f6a1f1e2d22"


@pytest.fixture
def published() -> bytes:
    parts = {"unet.x.lora_A.weight": torch.ones(2, 6), "unet.x.lora_B.weight": torch.ones(5, 2)}
    return safetensors.torch.save(parts, {"format": "pt"})


@pytest.fixture
def family() -> Any:
    spec = SimpleNamespace(name="sd15", title="SD 1.5", component="unet", rank_max=128)
    return SimpleNamespace(spec=spec, denoiser=nn.ModuleDict({"x": nn.Linear(6, 5)}))


@pytest.fixture
def library(family: Any, tmp_path: Path) -> AdapterStore:
    return AdapterStore(family, AdapterFiles(tmp_path / "adapters", 2**20), 2**20)


def ref_of(data: bytes, brand: str = "acme", family: str = "sd15") -> AdapterRef:
    return AdapterRef(brand, "1d2e3f40-0000-4000-8000-000000000001", family, 1, hashlib.sha256(data).hexdigest())


def fetch_nothing() -> bytes:
    raise NotFound("this ticket opens no such weights")


def test_a_brand_loads_what_its_own_ticket_fetched(library: AdapterStore, published: bytes) -> None:
    assert library.weights(ref_of(published), lambda: published).rank == 2
    assert library.weights(ref_of(published), fetch_nothing).rank == 2  # kept: nobody is asked again


def test_the_same_file_in_another_brand_is_fetched_with_that_brands_ticket(
    library: AdapterStore, published: bytes
) -> None:
    """Neither memory nor disk answers for another brand, though its bytes are the same."""
    library.weights(ref_of(published), lambda: published)
    with pytest.raises(NotFound):
        library.weights(ref_of(published, brand="globex"), fetch_nothing)


def test_a_new_replica_finds_its_brands_file_and_no_others_on_disk(
    library: AdapterStore, family: Any, published: bytes, tmp_path: Path
) -> None:
    library.weights(ref_of(published), lambda: published)
    again = AdapterStore(family, AdapterFiles(tmp_path / "adapters", 2**20), 2**20)
    assert again.weights(ref_of(published), fetch_nothing).rank == 2
    with pytest.raises(NotFound):
        again.weights(ref_of(published, brand="globex"), fetch_nothing)


def test_bytes_that_were_not_published_are_refused(library: AdapterStore, published: bytes) -> None:
    swapped = published[:-1] + b"\x00"
    with pytest.raises(AdapterRefused, match="not those that were published"):
        library.weights(ref_of(published), lambda: swapped)


def test_a_file_that_was_changed_on_disk_is_fetched_anew(
    library: AdapterStore, family: Any, published: bytes, tmp_path: Path
) -> None:
    library.weights(ref_of(published), lambda: published)
    (file,) = (tmp_path / "adapters").glob("*.safetensors")
    file.write_bytes(published[:-1] + b"\x00")
    again = AdapterStore(family, AdapterFiles(tmp_path / "adapters", 2**20), 2**20)
    with pytest.raises(NotFound):
        again.weights(ref_of(published), fetch_nothing)


def test_another_familys_weights_are_not_tried(library: AdapterStore, published: bytes) -> None:
    with pytest.raises(AdapterRefused, match="a model of flux"):
        library.weights(ref_of(published, family="flux"), lambda: published)


def asked(published: bytes, brand: str = "acme", kind: str = "generation", of: str = GENERATION) -> RenderRequest:
    """A request with a ticket for ACME and an adapter of `brand`."""
    ticket = Ticket.issue("acme", of, MEMBER, kind, 600).sign("s" * 32)  # type: ignore[arg-type]
    parameters = GenerationParameters(prompt="p", seed=1)
    adapters = ((ref_of(published, "acme"), 1.0), (ref_of(published, brand), 1.0))
    return RenderRequest(generation_id=GENERATION, ticket=ticket, adapters=adapters, parameters=parameters)


def test_a_replica_draws_with_a_ticket_for_this_generation(published: bytes) -> None:
    assert must_be_for(asked(published)) > 0


@pytest.mark.parametrize(
    "wrong",
    [{"brand": "globex"}, {"kind": "training"}, {"of": "99999999-9f1c-4a66-8e5a-0c6f1d9c2b11"}],
    ids=["another brand's adapter", "a ticket of another kind", "another generation's ticket"],
)
def test_a_replica_refuses_what_does_not_belong_together(wrong: dict[str, str], published: bytes) -> None:
    make: Callable[..., RenderRequest] = asked
    with pytest.raises(TicketRefused):
        must_be_for(make(published, **wrong))
