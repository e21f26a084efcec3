"""What one fine-tune does, complete and frozen: the owner's wishes over the base's advice over the family's recipe."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from onbrand.config import FamilyName
from onbrand.errors import InvalidInput
from onbrand.families.spec import FamilySpec, Recommended, TargetPreset, TrainingConfig

PLACEHOLDER = "[brand]"
LONGEST_STRETCH = 100
"""Steps between checkpoints at most, when the owner does not say."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides the weights a run ends with, and what it shows on the way.

    Args:
        batch_size: rows of the brand's pictures in a step, over all workers.
        prior_rows: rows of the base's own world added to them (0: none).
        num_shards: a step's rows are cut into so many equal shards, whose gradients are added in order. Workers share
            the shards, so any number of workers that divides them gives the same bits.
        warmup_steps, floor: learning rate rises over the first, then falls by half a cosine to `floor` of its peak.
    """

    family: FamilyName
    steps: int
    learning_rate: float
    rank: int
    targets: TargetPreset
    resolution: int
    batch_size: int
    prior_rows: int
    num_shards: int
    num_workers: int
    seed: int
    trigger_word: str
    caption_dropout: float
    ema_decay: float
    checkpoint_every: int
    sample_every: int
    sample_prompts: tuple[str, ...]
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    warmup_steps: int = 20
    floor: float = 0.1

    @property
    def num_rows(self) -> int:
        return self.batch_size + self.prior_rows

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then a half cosine (Loshchilov & Hutter 2017, eq. 5) down to `floor`. Steps count from 0."""
        falling = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))
        rising = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * rising * (self.floor + (1 - self.floor) * falling)

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that continues it: not the number of workers, nor what is shown."""
        shown = {"num_workers", "checkpoint_every", "sample_every", "sample_prompts"}
        return {name: value for name, value in asdict(self).items() if name not in shown}


def make_plan(
    spec: FamilySpec, recommended: Recommended, config: TrainingConfig, brand_id: str, train_workers: int = 1
) -> Plan:
    """The plan of a job. Raises InvalidInput naming the field when wishes contradict each other.

    Args:
        train_workers: the cluster's number of workers per job, where the owner does not say.
    """

    def chosen(name: str) -> Any:
        wishes = (getattr(source, name) for source in (config, recommended.training, spec.recipe))
        return next(wish for wish in wishes if wish is not None)

    steps, batch_size = chosen("steps"), chosen("batch_size")
    resolution = config.resolution or recommended.training.resolution or recommended.resolution or chosen("resolution")
    spec.must_be_size(resolution, "resolution")
    num_workers = _workers(config.num_workers, train_workers, batch_size)
    num_shards = _shards(num_workers, batch_size)
    trigger_word = config.trigger_word or brand_id
    return Plan(
        family=spec.name,
        steps=steps,
        learning_rate=chosen("learning_rate"),
        rank=chosen("rank"),
        targets=chosen("targets"),
        resolution=resolution,
        batch_size=batch_size,
        prior_rows=_prior_rows(batch_size, num_shards) if recommended.prior else 0,
        num_shards=num_shards,
        num_workers=num_workers,
        seed=config.seed,
        trigger_word=trigger_word,
        caption_dropout=config.caption_dropout,
        ema_decay=config.ema_decay,
        checkpoint_every=config.checkpoint_every or min(LONGEST_STRETCH, math.ceil(steps / 4)),
        sample_every=config.sample_every or math.ceil(steps / 2),
        sample_prompts=tuple(prompt.replace(PLACEHOLDER, trigger_word) for prompt in config.sample_prompts),
        warmup_steps=max(1, min(20, steps // 10)),
    )


def _workers(asked: int | None, usual: int, batch_size: int) -> int:
    """The owner's number if so many can share the batch, else the largest that the cluster allows and that can."""
    if asked is not None and batch_size % asked:
        raise InvalidInput(
            f"num_workers must divide batch_size ({batch_size}); {asked} does not", param="training_config.num_workers"
        )
    return asked or max(number for number in range(1, usual + 1) if batch_size % number == 0)


def _shards(num_workers: int, batch_size: int) -> int:
    """Two where one or two workers run and the batch is even, so that those two runs are the same to the bit."""
    return 2 if num_workers == 1 and batch_size % 2 == 0 else num_workers


def _prior_rows(batch_size: int, num_shards: int) -> int:
    """Half as many as the brand's rows, rounded up to whole shards."""
    return math.ceil(batch_size / 2 / num_shards) * num_shards
