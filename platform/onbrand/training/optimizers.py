"""Optimizers: AdamW, AdamW with 8-bit moments, Prodigy. Their state consists of tensors and numbers only.

None needs CUDA, so that all can be tested on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from onbrand.training.recipes import Plan

BLOCK = 256
"""Elements that share one scale."""
_LEAST_QUANTISED = 4096
_NUMBERS = ("d", "d_numerator")


def make_optimizer(plan: Plan, weights: Iterable[nn.Parameter]) -> Optimizer:
    """The plan's optimizer."""
    kinds: dict[str, Callable[..., Optimizer]] = {"adamw": _adamw, "adamw8bit": AdamW8bit, "prodigy": Prodigy}
    return kinds[plan.optimizer](list(weights), lr=plan.learning_rate, betas=plan.betas, weight_decay=plan.weight_decay)


def _adamw(weights: Sequence[nn.Parameter], **settings: Any) -> Optimizer:
    """PyTorch's AdamW, fused on a CPU: there the default takes a dozen operations for each weight."""
    return AdamW(weights, fused=True if all(weight.device.type == "cpu" for weight in weights) else None, **settings)


class AdamW8bit(Optimizer):
    """AdamW (Loshchilov & Hutter 2019, algorithm 2) with block-wise 8-bit moments in the dynamic code of Dettmers et
    al. 2022 (secs. 2.1, 2.2). As there, small tensors have 32-bit moments."""

    def __init__(
        self,
        weights: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-2,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(weights, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step(weight, weight.grad, group)

    def _step(self, weight: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        state, (beta1, beta2) = self.state[weight], group["betas"]
        state["step"] = state.get("step", torch.zeros(())) + 1
        num_steps = float(state["step"])
        mean = _loaded(state, "exp_avg", weight, signed=True).lerp_(gradient, 1 - beta1)
        square = _loaded(state, "exp_avg_sq", weight, signed=False).mul_(beta2)
        square.addcmul_(gradient, gradient, value=1 - beta2)
        _stored(state, "exp_avg", mean, signed=True)
        _stored(state, "exp_avg_sq", square, signed=False)
        spread = (square / (1 - beta2**num_steps)).sqrt_().add_(group["eps"])
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.addcdiv_(mean, spread, value=-group["lr"] / (1 - beta1**num_steps))


def _loaded(state: Mapping[str, Tensor], name: str, weight: Tensor, signed: bool) -> Tensor:
    if name in state:
        return state[name]
    if f"{name}_codes" not in state:
        return torch.zeros_like(weight)
    return dequantised(state[f"{name}_codes"], state[f"{name}_scales"], weight.shape, signed)


def _stored(state: dict[str, Tensor], name: str, values: Tensor, signed: bool) -> None:
    if values.numel() < _LEAST_QUANTISED:
        state[name] = values
    else:
        state[f"{name}_codes"], state[f"{name}_scales"] = quantised(values, signed)


@cache
def dynamic_code(signed: bool) -> Tensor:
    """[256] sorted values in -1..1 (or 0..1): one decade per leading zero bit; the other bits are linear within it
    (Dettmers et al. 2022, sec. 1.3 and appendix F.2). Unsigned codes use the sign bit for the fraction."""
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1.0, 2**decade * (1 if signed else 2) + 1, dtype=torch.float64)
        middles = (edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade - 6)
        values += middles.tolist() + ([-value for value in middles.tolist()] if signed else [])
    return torch.tensor(sorted(values))


def quantised(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """(codes [N] uint8, scales [N / 256]): each block scaled by its largest magnitude and rounded to nearest codes."""
    code = dynamic_code(signed).to(values.device)
    blocks = nn.functional.pad(values.flatten(), (0, -values.numel() % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1)
    relative = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    middles = (code[1:] + code[:-1]) / 2
    return torch.bucketize(relative, middles).to(torch.uint8).flatten()[: values.numel()], scales


def dequantised(codes: Tensor, scales: Tensor, shape: torch.Size, signed: bool) -> Tensor:
    """The values of `quantised` codes, in `shape`."""
    values = dynamic_code(signed).to(codes.device)[codes.int()]
    return (values * scales.repeat_interleave(BLOCK)[: len(values)]).view(shape)


class Prodigy(Optimizer):
    """Adam that estimates its own step size (Mishchenko & Defazio 2023, arXiv 2306.06101, algorithm 4), with two
    choices of their code: no bias correction, and `safeguard_warmup`, so that a warm-up does not inflate the estimate.

    Args:
        lr: factor of the estimate; keep it at 1.
        d0: the initial estimate.
    """

    def __init__(
        self,
        weights: Iterable[nn.Parameter],
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        d0: float = 1e-6,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps, "d0": d0}
        super().__init__(weights, defaults | {"d": d0, "d_numerator": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        [group] = self.param_groups
        weights = [weight for weight in group["params"] if weight.grad is not None]
        numerator, denominator = self._estimates(weights, group)
        if denominator == 0 or group["lr"] == 0:
            return
        length = group["d"] * group["lr"]
        group["d_numerator"] = numerator
        group["d"] = max(group["d"], numerator / denominator)
        self._move(weights, group, length)

    def _estimates(self, weights: Sequence[Tensor], group: Mapping[str, Any]) -> tuple[float, float]:
        """Update the moments; return numerator and denominator of the step-size estimate."""
        d, (beta1, beta2) = group["d"], group["betas"]
        beta3, ratio = math.sqrt(beta2), group["d"] / group["d0"]
        numerator, denominator = group["d_numerator"] * beta3, 0.0
        for weight in weights:
            gradient, state = weight.grad, self._state(weight)
            assert gradient is not None
            numerator += ratio * d * group["lr"] * float(((state["start"] - weight) * gradient).sum())
            state["exp_avg"].mul_(beta1).add_(gradient, alpha=d * (1 - beta1))
            state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=d * d * (1 - beta2))
            state["s"].mul_(beta3).add_(gradient, alpha=ratio * d)
            denominator += float(state["s"].abs().sum())
        return numerator, denominator

    def _move(self, weights: Sequence[Tensor], group: Mapping[str, Any], length: float) -> None:
        for weight in weights:
            state = self.state[weight]
            spread = state["exp_avg_sq"].sqrt().add_(group["d"] * group["eps"])
            weight.mul_(1 - length * group["weight_decay"])
            weight.addcdiv_(state["exp_avg"], spread, value=-length)

    def _state(self, weight: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            zeros = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq", "s")}
            state.update(zeros | {"start": weight.detach().clone()})
        return state


def saved_tensors(optimizer: Optimizer, named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """State tensors of all weights, by `kind/name`."""
    states = {name: optimizer.state.get(weight, {}) for name, weight in named.items()}
    return {f"{kind}/{name}": value for name, state in states.items() for kind, value in state.items()}


def saved_numbers(optimizer: Optimizer) -> dict[str, float]:
    """State numbers that are not per weight; JSON preserves them exactly."""
    return {name: optimizer.param_groups[0][name] for name in _NUMBERS if name in optimizer.param_groups[0]}


def restore(
    optimizer: Optimizer, named: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], numbers: Mapping[str, float]
) -> None:
    """Restore the results of `saved_tensors` and `saved_numbers`; other entries of `tensors` are ignored."""
    optimizer.state.clear()
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if name in named:
            optimizer.state[named[name]][kind] = value.clone() if value.dim() else value.cpu()
    optimizer.param_groups[0].update(numbers)
