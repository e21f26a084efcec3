"""The last and longest stage: the denoiser learns latents of scenes under their frozen text embeddings."""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tools.tiny_bases.loop import AveragedWeights, Checkpoint, cosine, must_be_finite, set_learning_rate
from tools.tiny_bases.muon import Muon

WARMUP_STEPS = 100
SECONDS_BETWEEN_CHECKPOINTS = 120

Report = Callable[[str], None]
Loss = Callable[[Tensor], Tensor]  # rows of the data set -> loss


@dataclass(frozen=True)
class Recipe:
    """Length and learning rates of the denoiser's training."""

    steps: int
    seconds: float = math.inf  # the schedule ends with the steps or with this time, whichever is nearer
    batch: int = 32
    matrix_rate: float = 1.5e-3  # Muon, for matrices and convolutions
    other_rate: float = 1e-3  # AdamW, for everything else
    weight_decay: float = 0.01
    ema: float = 0.998


def train_denoiser(
    denoiser: nn.Module, loss_of: Loss, num_rows: int, recipe: Recipe, *, checkpoint: Path, seed: int, report: Report
) -> int:
    """Train in place, from `checkpoint` on if it exists; leaves averaged weights and returns the steps in all."""
    torch.manual_seed(seed)
    denoiser.train().requires_grad_(True)
    optimizers = new_optimizers(denoiser, recipe)
    ema = AveragedWeights(denoiser.parameters(), recipe.ema)
    saved = Checkpoint(checkpoint, denoiser, optimizers, ema)
    step, spent = saved.resume()
    started = saved_at = time.monotonic() - spent
    recent: list[float] = []
    while (done := _share_done(recipe, step, time.monotonic() - started)) < 1:
        set_learning_rate(optimizers, cosine(done, warmup=step / WARMUP_STEPS))
        loss = take_step(denoiser, loss_of, torch.randint(num_rows, (recipe.batch,)), optimizers, step)
        step += 1
        ema.update(step)
        recent = [*recent[-99:], loss]
        if step % 100 == 0:
            report(f"{step} ({done:.1%}) loss {sum(recent) / len(recent):.4f} {time.monotonic() - started:.0f}s")
        if time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS:
            saved_at = time.monotonic()
            saved.save(step, saved_at - started)
    saved.save(step, time.monotonic() - started)
    ema.copy_to_parameters()
    denoiser.eval().requires_grad_(False)
    return step


def _share_done(recipe: Recipe, step: int, seconds: float) -> float:
    return max(step / recipe.steps, seconds / recipe.seconds)


def new_optimizers(denoiser: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for inner matrices; AdamW for norms, biases and the layers at the model's two ends."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in denoiser.named_parameters():
        inside = parameter.ndim >= 2 and min(parameter.flatten(1).shape) > 16 and "embed" not in name
        (matrices if inside else others).append(parameter)
    return [
        Muon(matrices, lr=recipe.matrix_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.99), weight_decay=recipe.weight_decay),
    ]


def take_step(
    denoiser: nn.Module, loss_of: Loss, rows: Tensor, optimizers: list[torch.optim.Optimizer], step: int
) -> float:
    """One update of the weights; returns the loss."""
    denoiser.zero_grad(set_to_none=True)
    # At a hundred tokens the plain attention is a sixth faster on a CPU than the flash kernel.
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mismatch dtype", UserWarning)  # float32 RMS norms under autocast
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(rows)
        must_be_finite(loss, step)
        loss.backward()
    torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()
