"""The root of a region: a brand has one home region, and its bytes stay there. A region is never part of a key."""

from __future__ import annotations

import re
from dataclasses import dataclass

from onbrand.errors import InvalidInput

_REGION = re.compile(r"[a-z]{2}(?:-[a-z]+)+-[0-9]")


def must_be_region(text: str) -> str:
    """Return `text` if it names a region (`eu-west-1`), else raise InvalidInput."""
    if not _REGION.fullmatch(text):
        raise InvalidInput("a region looks like 'eu-west-1'", param="region")
    return text


@dataclass(frozen=True, slots=True)
class Regions:
    """Which folder of a bucket holds which region.

    Brands of the home region lie at the bucket's root (``training-data/acme/...``); those of another region
    in that region's folder (``training-data/eu-west-1/acme/...``). No brand may be named like a region.

    Args:
        home: the region of this platform (``ONBRAND_REGION``); fixed once brands exist.
    """

    home: str

    def __post_init__(self) -> None:
        must_be_region(self.home)

    def folder(self, region: str | None) -> str:
        """The part of the root between bucket and brand: empty, or ``eu-west-1/``."""
        if region is None or region == self.home:
            return ""
        return f"{must_be_region(region)}/"
