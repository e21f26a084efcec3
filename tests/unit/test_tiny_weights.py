"""The shipped weights are small, complete, in fp16 and documented, and draw what a prompt asks for."""

import json

import pytest
import safetensors
import torch

from onbrand.families.bases import must_be_base, recommended
from onbrand.families.loading import load_family
from onbrand.families.spec import SPECS
from onbrand.families.tiny import TINY_FAMILIES, tiny_base
from tools.tiny_bases.assembly import folder_bytes
from tools.tiny_bases.card import Facts, card
from tools.tiny_bases.score import prompts, score_base

every_family = pytest.mark.parametrize("family", TINY_FAMILIES)


@every_family
def test_a_base_weighs_at_most_12_megabytes(family: str):
    assert 1_000_000 < folder_bytes(tiny_base(family)) <= 12_000_000


@every_family
def test_all_weights_are_half_precision(family: str):
    for path in tiny_base(family).rglob("*.safetensors"):
        with safetensors.safe_open(path, "pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118


@every_family
def test_a_base_is_a_pipeline_of_its_family_and_advises_on_itself(family: str):
    folder = must_be_base(family, tiny_base(family))
    advice = recommended(family, folder)
    assert (advice.resolution, advice.prior, advice.training.targets) == (64, True, "all")
    assert advice.training.steps is not None
    assert json.loads((folder / "onbrand.json").read_text())["family"] == family
    assert SPECS[family].targets["all"]


@every_family
def test_no_configuration_tells_where_it_was_made(family: str):
    configs = [json.loads(path.read_text()) for path in tiny_base(family).rglob("*.json")]
    assert len(configs) > 5
    assert not any("_name_or_path" in config for config in configs)


@every_family
def test_a_base_has_a_card_with_its_figures(family: str):
    shipped = (tiny_base(family) / "README.md").read_text()
    assert "held out" in shipped
    assert "trained from scratch" in shipped


@every_family
def test_a_card_is_what_training_writes_and_names_no_licence_that_is_not_there(family: str):
    shipped = (tiny_base(family) / "README.md").read_text()
    shares = dict.fromkeys(("all3", "colour", "shape", "ground"), 1.0)
    written = card(family, Facts(1, 1.0, 1, 1.0), {"n": 1, "seen": shares, "held_out": shares}, 1)
    assert _origin(shipped) == _origin(written)
    assert "They have no separate licence." in _origin(shipped)


def _origin(text: str) -> str:
    """A card's text on the origin of its weights, without the figures."""
    return text.partition("## Made from")[2].partition("| | |")[0]


@pytest.mark.slow
@every_family
@pytest.mark.parametrize(("held", "fewest"), [(False, 11), (True, 10)], ids=["seen", "held-out"])
def test_a_base_draws_what_it_is_asked(family: str, held: bool, fewest: int):
    torch.set_num_threads(1)
    verdict = score_base(load_family(family, tiny_base(family)), prompts(12, 3, held=held), 3)
    assert round(verdict["all3"] * 12) >= fewest


def test_an_unknown_family_is_refused_by_name():
    with pytest.raises(KeyError, match="sd15, sdxl, flux"):
        tiny_base("sd3")
