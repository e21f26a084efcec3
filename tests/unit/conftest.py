"""Tiny bases for unit tests: real pipelines, loaded once a process."""

from functools import cache

import pytest

from onbrand.families.bases import base_source
from onbrand.families.family import Family
from onbrand.families.loading import load_family


@cache
def _loaded(name: str) -> Family:
    return load_family(name, base_source(name, {}))


@pytest.fixture(params=["sd15", "sdxl", "flux"])
def family(request) -> Family:
    """Each family's tiny base in turn. Shared: whoever attaches a LoRA detaches it."""
    return _loaded(request.param)


@pytest.fixture
def sd15() -> Family:
    return _loaded("sd15")


@pytest.fixture
def flux() -> Family:
    return _loaded("flux")
