"""What names an adapter: its content. Never a name that can change, never a path, never a client's integer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """One published LoRA of one brand.

    Args:
        brand_id: whose it is.
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
        """What people call it within the brand: ``flux-lora-v2``."""
        return f"{self.family}-lora-v{self.version}"

    @property
    def routing_id(self) -> str:
        """An opaque digest for routers and metrics; says nothing of brand or name."""
        return hashlib.sha256(f"{self.brand_id}/{self.sha256}".encode()).hexdigest()[:24]
