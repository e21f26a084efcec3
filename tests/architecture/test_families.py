"""Few places name a family, and all of them name the same families. See `families/README.md`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from onbrand.client.objects import ModelType
from onbrand.config import FAMILIES, FamilyName
from onbrand.families.loading import CLASSES
from onbrand.families.spec import SPECS
from onbrand.families.tiny import TINY_FAMILIES
from tools.tiny_bases.architectures import new_denoiser

PACKAGE = Path(__file__).parents[2] / "platform/onbrand"


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("config.FAMILIES", FAMILIES),
        ("families.spec.SPECS", SPECS),
        ("families.loading.CLASSES", CLASSES),
        ("families.tiny.TINY_FAMILIES", TINY_FAMILIES),
        ("client.objects.ModelType", get_args(ModelType)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_place_names_every_family(place: str, named: tuple[str, ...]) -> None:
    assert sorted(named) == sorted(get_args(FamilyName)), f"{place} differs from config.FamilyName"


def test_each_family_has_its_own_spec_and_class() -> None:
    assert {name: (spec.name, CLASSES[name].spec.name) for name, spec in SPECS.items()} == {n: (n, n) for n in SPECS}


@pytest.mark.parametrize("module", ["train", "models", "demo"])
def test_the_commands_help_names_every_family(module: str) -> None:
    text = (PACKAGE / f"cli/{module}.py").read_text()
    lists = [re.findall(r"\b(?!or\b)\w+", found) for found in re.findall(r'"((?:\w+, )+\w+ or \w+)[.:]', text)]
    assert sorted(FAMILIES) in [sorted(each) for each in lists]


@pytest.mark.parametrize(
    "place",
    [
        "platform/onbrand/cli/generate.py",
        "platform/onbrand/client/generations.py",
        "docs/api.md",
        "docs/engine.md",
    ],
)
def test_each_list_of_samplers_names_every_one(place: str) -> None:
    text = (PACKAGE.parents[1] / place).read_text()
    names = {name for spec in SPECS.values() for name in spec.samplers}
    assert [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w+-])", text)] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_flavour_can_be_made(family: str) -> None:
    assert new_denoiser(family) is not None


def test_the_database_accepts_every_family() -> None:
    checks = re.findall(r"_model_type_check CHECK \(\(model_type = ANY \(ARRAY\[(.*?)\]\)", _schema())
    assert len(checks) == 3
    for check in checks:
        assert sorted(re.findall(r"'(\w+)'::text", check)) == sorted(FAMILIES)


def _schema() -> str:
    return (PACKAGE / "db/schema.sql").read_text()
