"""Metrics, sample pictures and log lines of a training, while it runs and afterwards."""

from __future__ import annotations

import builtins
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from onbrand.client.object_bases import ApiModel, Attached


class Point(ApiModel):
    """The numbers of a training at one step; `loss` is the mean of the last 20."""

    step: int
    at: datetime
    progress: int | None = None
    loss: float | None = None
    prior_loss: float | None = None
    kept_loss: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    samples_per_s: float | None = None
    eta_seconds: float | None = None


class Validation(ApiModel):
    """The loss on the held-out pictures at one step."""

    step: int
    at: datetime
    loss: float


class MetricsSeries(ApiModel):
    """A training's metrics by step; evenly spaced points if there are more than were requested.

    Args:
        num_points, num_validations: how many exist in total.
        best: the best of all validations; its step is published.
    """

    data: tuple[Point, ...]
    num_points: int
    validations: tuple[Validation, ...] = ()
    num_validations: int = 0
    best: Validation | None = None


class Sample(Attached):
    """A picture of prompt `index`, drawn by the `base` or by the `adapter` after `step` steps, with the same seed."""

    step: int
    index: int
    drawn_by: Literal["base", "adapter"]
    seed: int
    url: str

    def read(self) -> builtins.bytes:
        """The picture's bytes; the link expires some minutes after the response."""
        return self._must_have_client().fetch(self.url)

    def download(self, path: str | Path) -> Path:
        """Save the picture to the file `path`, or into the folder `path` as ``base-00.png``, ``000100-00.png``."""
        who = "base" if self.drawn_by == "base" else f"{self.step:06d}"
        return self._must_have_client().save(self.url, path, f"{who}-{self.index:02d}.png")


class LogLine(ApiModel):
    """A line of a run's log: `message` for people, `code` and `facts` for programs."""

    seq: int
    at: datetime
    level: Literal["info", "warning", "error"]
    code: str
    message: str
    facts: dict[str, Any] = Field(default={})


class Finding(ApiModel):
    """A finding about training data: an `error` stops a job, a `warning` does not. `file` None: about all files."""

    level: Literal["error", "warning"]
    code: str
    message: str
    remedy: str
    asset_id: str | None = None
    file: str | None = None
    name: str | None = None


class DataCheck(ApiModel):
    """The result of a data check for a job that is not created yet."""

    ok: bool
    num_images: int
    num_errors: int = 0
    num_warnings: int = 0
    resolution: int | None = None
    trigger_word: str | None = None
    findings: tuple[Finding, ...] = ()
