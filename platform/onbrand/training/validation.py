"""Validation: the loss on held-out pictures, with fixed noise and timesteps.

The training loss says little: its timesteps and noise change, and it falls while the adapter memorises its pictures.
Workers divide the pictures. Each picture is computed alone, so the loss is bit-identical for any number of workers.
Shapes: P held-out pictures, Q sigmas x draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onbrand.errors import TrainingFailed
from onbrand.families.family import Family
from onbrand.training.data.dataset import Examples
from onbrand.training.data.sampling import generator_for

SIGMAS = (1.0, 0.75, 0.5, 0.25)
NUM_DRAWS = 1
"""Noises per picture and sigma. They are fixed, so few suffice to compare steps."""


class Validator:
    """The held-out pictures and their noise.

    Args:
        seed: the job's, from which the noise is drawn.
    """

    def __init__(self, family: Family, held_out: Examples, seed: int) -> None:
        self.family, self.held_out = family, held_out
        self._noise = [_noise(seed, row, latents.shape) for row, latents in enumerate(held_out.latents)]

    def loss(self, rank: int, num_workers: int, gather: Callable[[Tensor], Tensor], in_step: bool = False) -> float:
        """The unweighted mean error over pictures, sigmas and draws, with the denoiser's current weights.

        Args:
            gather: gathers all workers' [1, P] in the order of ranks, as [num_workers, P].
            in_step: make all workers do the same number of passes (for a sharded base).
        """
        errors_P = torch.zeros(len(self.held_out.latents), device=self.family.device)
        own = range(rank, len(errors_P), num_workers)
        for row in own:
            errors_P[row] = self._errors(row).mean()
        for _ in range(-(-len(errors_P) // num_workers) - len(own) if in_step else 0):
            self._errors(0)
        return float(gather(errors_P[None]).sum(0).double().mean())

    @torch.no_grad()
    def _errors(self, row: int) -> Tensor:
        """[Q] errors of one picture."""
        device, num = self.family.device, len(SIGMAS) * NUM_DRAWS
        rows = torch.full((num,), row)
        latents = self.held_out.latents[row].expand(num, -1, -1, -1).to(device)
        told = self.held_out.conditioning(rows, self.held_out.text_rows_NV[rows, 0], device)
        times = self.family.times_at(torch.tensor(SIGMAS).repeat_interleave(NUM_DRAWS)).to(device)
        return self.family.errors(latents, told, times, self._noise[row].to(device))


def _noise(seed: int, row: int, shape: torch.Size) -> Tensor:
    return torch.randn(len(SIGMAS) * NUM_DRAWS, *shape, generator=generator_for(seed, row, "validation"))


@dataclass
class ValidationHistory:
    """Validation losses so far, the best step, and early stopping.

    Args:
        patience: validations without a new best before the run ends; 0: never.
        history: (step, loss), in order.
    """

    patience: int = 0
    history: list[tuple[int, float]] = field(default_factory=list)

    def add(self, step: int, loss: float) -> bool:
        """Add a loss; True if it is the best so far. Raises TrainingFailed if it is not finite."""
        if not math.isfinite(loss):
            raise TrainingFailed(
                f"the loss on the held-out pictures is not finite at step {step}. Lower the learning rate and retry; "
                "the last good checkpoint is kept",
                step=step,
            )
        is_best = self.best is None or loss < self.best[1]
        self.history.append((step, loss))
        return is_best

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, loss) of the lowest loss; the first of equal ones."""
        return min(self.history, key=lambda each: each[1], default=None)

    @property
    def exhausted(self) -> bool:
        """True if at least `patience` validations came after the best one."""
        if not self.patience or self.best is None:
            return False
        return len(self.history) - 1 - self.history.index(self.best) >= self.patience
