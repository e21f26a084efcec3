"""A brand's options of a fine-tune, with their bounds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from onbrand.config import NumWorkers
from onbrand.errors import InvalidInput
from onbrand.families.spec import RANK_MAX, TargetPreset
from onbrand.visible import hidden_in

OptimizerName = Literal["adamw", "adamw8bit", "prodigy"]
ScheduleName = Literal["cosine", "linear", "constant"]
TimestepSampling = Literal["uniform", "logit_normal", "shift"]
Quantization = Literal["none", "int8", "nf4"]
LEARNING_RATE_MAX = 0.1
_TRIGGER_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,39}")


class TrainingConfig(BaseModel):
    """A brand's options of a fine-tune. None: the base's recommendation, else the family's recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int | None = Field(None, ge=1, le=20_000)
    optimizer: OptimizerName = Field("adamw", description="`prodigy` finds its own step size.")
    learning_rate: float | None = Field(
        None, gt=0, le=10, allow_inf_nan=False, description="At most 0.1; for `prodigy` a factor, 1 by default."
    )
    lr_schedule: ScheduleName = Field("constant", description="What the learning rate does after its warm-up.")
    rank: int | None = Field(None, ge=1, le=RANK_MAX)
    resolution: int | None = Field(None, ge=64, le=2048, multiple_of=64)
    batch_size: int | None = Field(None, ge=1, le=64)
    accumulation: int | None = Field(
        None, ge=1, le=64, description="In how many parts a worker goes through its share of a batch: less memory."
    )
    gradient_checkpointing: bool | None = Field(None, description="Less memory for time; None: large bases on a GPU.")
    quantization: Quantization | None = Field(
        None, description="Bits of the frozen base's weights while it is trained; None: fewer where memory asks for it."
    )
    targets: TargetPreset | None = None
    trigger_word: str | None = Field(None, description="What `[brand]` in captions and prompts stands for.")
    seed: int = Field(0, ge=0, le=2**32 - 1)
    caption_dropout: float = Field(0.05, ge=0, le=1)
    shuffle_captions: bool = Field(
        False, description="Parts between commas come in changing order, but for the first and the trigger word's."
    )
    ema_decay: float = Field(0.99, ge=0, lt=1)
    min_snr_gamma: float = Field(5.0, ge=0, le=100, description="Min-SNR weighting of epsilon bases; 0: none.")
    timestep_sampling: TimestepSampling | None = None
    prior_weight: float = Field(
        0.0, ge=0, le=10, description="How much captions without the trigger word must stay as the base draws them."
    )
    held_out: int | None = Field(
        None, ge=0, le=64, description="Pictures that judge instead of being trained on; None: a sixth, of 8 or more."
    )
    validate_every: int | None = Field(None, ge=1, le=20_000)
    patience: int = Field(4, ge=0, le=1_000, description="Validations without a new best before the run ends; 0: all.")
    sample_prompts: tuple[str, ...] = Field((), max_length=8)
    sample_every: int | None = Field(None, ge=1, le=20_000)
    checkpoint_every: int | None = Field(None, ge=1, le=20_000)
    num_workers: NumWorkers | tuple[NumWorkers, NumWorkers] | None = Field(
        None, description="A number, or the fewest and the most: as many as there is room for, at any time."
    )
    continue_from: str | None = Field(
        None, min_length=1, max_length=100, description="A model of the brand, by name or id, to begin with."
    )

    @field_validator("learning_rate")
    @classmethod
    def _learning_rate_fits_the_optimizer(cls, rate: float | None, info: ValidationInfo) -> float | None:
        if rate is not None and rate > LEARNING_RATE_MAX and info.data.get("optimizer") != "prodigy":
            raise ValueError(f"must be at most {LEARNING_RATE_MAX} (a factor up to 10 with the optimizer prodigy)")
        return rate

    @field_validator("num_workers")
    @classmethod
    def _fewest_come_first(cls, wanted: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
        if isinstance(wanted, tuple) and wanted[0] > wanted[1]:
            raise ValueError("must be a number, or the fewest and then the most")
        return wanted

    @field_validator("trigger_word")
    @classmethod
    def _trigger_word_is_plain(cls, word: str | None) -> str | None:
        if word is not None and not _TRIGGER_WORD.fullmatch(word):
            raise ValueError("must be 1 to 40 letters, digits, spaces, '_' or '-', and start with a letter or digit")
        return word

    @field_validator("sample_prompts")
    @classmethod
    def _prompts_are_bounded(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if any(not 1 <= len(prompt) <= 2_000 for prompt in prompts):
            raise ValueError("every prompt must have 1 to 2000 characters")
        if any(hidden_in(prompt, lines=True) for prompt in prompts):
            raise ValueError("a prompt holds characters that cannot be seen; leave them out")
        return prompts


def workers_between(asked: Sequence[int] | int | None, usual: Sequence[int] | int, batch_size: int) -> tuple[int, int]:
    """The fewest and the most workers: the owner's numbers, else the cluster's, as far as they can share a batch."""
    wanted = usual if asked is None else asked
    fewest, most = (wanted, wanted) if isinstance(wanted, int) else wanted
    if asked is None:
        most = max(number for number in range(1, most + 1) if batch_size % number == 0)
    return min(fewest, most), most


def must_share_batch(batch_size: int, num_workers: int, accumulation: int | None) -> None:
    """Raise InvalidInput naming the field unless workers, and the parts of each, get equal shares of a batch."""
    if batch_size % num_workers:
        said = f"num_workers must divide batch_size ({batch_size}); {num_workers} does not"
        raise InvalidInput(said, param="training_config.num_workers")
    if accumulation and batch_size % (num_workers * accumulation):
        said = f"accumulation times workers ({accumulation} x {num_workers}) must divide batch_size ({batch_size})"
        raise InvalidInput(said, param="training_config.accumulation")
