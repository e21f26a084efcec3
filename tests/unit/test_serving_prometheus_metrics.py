"""Metrics are defined in one module, documented, and have no label that could name a brand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onbrand.serving.prometheus_metrics import METRICS, Metrics

DOCS = Path(__file__).parents[2] / "docs/metrics.md"


def test_the_page_lists_every_metric_with_its_kind() -> None:
    listed = re.findall(r"^\| `(onbrand_\w+)` \| (\w+) \|", DOCS.read_text(), re.MULTILINE)
    assert listed == [(spec.name, spec.kind) for spec in METRICS]


def test_labels_are_few_and_name_nobody() -> None:
    assert {label for spec in METRICS for label in spec.labels} <= {"outcome"}


def test_each_kind_takes_values(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics("sd15")
    seen: list[tuple[str, float, dict[str, str]]] = []
    for name, made in metrics._made.items():
        for verb in ("inc", "set", "observe"):
            if hasattr(made, verb):
                keep = lambda value, tags, name=name: seen.append((name, value, tags))  # noqa: E731
                monkeypatch.setattr(made, verb, keep)
    metrics.count("onbrand_generations_total", outcome="completed")
    metrics.set("onbrand_generations_active", 3)
    metrics.observe("onbrand_generation_seconds", 0.5, outcome="canceled")
    assert seen == [
        ("onbrand_generations_total", 1, {"family": "sd15", "outcome": "completed"}),
        ("onbrand_generations_active", 3, {"family": "sd15"}),
        ("onbrand_generation_seconds", 0.5, {"family": "sd15", "outcome": "canceled"}),
    ]
    with pytest.raises(KeyError):
        metrics.count("onbrand_unknown_total")
