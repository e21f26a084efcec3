"""The last and longest stage: the denoiser learns latents of scenes under their frozen text embeddings."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from onbrand.families.tiny.loop import AveragedWeights, Checkpoint, cosine, must_be_finite, set_learning_rate
from onbrand.families.tiny.muon import Muon

SECONDS_BETWEEN_CHECKPOINTS = 120

Report = Callable[[str], None]
Loss = Callable[[Tensor], Tensor]  # rows of the data set -> loss


@dataclass(frozen=True)
class Recipe:
    steps: int
    batch: int = 32
    matrix_rate: float = 2e-3  # Muon, for matrices and convolutions
    other_rate: float = 1e-3  # AdamW, for everything else
    weight_decay: float = 0.01
    ema: float = 0.998


def train_denoiser(
    denoiser: nn.Module, loss_of: Loss, num_rows: int, recipe: Recipe, *, checkpoint: Path, seed: int, report: Report
) -> int:
    """Trains in place, goes on from `checkpoint` if it exists, leaves averaged weights; returns the steps taken."""
    torch.manual_seed(seed)
    denoiser.train().requires_grad_(True)
    optimizers = new_optimizers(denoiser, recipe)
    ema = AveragedWeights(denoiser.parameters(), recipe.ema)
    saved = Checkpoint(checkpoint, denoiser, optimizers, ema)
    first, started, saved_at = saved.resume(), time.monotonic(), time.monotonic()
    recent: list[float] = []
    for step in range(first, recipe.steps):
        set_learning_rate(optimizers, cosine(step, recipe.steps, warmup=100))
        loss = take_step(denoiser, loss_of, torch.randint(num_rows, (recipe.batch,)), optimizers, step)
        ema.update(step)
        recent = [*recent[-99:], loss]
        if step % 100 == 99:
            report(f"{step + 1}/{recipe.steps} loss {sum(recent) / len(recent):.4f} {time.monotonic() - started:.0f}s")
        if time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS:
            saved.save(step + 1)
            saved_at = time.monotonic()
    saved.save(recipe.steps)
    ema.copy_to_parameters()
    denoiser.eval().requires_grad_(False)
    return recipe.steps - first


def new_optimizers(denoiser: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside, AdamW for norms, biases and the layers at the model's two ends."""
    matrices, others = [], []
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
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(rows)
    must_be_finite(loss, step)
    denoiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()
