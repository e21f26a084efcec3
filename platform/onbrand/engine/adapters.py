"""Adapters in host memory (one load per adapter, however many requests wait) and in slots (while rows use them).

An adapter is identified by its brand and its content, so "same name, new weights" cannot be stale, and one brand's
bytes never answer another brand's request. The caller fetches the bytes (`onbrand.serving`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from onbrand.adapter import combined_sha256, routing_id
from onbrand.errors import AdapterRefused
from onbrand.families.lora import AdapterWeights, LayerWeights


@dataclass(frozen=True, slots=True)
class AdapterKey:
    """The identity of weights in memory: their brand, and the hash of their file."""

    brand_id: str
    sha256: str

    @property
    def routing_id(self) -> str:
        """The id that replicas publish for it."""
        return routing_id(self.brand_id, self.sha256)


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """An adapter with its scale in one request."""

    key: AdapterKey
    weights: AdapterWeights
    scale: float = 1.0


def merge_adapters(uses: Sequence[AdapterUse]) -> AdapterUse:
    """Combine adapters into one by concatenating their ranks: sum_k c_k B_k A_k = [c_1 B_1, c_2 B_2] [A_1; A_2].

    All must be of one brand. Raises AdapterRefused otherwise.
    """
    if len(uses) == 1:
        return uses[0]
    brands = {use.key.brand_id for use in uses}
    if len(brands) != 1:
        raise AdapterRefused("adapters of different brands cannot be combined")
    digest = combined_sha256([(use.key.sha256, use.scale) for use in uses])
    names = dict.fromkeys(name for use in uses for name in use.weights.layers)
    layers = {name: _concatenated([use for use in uses if name in use.weights.layers], name) for name in names}
    rank = max(len(layer.a) for layer in layers.values())
    return AdapterUse(AdapterKey(brands.pop(), digest), AdapterWeights(layers, rank, {}))


def _concatenated(uses: Sequence[AdapterUse], name: str) -> LayerWeights:
    return LayerWeights(
        torch.cat([use.weights.layers[name].a for use in uses]),
        torch.cat([use.weights.layers[name].b * use.scale for use in uses], dim=1),
    )
