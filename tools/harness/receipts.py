"""Receipts of images that no engine drew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jwt

from onbrand.internal.generation import RenderRequest

CUT = {"field": "prompt", "tokenizer": "tokenizer", "tokens": 91, "read": 77}
"""An engine's note about a prompt that is too long, for prompts with `[long]` in them."""


def receipt_of(brand_id: str, adapters: Iterable[tuple[str, float]] = ()) -> dict[str, Any]:
    """A complete receipt; adapters are the hashes of their files, with scales."""
    used = [{"sha256": sha256, "scale": scale} for sha256, scale in adapters]
    return {
        "brand_id": brand_id,
        "adapters": used,
        "base_revision": "fake",
        "sampler": "euler",
        "num_inference_steps": 4,
        "seed": 7,
        "batch_sizes": [1],
        "slot_generation": 1 if used else None,
    }


def receipt_for(request: RenderRequest) -> dict[str, Any]:
    """The receipt that an engine would give for an image of this request."""
    claims = jwt.decode(request.ticket, options={"verify_signature": False})
    receipt = receipt_of(claims["brand_id"], [(ref.sha256, scale) for ref, scale in request.adapters])
    return receipt | ({"cut": [CUT]} if "[long]" in request.parameters.prompt else {"cut": []})
