"""Lines of a training run's log: a code with numbers. A line has no place for a caption, prompt, path or secret."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Level = Literal["info", "warning", "error"]
AT_ONCE_MAX = 100
"""Maximum lines of one report."""
_LARGEST = 1e15


@dataclass(frozen=True, slots=True)
class LogTemplate:
    """The words of a log code, with places for its facts."""

    words: str
    level: Level = "info"

    @property
    def names(self) -> set[str]:
        """Names of the facts in the words."""
        return {name for _, name, _, _ in Formatter().parse(self.words) if name}


LOG_TEMPLATES: Mapping[str, LogTemplate] = {
    "submitted": LogTemplate("handed to the cluster, attempt {attempt}"),
    "began": LogTemplate("{steps} steps of {batch_size} pictures, workers: {num_workers}"),
    "pictures": LogTemplate("{num_trained} pictures are trained on, {num_held_out} are held out to judge by"),
    "thrifty": LogTemplate("done with less memory than wished, {steps_down} steps down: see the metrics' `memory`"),
    "out_of_memory": LogTemplate("out of memory: it goes on from its last checkpoint, a step more thrifty", "warning"),
    "leaving": LogTemplate("step {step}: a node will be taken away; checkpoint kept", "warning"),
    "resumed": LogTemplate("goes on from the checkpoint of step {step}"),
    "retried_anew": LogTemplate(
        "begins anew: plan, pictures, captions or base are not those of the job that it retries"
    ),
    "stopped": LogTemplate("its owner ends it at step {step}: step {best_step} is published"),
    "judged": LogTemplate("step {step}: loss {loss:.4f} on the held-out pictures"),
    "judged_best": LogTemplate("step {step}: loss {loss:.4f} on the held-out pictures, the best so far"),
    "kept": LogTemplate("step {step}: checkpoint kept"),
    "copied": LogTemplate(
        "step {step}: sample {index} is nearly a copy of the picture {asset_id}; give more and more different "
        "pictures, fewer steps or a lower rank",
        "warning",
    ),
    "ended_early": LogTemplate("nothing was better than step {best_step}: training ends at step {step}"),
    "trained": LogTemplate("all {steps} steps are done"),
    "proved": LogTemplate("the adapter of step {step} is proved: diffusers draws the same, to {difference:.0e}"),
}


class Line(BaseModel):
    """One line as a run sends it. Raises ValidationError for an unknown code, or facts that do not match the code.

    Args:
        facts: numbers below 1e15, and UUIDs under names that end in ``_id``; exactly those in the code's words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: str
    facts: dict[str, bool | int | float | str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _must_be_known(self) -> Self:
        saying = LOG_TEMPLATES.get(self.code)
        if saying is None or set(self.facts) != saying.names:
            raise ValueError("code and facts are not a line of ours")
        for name, value in self.facts.items():
            _must_be_number_or_id(name, value)
        return self


def _must_be_number_or_id(name: str, value: object) -> None:
    if name.endswith("_id"):
        if str(uuid.UUID(str(value))) != value:
            raise ValueError(f"{name} must be an id")
    elif not isinstance(value, int | float) or not abs(value) < _LARGEST:
        raise ValueError(f"{name} must be a number")
