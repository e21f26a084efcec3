"""Capacity of the Ray cluster and of its autoscaler, counted in training workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray._private.state import available_resources_per_node, state

from onbrand.config import Settings
from onbrand.training.dispatch.providers.provider import Capacity


def wants_gpu(settings: Settings) -> bool:
    """True if training workers take a GPU each: by `settings.device`, else if the cluster has or can get a GPU."""
    if settings.device is not None:
        return settings.device.startswith("cuda")
    return ray.cluster_resources().get("GPU", 0) > 0 or _can_get("GPU") > 0


def capacity(settings: Settings) -> Capacity | None:
    """Room for workers, one CPU or one GPU each; None outside of a cluster."""
    if not ray.is_initialized():
        return None
    unit = "GPU" if wants_gpu(settings) else "CPU"
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    total = _num_workers(alive, unit)
    return Capacity(_num_workers(available_resources_per_node().values(), unit), total, max(total, _can_get(unit)))


def _num_workers(nodes: Any, unit: str) -> int:
    """Workers that fit on the nodes; fractions of two nodes hold none."""
    return sum(int(node.get(unit, 0)) for node in nodes)


def _can_get(unit: str) -> int:
    """The autoscaler's maximum of a resource; 0 without an autoscaler."""
    most: Mapping[str, int] = state.get_max_resources_from_cluster_config() or {}
    return int(most.get(unit, 0))
