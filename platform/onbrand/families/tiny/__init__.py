"""The tiny base of every family: real pipelines at 64 px, trained from scratch on images drawn here.

Importing this package needs no torch. `tools.tiny_bases` trains and scores the bases.
"""

from pathlib import Path

TINY_FAMILIES = ("sd15", "sdxl", "flux")


def tiny_base(family: str) -> Path:
    """The diffusers folder of the shipped tiny base. Raises KeyError that lists the families."""
    if family not in TINY_FAMILIES:
        raise KeyError(f"there is no tiny {family!r}; choose one of {', '.join(TINY_FAMILIES)}")
    return Path(__file__).parent / "weights" / family
