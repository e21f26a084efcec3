"""What one fine-tune does, complete and frozen: the owner's wishes over the base's advice over the family's recipe."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from onbrand.config import FamilyName
from onbrand.errors import InvalidInput
from onbrand.families.spec import (
    FamilySpec,
    OptimizerName,
    Quantization,
    Recommended,
    ScheduleName,
    TargetPreset,
    TimestepSampling,
    TrainingConfig,
    workers_between,
)

PLACEHOLDER = "[brand]"
LONGEST_STRETCH = 100
"""Steps between checkpoints at most, when the owner does not say."""
NUM_VALIDATIONS = 12
"""Validations of a run, when the owner does not say: a tenth of its time or less."""
_PRODIGY_FACTOR = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides the weights a run ends with, and what it shows on the way.

    Args:
        batch_size: rows of the brand's pictures in a step, over all workers.
        prior_rows: rows of the base's own world added to them (0: none).
        num_shards: a step's rows are cut into so many equal shards, whose gradients are added in order. Workers share
            the shards, so any number of workers gives the same bits.
        num_workers, min_workers: the most and the fewest that share the run.
        resolution: of samples, and the largest that is trained at; `more_resolutions` are the others.
        gradient_checkpointing: None leaves it to the base's size and device. It changes memory, not bits.
        quantization: of the frozen base; None leaves it to the device's memory.
        min_snr_gamma: None: every timestep counts the same.
        prior_weight: of the error against the frozen base on captions without the trigger word (0: none).
        held_out: how many pictures judge the run; None leaves it to their number.
        patience: validations without a new best, after which the run ends; 0: never before its last step.
        start_sha256: the published file whose weights it begins with; None: it begins at nothing.
        warmup_steps, floor: learning rate rises over the first, then stays (or falls to `floor` of its peak, in half a
            cosine or a line, by `lr_schedule`).
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
        """Linear warm-up, then as it is, or a half cosine (Loshchilov & Hutter 2017, eq. 5) or a line down to `floor`.

        Steps count from 0.
        """
        gone = min(1.0, step / self.steps)
        falling = {"cosine": 0.5 * (1 + math.cos(math.pi * gone)), "linear": 1 - gone, "constant": 1.0}
        rising = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * rising * (self.floor + (1 - self.floor) * falling[self.lr_schedule])

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that continues it: not the number of workers, nor what is shown."""
        shown = {"num_workers", "min_workers", "checkpoint_every", "sample_every", "sample_prompts"}
        thrifty = {"gradient_checkpointing", "quantization"}
        return {name: value for name, value in asdict(self).items() if name not in shown | thrifty}


def make_plan(
    spec: FamilySpec,
    recommended: Recommended,
    config: TrainingConfig,
    brand_id: str,
    train_workers: int | tuple[int, int] = 1,
) -> Plan:
    """The plan of a job. Raises InvalidInput naming the field when wishes contradict each other.

    Args:
        train_workers: the cluster's number of workers per job (or fewest and most), where the owner does not say.
    """

    def chosen(name: str) -> Any:
        wishes = (getattr(source, name) for source in (config, recommended.training, spec.recipe))
        return next(wish for wish in wishes if wish is not None)

    steps, batch_size = chosen("steps"), chosen("batch_size")
    resolution = config.resolution or recommended.training.resolution or recommended.resolution
    spec.must_be_size(resolution, "resolution")
    said = config.resolution or recommended.training.resolution
    min_workers, num_workers = _workers(config.num_workers, train_workers, batch_size)
    num_shards = _shards(num_workers, config.accumulation, batch_size)
    trigger_word = config.trigger_word or brand_id
    return Plan(
        family=spec.name,
        steps=steps,
        learning_rate=_learning_rate(config, chosen("learning_rate")),
        rank=chosen("rank"),
        targets=chosen("targets"),
        resolution=resolution,
        batch_size=batch_size,
        prior_rows=_prior_rows(batch_size, num_shards) if recommended.prior else 0,
        num_shards=num_shards,
        num_workers=num_workers,
        min_workers=min_workers,
        seed=config.seed,
        trigger_word=trigger_word,
        caption_dropout=config.caption_dropout,
        ema_decay=config.ema_decay,
        checkpoint_every=config.checkpoint_every or min(LONGEST_STRETCH, math.ceil(steps / 4)),
        sample_every=config.sample_every or math.ceil(steps / 2),
        sample_prompts=tuple(prompt.replace(PLACEHOLDER, trigger_word) for prompt in config.sample_prompts),
        validate_every=config.validate_every or math.ceil(steps / NUM_VALIDATIONS),
        more_resolutions=() if said else tuple(side for side in spec.recipe.more_resolutions if side < resolution),
        optimizer=config.optimizer,
        lr_schedule=config.lr_schedule,
        gradient_checkpointing=config.gradient_checkpointing,
        quantization=config.quantization,
        shuffle_captions=config.shuffle_captions,
        min_snr_gamma=config.min_snr_gamma or None,
        timestep_sampling=config.timestep_sampling,
        prior_weight=config.prior_weight,
        held_out=config.held_out,
        patience=config.patience,
        warmup_steps=max(1, min(20, steps // 10)),
    )


def _learning_rate(config: TrainingConfig, usual: float) -> float:
    """Prodigy's is a factor of the step size that it finds: other optimizers' advice means nothing to it."""
    return (config.learning_rate or _PRODIGY_FACTOR) if config.optimizer == "prodigy" else usual


def _workers(asked: int | tuple[int, int] | None, usual: int | tuple[int, int], batch_size: int) -> tuple[int, int]:
    fewest, most = workers_between(asked, usual, batch_size)
    if batch_size % most:
        raise InvalidInput(
            f"num_workers must divide batch_size ({batch_size}); {most} does not", param="training_config.num_workers"
        )
    return fewest, most


def _shards(num_workers: int, accumulation: int | None, batch_size: int) -> int:
    """What accumulation says; else two where one worker runs and the batch is even, so that a run of one worker and
    one of two are the same to the bit."""
    if accumulation is None:
        return 2 if num_workers == 1 and batch_size % 2 == 0 else num_workers
    if batch_size % (num_workers * accumulation):
        raise InvalidInput(
            f"accumulation times workers ({accumulation} x {num_workers}) must divide batch_size ({batch_size})",
            param="training_config.accumulation",
        )
    return num_workers * accumulation


def _prior_rows(batch_size: int, num_shards: int) -> int:
    """Half as many as the brand's rows, rounded up to whole shards."""
    return math.ceil(batch_size / 2 / num_shards) * num_shards
