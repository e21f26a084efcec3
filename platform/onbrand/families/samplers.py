"""Samplers as stateless functions of (prediction, latents, step): every row of a batch may be at its own step.

A `Schedule` is one request's table; a `Sampler` reads one table row per batch row. Each sampler equals the diffusers
scheduler of the same configuration. Shapes: B rows, C channels, H x W latents, K columns of the table.
"""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
)
from torch import Tensor

from onbrand.errors import BaseModelRefused

log = logging.getLogger(__name__)

_PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class Schedule:
    """The steps of one request.

    Args:
        timesteps: [n] the denoiser's timestep of each step, float32.
        table: [n, K] the sampler's coefficients of each step, float32.
        init_scale: standard deviation of the latents before the first step.
    """

    timesteps: Tensor
    table: Tensor
    init_scale: float

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)


class Sampler(ABC):
    """A deterministic sampler of one base. It keeps no state between calls; state of a step is kept with the row.

    Args:
        config: of the base's scheduler.
    """

    name: str
    scheduler_class: type[SchedulerMixin]
    options: ClassVar[dict[str, Any]] = {}
    """What replaces values of `config`."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._scheduler = self.scheduler_class.from_config(config, **self.options)
        self._kind = self._scheduler.config.get("prediction_type")

    def _timed(self, *args: Any, **kwargs: Any) -> SchedulerMixin:
        """A copy of the scheduler after `set_timesteps`."""
        scheduler = copy.copy(self._scheduler)
        scheduler.set_timesteps(*args, **kwargs)
        return scheduler

    @abstractmethod
    def schedule(self, num_steps: int, image_tokens: int) -> Schedule:
        """The table for `num_steps` steps; `image_tokens` is the packed sequence length (flow models shift by it)."""

    def scale_input(self, latents_BCHW: Tensor, rows_BK: Tensor) -> Tensor:
        """The denoiser's input for these latents."""
        return latents_BCHW

    @abstractmethod
    def step(
        self, prediction_BCHW: Tensor, latents_BCHW: Tensor, denoised_BCHW: Tensor, rows_BK: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(latents after one step, the clean latents x0 predicted at it), row by row.

        Args:
            denoised_BCHW: the row's prediction at its previous step; any finite values at its first.
        """


def _columns(rows_BK: Tensor) -> tuple[Tensor, ...]:
    return tuple(column.view(-1, 1, 1, 1) for column in rows_BK.unbind(1))


def _schedule(scheduler: SchedulerMixin, table: Tensor, init_scale: float = 1.0) -> Schedule:
    return Schedule(scheduler.timesteps.float(), table.float(), init_scale)


def _clean_and_noise(
    prediction: Tensor, latents: Tensor, alpha: Tensor, sigma: Tensor, kind: str
) -> tuple[Tensor, Tensor]:
    """(x0, eps) of a prediction: eps (Ho et al. 2020) or v = alpha eps - sigma x0 (Salimans & Ho 2022)."""
    if kind == "v_prediction":
        return alpha * latents - sigma * prediction, alpha * prediction + sigma * latents
    return (latents - sigma * prediction) / alpha, prediction


class DDIM(Sampler):
    """DDIM with eta 0 (Song et al. 2020, eq. 12)."""

    name, scheduler_class = "ddim", DDIMScheduler

    def schedule(self, num_steps: int, image_tokens: int) -> Schedule:
        scheduler = self._timed(num_steps)
        times = scheduler.timesteps
        before = times - scheduler.config.num_train_timesteps // num_steps
        now = scheduler.alphas_cumprod[times]
        then = torch.where(before >= 0, scheduler.alphas_cumprod[before.clamp(min=0)], scheduler.final_alpha_cumprod)
        table = torch.stack([now.sqrt(), (1 - now).sqrt(), then.sqrt(), (1 - then).sqrt()], dim=1)
        return _schedule(scheduler, table)

    def step(
        self, prediction_BCHW: Tensor, latents_BCHW: Tensor, denoised_BCHW: Tensor, rows_BK: Tensor
    ) -> tuple[Tensor, Tensor]:
        alpha, sigma, next_alpha, next_sigma = _columns(rows_BK)
        denoised, noise = _clean_and_noise(prediction_BCHW, latents_BCHW, alpha, sigma, self._kind)
        return next_alpha * denoised + next_sigma * noise, denoised


class Euler(Sampler):
    """Euler on the probability-flow ODE in sigma (Karras et al. 2022, algorithm 2 without churn)."""

    name, scheduler_class = "euler", EulerDiscreteScheduler

    def schedule(self, num_steps: int, image_tokens: int) -> Schedule:
        scheduler = self._timed(num_steps)
        table = torch.stack([scheduler.sigmas[:-1], scheduler.sigmas[1:]], dim=1)
        return _schedule(scheduler, table, float(scheduler.init_noise_sigma))

    def scale_input(self, latents_BCHW: Tensor, rows_BK: Tensor) -> Tensor:
        sigma, _ = _columns(rows_BK)
        return latents_BCHW / (sigma**2 + 1) ** 0.5

    def step(
        self, prediction_BCHW: Tensor, latents_BCHW: Tensor, denoised_BCHW: Tensor, rows_BK: Tensor
    ) -> tuple[Tensor, Tensor]:
        sigma, next_sigma = _columns(rows_BK)
        if self._kind == "v_prediction":
            denoised = prediction_BCHW * (-sigma / (sigma**2 + 1) ** 0.5) + latents_BCHW / (sigma**2 + 1)
        else:
            denoised = latents_BCHW - sigma * prediction_BCHW
        return latents_BCHW + (latents_BCHW - denoised) / sigma * (next_sigma - sigma), denoised


class DPMSolver2M(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order, using the clean latents of the previous step.

    Its first step is of first order, and its last (if the base ends at sigma 0 or by Euler, or has fewer than 15
    steps).
    """

    name, scheduler_class = "dpm++2m", DPMSolverMultistepScheduler
    options: ClassVar = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}

    def schedule(self, num_steps: int, image_tokens: int) -> Schedule:
        scheduler = self._timed(num_steps)
        alpha = 1 / (scheduler.sigmas**2 + 1) ** 0.5
        sigma = scheduler.sigmas * alpha
        log_snr = alpha.log() - sigma.log()
        h = log_snr.diff()
        new = -alpha[1:] * (torch.exp(-h) - 1)
        slope = torch.zeros_like(new)
        slope[1:] = 0.5 * new[1:] * h[1:] / h[:-1]
        if self._ends_in_first_order(num_steps):
            slope[-1] = 0
        return _schedule(scheduler, torch.stack([alpha[:-1], sigma[:-1], sigma[1:] / sigma[:-1], new, slope], dim=1))

    def _ends_in_first_order(self, num_steps: int) -> bool:
        config = self._scheduler.config
        return (
            config.euler_at_final or config.final_sigmas_type == "zero" or (config.lower_order_final and num_steps < 15)
        )

    def step(
        self, prediction_BCHW: Tensor, latents_BCHW: Tensor, denoised_BCHW: Tensor, rows_BK: Tensor
    ) -> tuple[Tensor, Tensor]:
        alpha, sigma, keep, new, slope = _columns(rows_BK)
        denoised, _ = _clean_and_noise(prediction_BCHW, latents_BCHW, alpha, sigma, self._kind)
        return keep * latents_BCHW + new * denoised + slope * (denoised - denoised_BCHW), denoised


