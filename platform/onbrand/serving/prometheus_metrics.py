"""Prometheus metrics of the engines, exported through Ray's metrics agent with the prefix `ray_`.

A metric is added here, to `METRICS`, and to docs/metrics.md. No label holds a brand, an id, a prompt or a file name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric.

    Args:
        labels: besides `family`, which every metric has.
        boundaries: upper bounds of a histogram's buckets, ascending.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()


METRICS = (
    MetricSpec(
        "onbrand_generations_total", "counter", "Generations that ended, by outcome or error code.", ("outcome",)
    ),
    MetricSpec("onbrand_images_total", "counter", "Images that were stored."),
    MetricSpec("onbrand_generations_active", "gauge", "Generations under way in this replica."),
    MetricSpec("onbrand_adapters_in_slots", "gauge", "Adapters in slots of this replica's device."),
    MetricSpec(
        "onbrand_generation_seconds",
        "histogram",
        "Seconds from a replica's start of a generation to its end.",
        ("outcome",),
        (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128),
    ),
)


class Metrics:
    """The metrics of one engine's replica. Calls for a name outside `METRICS` raise KeyError."""

    def __init__(self, family: str) -> None:
        from ray.util import metrics

        kinds: dict[str, Any] = {"counter": metrics.Counter, "gauge": metrics.Gauge, "histogram": metrics.Histogram}
        self._family = {"family": family}
        self._made: dict[str, Any] = {}
        for spec in METRICS:
            more = {"boundaries": list(spec.boundaries)} if spec.kind == "histogram" else {}
            labels = ("family", *spec.labels)
            self._made[spec.name] = kinds[spec.kind](spec.name, description=spec.description, tag_keys=labels, **more)

    def count(self, name: str, **labels: str) -> None:
        """Add one to a counter."""
        self._made[name].inc(1, tags=self._family | labels)

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        self._made[name].set(value, tags=self._family)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a value to a histogram."""
        self._made[name].observe(value, tags=self._family | labels)
