"""LoRA layers in training: a linear layer and its LoRA as one operation, and the base without its LoRA.

PEFT computes `W x + B(A x) * scale` in several autograd nodes, each of which saves tensors. Here it is one node that
saves x and A x only. PEFT's code still runs for inference and for layers that are not plain float32 LoRAs of scale 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.activations import GELU
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from onbrand.families.lora import ADAPTER

_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR


class LoraLinear(torch.autograd.Function):
    """y = W x + b + B A x for rows x; gradients of x, A and B (Hu et al. 2021, eq. 3). W and b are frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
        rows_NI = x.reshape(-1, x.shape[-1])
        low_NR = rows_NI @ a.T
        out_NO = rows_NI @ weight.T if bias is None else torch.addmm(bias, rows_NI, weight.T)
        out_NO.addmm_(low_NR, b.T)
        ctx.save_for_backward(rows_NI, low_NR, weight, a, b)
        return out_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows_NI, low_NR, weight, a, b = ctx.saved_tensors
        out_NO = gradients[0].reshape(-1, weight.shape[0])
        low_gradient_NR = out_NO @ b
        rows_gradient = None
        if ctx.needs_input_grad[0]:
            rows_gradient = torch.addmm(out_NO @ weight, low_gradient_NR, a).view(*gradients[0].shape[:-1], -1)
        return rows_gradient, None, None, low_gradient_NR.T @ rows_NI, out_NO.T @ low_NR


class TanhGelu(torch.autograd.Function):
    """x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3): the tanh form (Hendrycks & Gimpel 2016, sec. 2).

    The sigmoid is saved, so that the backward pass computes no tanh.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate = torch.addcmul(x.new_full((), _LINEAR), x, x, value=_CUBIC).mul_(x).sigmoid_()
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x, gate = ctx.saved_tensors
        slope = torch.addcmul(x.new_full((), _LINEAR), x, x, value=3 * _CUBIC).mul_(x).mul_(gate)
        return slope.addcmul_(slope, gate, value=-1).add_(gate).mul_(gradients[0])


def _gelu(x: Tensor) -> Tensor:
    if torch.is_grad_enabled() and x.requires_grad and x.device.type == "cpu" and x.dtype == torch.float32:
        return TanhGelu.apply(x)  # type: ignore[no-any-return]
    return functional.gelu(x, approximate="tanh")


def fuse_gelu(denoiser: nn.Module) -> int:
    """Replace the tanh form of GELU by `TanhGelu` where gradients are computed on a CPU; returns how many."""
    plain = [m for m in denoiser.modules() if type(m) is nn.GELU and m.approximate == "tanh"]
    projected = [m for m in denoiser.modules() if type(m) is GELU and m.approximate == "tanh"]
    for module in plain:
        module.forward = _gelu  # type: ignore[method-assign]
    for module in projected:
        module.gelu = _gelu
    return len(plain) + len(projected)


def fuse(denoiser: nn.Module) -> int:
    """Make each linear layer of the attached LoRA one operation where gradients are computed; returns how many.

    Detaching the LoRA also removes this.
    """
    fitting = [layer for layer in _lora_layers(denoiser) if is_plain(layer)]
    for layer in fitting:
        layer.forward = _Fused(layer)  # type: ignore[method-assign, assignment]
    return len(fitting)


@contextmanager
def frozen_base(denoiser: nn.Module) -> Iterator[None]:
    """Disable the adapter inside the block; it stays loaded, and its weights stay trainable."""
    layers = _lora_layers(denoiser)
    for layer in layers:
        layer._disable_adapters = True  # PEFT's own switch would also disable gradients, permanently
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


class _Fused:
    """Replaces a layer's `forward`."""

    def __init__(self, layer: Any) -> None:
        self._layer, self._plain = layer, type(layer).forward
        self._base = layer.base_layer
        self._a, self._b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._layer.disable_adapters or not torch.is_grad_enabled() or args or kwargs:
            return self._plain(self._layer, x, *args, **kwargs)
        return LoraLinear.apply(x, self._base.weight, self._base.bias, self._a, self._b)


def _lora_layers(denoiser: nn.Module) -> list[Any]:
    return [module for module in denoiser.modules() if isinstance(module, LoraLayer)]


def is_plain(layer: Any) -> bool:
    """True for a float32 linear layer with this adapter only, alpha = rank, no dropout and no LoRA variant."""
    base: Any = getattr(layer, "base_layer", None)
    return (
        type(base) is nn.Linear
        and base.weight.dtype == torch.float32
        and list(layer.lora_A) == [ADAPTER]
        and layer.scaling[ADAPTER] == 1.0
        and isinstance(layer.lora_dropout[ADAPTER], nn.Identity)
        and not layer.lora_variant
    )
