"""Results of a training step, and sums whose order is fixed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onbrand.errors import TrainingFailed
from onbrand.families.family import Conditioning, Family
from onbrand.training.kernels.lora_layers import frozen_base
from onbrand.training.recipes import Plan


@dataclass(frozen=True)
class StepFacts:
    """Results of one step.

    Args:
        step: steps done, this one included.
        loss: mean over the brand's rows.
        prior_loss: mean over the prior rows; None if there are none.
        kept_loss: mean distance to the frozen base on captions without the trigger word; None without `prior_weight`.
        validation_loss: on the held-out pictures, at steps that end with a validation.
        stopped: a worker was asked to stop, so the step changed nothing.
        check_preemption: a worker wants all workers to ask Ray about preemption.
    """

    step: int
    loss: float
    prior_loss: float | None
    learning_rate: float
    gradient_norm: float
    stopped: bool
    kept_loss: float | None = None
    validation_loss: float | None = None
    check_preemption: bool = False


def _distance_to_base(family: Family, noisy: Tensor, t_B: Tensor, plain: Conditioning) -> Tensor:
    """[B]: prior preservation without pictures: the adapter's change where captions do not name the brand.

    Mean squared error between the predictions with and without the adapter, for the same noisy latents and captions
    without the trigger word. After the prior-preservation loss of Ruiz et al. 2023, eq. 2, with the frozen base's
    predictions in place of pictures that it generated.
    """
    with torch.no_grad(), frozen_base(family.denoiser):
        wanted = family.denoise(noisy, t_B, plain)
    return (family.denoise(noisy, t_B, plain).float() - wanted.float()).pow(2).flatten(1).mean(1)


def _sum_in_order(packets_SK: Tensor) -> Tensor:
    """The sum over shards in fixed order: bit-identical for any number of workers."""
    total = packets_SK[0].clone()
    for packet_K in packets_SK[1:]:
        total += packet_K
    return total


def must_share(plan: Plan, num_workers: int) -> None:
    """Raise TrainingFailed if there are fewer shards than workers."""
    if num_workers > plan.num_shards:
        raise TrainingFailed(f"{num_workers} workers cannot share {plan.num_shards} shards; lower num_workers")
