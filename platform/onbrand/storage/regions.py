"""Folders of regions: a brand has one home region, where its bytes stay. A region is never part of a key."""

from __future__ import annotations

import re
from dataclasses import dataclass

from onbrand.brand import LOOKS_LIKE_REGION
from onbrand.errors import InvalidInput

_REGION = re.compile(r"(?![0-9]+\Z)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
"""Region names that botocore accepts; they may become part of a host name."""


def must_be_region(text: str, param: str = "region") -> str:
    """Return `text` if it can name a region (`eu-west-1`, `auto`, `fr-par`), else raise InvalidInput naming `param`."""
    if not _REGION.fullmatch(text):
        raise InvalidInput(
            f"{param} must be 1 to 63 letters, digits and '-', begin and end with a letter or digit, and not be only "
            "digits, as 'eu-west-1', 'auto' or 'fr-par'",
            param=param,
        )
    return text


@dataclass(frozen=True, slots=True)
class Regions:
    """Maps regions to folders of a bucket.

    Brands of the home region lie at the bucket's root (``training-data/acme/...``), those of another region in that
    region's folder (``training-data/eu-west-1/acme/...``). A region's folder is never a brand's: no brand's name begins
    like `eu-west-1`, and a region whose name could be a brand's has a folder beginning with ``_``
    (``training-data/_garage/acme/...``).

    Args:
        home: the region of this platform (``ONBRAND_REGION``); fixed once brands exist.
    """

    home: str

    def __post_init__(self) -> None:
        must_be_region(self.home)

    def folder(self, region: str | None) -> str:
        """The part of the root between bucket and brand: empty, ``eu-west-1/`` or ``_garage/``."""
        if region is None or region == self.home:
            return ""
        mark = "" if LOOKS_LIKE_REGION.match(must_be_region(region)) else "_"
        return f"{mark}{region}/"
