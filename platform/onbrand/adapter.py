"""Reference to an adapter by its content, never by a mutable name, a path or a client's integer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """One published LoRA of one brand.

    Args:
        brand_id: the brand that owns it.
        model_id: the id of its row (a UUID).
        family: `sd15`, `sdxl` or `flux`.
        version: 1, 2, ... within brand and family.
        sha256: lower-case hex digest of the published safetensors file.
    """

    brand_id: str
    model_id: str
    family: str
    version: int
    sha256: str

    @property
    def name(self) -> str:
        """Display name within the brand: ``flux-lora-v2``."""
        return f"{self.family}-lora-v{self.version}"

    @property
    def routing_id(self) -> str:
        """An opaque digest for routers and metrics; reveals neither brand nor name."""
        return routing_id(self.brand_id, self.sha256)


def routing_id(brand_id: str, sha256: str) -> str:
    """The opaque digest of one brand's content: 24 hex digits."""
    return hashlib.sha256(f"{brand_id}/{sha256}".encode()).hexdigest()[:24]


def combined_sha256(parts: Sequence[tuple[str, float]]) -> str:
    """The digest of several adapters of one brand that are summed: over (sha256, scale) in their order.

    A single adapter keeps its own sha256 whatever its scale: the scale belongs to the row, not to the weights.
    """
    if len(parts) == 1:
        return parts[0][0]
    return hashlib.sha256("+".join(f"{sha256}*{float(scale)!r}" for sha256, scale in parts).encode()).hexdigest()