class FlowEuler(Sampler):
    """Euler on a rectified flow (Liu et al. 2022), sigmas shifted by size (Esser et al. 2024, sec. 5.3.2)."""

    name, scheduler_class = "flow-euler", FlowMatchEulerDiscreteScheduler

    def schedule(self, num_steps: int, image_tokens: int) -> Schedule:
        sigmas = np.linspace(1.0, 1 / num_steps, num_steps)
        scheduler = self._timed(sigmas=sigmas, mu=self._shift(image_tokens))
        return _schedule(scheduler, torch.stack([scheduler.sigmas[:-1], scheduler.sigmas[1:]], dim=1))

    def _shift(self, image_tokens: int) -> float:
        """Linear in the number of tokens, between the base's two lengths."""
        config = self._scheduler.config
        fewest, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        slope = (high - low) / (most - fewest)
        return image_tokens * slope + (low - slope * fewest)

    def step(
        self, prediction_BCHW: Tensor, latents_BCHW: Tensor, denoised_BCHW: Tensor, rows_BK: Tensor
    ) -> tuple[Tensor, Tensor]:
        sigma, next_sigma = _columns(rows_BK)
        return latents_BCHW + (next_sigma - sigma) * prediction_BCHW, latents_BCHW - sigma * prediction_BCHW


def own_sampler(scheduler: SchedulerMixin) -> Sampler:
    """The sampler of a base's own scheduler. Random or unknown schedulers become Euler.

    Raises BaseModelRefused for a base that predicts neither noise nor velocity.
    """
    config = dict(scheduler.config)
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return FlowEuler(config)
    if config.get("prediction_type", "epsilon") not in _PREDICTIONS:
        raise BaseModelRefused(
            f"the base's scheduler says prediction_type {config['prediction_type']!r}; known are {_PREDICTIONS}"
        )
    if isinstance(scheduler, DDIMScheduler):
        return DDIM(config)
    if isinstance(scheduler, DPMSolverMultistepScheduler) and config["algorithm_type"] == "dpmsolver++":
        return DPMSolver2M(config)
    if not isinstance(scheduler, EulerDiscreteScheduler):
        log.info("the base's %s is none that the engine has; it draws with Euler", type(scheduler).__name__)
    return Euler(config)


def selectable_samplers(scheduler: SchedulerMixin) -> dict[str, Sampler]:
    """The samplers, by name, that a request may choose on a base with this scheduler (`FamilySpec.samplers`)."""
    kinds = (FlowEuler,) if isinstance(scheduler, FlowMatchEulerDiscreteScheduler) else (Euler, DPMSolver2M)
    return {kind.name: kind(dict(scheduler.config)) for kind in kinds}


def guided(prediction_2BCHW: Tensor, scale_B: Tensor) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6) of rows [negative..., positive...], scales per row."""
    negative, positive = prediction_2BCHW.chunk(2)
    return negative + scale_B.view(-1, 1, 1, 1) * (positive - negative)
