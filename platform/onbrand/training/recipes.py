"""The complete, frozen plan of a fine-tune: the owner's settings, else what the base recommends, else the family's
recipe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from onbrand.brand import with_trigger_word
from onbrand.config import FamilyName
from onbrand.families.spec import FamilySpec, Recommended, TargetPreset
from onbrand.families.training_config import (
    OptimizerName,
    Quantization,
    ScheduleName,
    TimestepSampling,
    TrainingConfig,
    must_share_batch,
    workers_between,
)

LONGEST_STRETCH = 100
"""Default maximum of steps between checkpoints."""
NUM_VALIDATIONS = 12
"""Default number of validations of a run; they take a tenth of its time or less."""
_PRODIGY_FACTOR = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """All settings that determine a run's final weights, samples and checkpoints.

    Args:
        batch_size: rows of the brand's pictures in a step, over all workers.
        prior_rows: prior rows added to them: half as many, rounded up to a multiple of the shards; or 0.
        num_shards: number of equal shards of a step's rows. Gradients are added in the order of shards, so the result
            is bit-identical for any number of workers.
        num_workers, min_workers: maximum and minimum number of workers.
        resolution: of samples, and the largest in training; `more_resolutions` are the others.
        gradient_checkpointing: if None, decided by the base's size and the device. It changes memory, not bits.
        quantization: of the frozen base; None: decided by the device's memory.
        min_snr_gamma: if None, all timesteps have equal weight.
        prior_weight: weight of the error against the frozen base on captions without the trigger word (0: none).
        held_out: number of held-out pictures; None: decided by the number of pictures.
        patience: validations without a new best before the run ends early; 0: it never ends early.
        start_sha256: published file with the initial weights; None: a new adapter.
        warmup_steps, floor: the learning rate rises over `warmup_steps`; then `lr_schedule` keeps it constant, or lets
            it fall to `floor` of its peak along a half cosine or a line.
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
    validate_every: int
    more_resolutions: tuple[int, ...] = ()
    optimizer: OptimizerName = "adamw"
    lr_schedule: ScheduleName = "constant"
    gradient_checkpointing: bool | None = None
    quantization: Quantization | None = None
    shuffle_captions: bool = False
    min_snr_gamma: float | None = 5.0
    timestep_sampling: TimestepSampling | None = None
    min_workers: int | None = None
    prior_weight: float = 0.0
    held_out: int | None = None
    patience: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    warmup_steps: int = 20
    floor: float = 0.1
    start_sha256: str | None = None

    @property
    def num_rows(self) -> int:
        return self.batch_size + self.prior_rows

    @property
    def resolutions(self) -> tuple[int, ...]:
        return (*self.more_resolutions, self.resolution)

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then constant, a half cosine (Loshchilov & Hutter 2017, eq. 5) or a line down to `floor`.

        Steps count from 0.
        """
        gone = min(1.0, step / self.steps)
        falling = {"cosine": 0.5 * (1 + math.cos(math.pi * gone)), "linear": 1 - gone, "constant": 1.0}
        rising = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * rising * (self.floor + (1 - self.floor) * falling[self.lr_schedule])

    def identity(self) -> dict[str, Any]:
        """Settings that must be equal to continue a checkpoint. Excludes workers, samples, checkpoints and memory."""
        progress = {"num_workers", "min_workers", "checkpoint_every", "sample_every", "sample_prompts"}
        memory = {"gradient_checkpointing", "quantization"}
        return {name: value for name, value in asdict(self).items() if name not in progress | memory}


_AS_CONFIGURED = (
    "seed",
    "caption_dropout",
    "ema_decay",
    "optimizer",
    "lr_schedule",
    "gradient_checkpointing",
    "quantization",
    "shuffle_captions",
    "timestep_sampling",
    "prior_weight",
    "held_out",
    "patience",
)
"""Fields of a plan that are the owner's settings or their defaults, unchanged."""


def make_plan(
    spec: FamilySpec,
    recommended: Recommended,
    config: TrainingConfig,
    brand_id: str,
    train_workers: int | tuple[int, int] = 1,
) -> Plan:
    """The plan of a job. Raises InvalidInput with the field's name if settings contradict each other.

    Args:
        train_workers: the cluster's default number of workers per job (or minimum and maximum).
    """
    chosen = partial(_first_set, (config, recommended.training, spec.recipe))
    steps, batch_size = chosen("steps"), chosen("batch_size")
    said = config.resolution or recommended.training.resolution
    resolution = said or recommended.resolution
    spec.must_be_size(resolution, "resolution")
    min_workers, num_workers = workers_between(config.num_workers, train_workers, batch_size)
    must_share_batch(batch_size, num_workers, config.accumulation)
    num_shards = _shards(num_workers, config.accumulation, batch_size)
    word = config.trigger_word or brand_id
    return Plan(
        **{name: getattr(config, name) for name in _AS_CONFIGURED},
        family=spec.name,
        steps=steps,
        learning_rate=_learning_rate(config, chosen("learning_rate")),
        rank=chosen("rank"),
        targets=chosen("targets"),
        resolution=resolution,
        batch_size=batch_size,
        prior_rows=math.ceil(batch_size / 2 / num_shards) * num_shards if recommended.prior else 0,
        num_shards=num_shards,
        num_workers=num_workers,
        min_workers=min_workers,
        trigger_word=word,
        checkpoint_every=config.checkpoint_every or min(LONGEST_STRETCH, math.ceil(steps / 4)),
        sample_every=config.sample_every or math.ceil(steps / 2),
        sample_prompts=tuple(with_trigger_word(prompt, word) for prompt in config.sample_prompts),
        validate_every=config.validate_every or math.ceil(steps / NUM_VALIDATIONS),
        more_resolutions=() if said else tuple(side for side in spec.recipe.more_resolutions if side < resolution),
        min_snr_gamma=config.min_snr_gamma or None,
        warmup_steps=max(1, min(20, steps // 10)),
    )


def _first_set(sources: Sequence[object], name: str) -> Any:
    """The field `name` of the first source where it is not None."""
    return next(value for source in sources if (value := getattr(source, name)) is not None)


def _learning_rate(config: TrainingConfig, usual: float) -> float:
    """Learning rate; for Prodigy a factor of its own estimate, so that recommendations do not apply."""
    return (config.learning_rate or _PRODIGY_FACTOR) if config.optimizer == "prodigy" else usual


def _shards(num_workers: int, accumulation: int | None, batch_size: int) -> int:
    """Number of shards: workers times accumulation. The default is one per worker, but two for one worker and an even
    batch, so that runs with one and two workers are bit-identical."""
    if accumulation is None:
        return 2 if num_workers == 1 and batch_size % 2 == 0 else num_workers
    return num_workers * accumulation
