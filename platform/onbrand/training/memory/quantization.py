"""Weight-only quantization of the frozen base. Weights are dequantized for each product.

int8: one scale per output channel. nf4: 16 levels at the quantiles of a normal distribution, one scale per 64 weights
(Dettmers et al. 2023, QLoRA, sec. 3). Trained weights, biases, norms and small layers are not quantized. This is own
code because libraries need GPU kernels, give no gradient for the input, or use other layer classes, which PEFT and
diffusers' loader do not recognise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from onbrand.families.training_config import Quantization

SMALLEST = 4096
"""Minimum number of weights of a layer that is quantized."""
BLOCK = 64
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""NF4 levels (Dettmers et al. 2023, appendix E)."""


def quantize(denoiser: nn.Module, how: Quantization) -> int:
    """Quantize the frozen weights of linear and convolution layers; returns the number of layers.

    It works before or after a LoRA is attached, as PEFT treats the new layers like those that they replace.
    """
    if how == "none":
        return 0
    found = list(_layers(denoiser))
    for parent, name, layer in found:
        setattr(parent, name, (_Linear if isinstance(layer, nn.Linear) else _Conv2d)(layer, how))
    return len(found)


def saved_bytes(denoiser: nn.Module, how: Quantization) -> int:
    """Bytes that quantization of the denoiser saves."""
    return sum(_bytes_of(layer.weight) - _bits(layer.weight, how) // 8 for _, _, layer in _layers(denoiser))


def _bits(weight: Tensor, how: Quantization) -> int:
    if how == "none":
        return 8 * _bytes_of(weight)
    scales = weight.shape[0] if how == "int8" else -(-weight.numel() // BLOCK)
    return weight.numel() * (8 if how == "int8" else 4) + 32 * scales


def _bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _layers(denoiser: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear | nn.Conv2d]]:
    for parent in denoiser.modules():
        if isinstance(parent, nn.ModuleDict):  # PEFT's trained weights
            continue
        for name, layer in parent.named_children():
            if type(layer) in (nn.Linear, nn.Conv2d) and layer.weight.numel() >= SMALLEST:
                yield parent, name, layer


class Packed(nn.Module):
    """A quantized matrix or kernel.

    Args:
        weight: any shape; its first dimension is the output channel.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, how: Quantization) -> None:
        super().__init__()
        self.how, self.shape, self.dtype = how, weight.shape, weight.dtype
        codes, scales = (_int8 if how == "int8" else _nf4)(weight.detach().float())
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    def _apply(self, move: Any, recurse: bool = True) -> Packed:
        """Move to another device, but never to another dtype, so that scales stay exact."""
        super()._apply(lambda tensor: tensor.to(move(tensor).device), recurse)
        return self

    def whole(self) -> Tensor:
        """The dequantized weight, in its original shape and dtype."""
        if self.how == "int8":
            flat = self.codes.flatten(1).float() * self.scales
        else:
            pairs = torch.stack([self.codes >> 4, self.codes & 15], dim=-1).flatten().int()
            levels = torch.tensor(LEVELS, device=self.codes.device)
            flat = levels[pairs].view(-1, BLOCK) * self.scales
            flat = flat.flatten()[: self.shape.numel()]
        return flat.view(self.shape).to(self.dtype)


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    rows = weight.flatten(1)
    scales = rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    return (rows / scales).round().to(torch.int8).view(weight.shape), scales


def _nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    blocks = functional.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1, keepdim=True).clamp(min=1e-12)
    levels = torch.tensor(LEVELS, device=weight.device)
    between = (levels[1:] + levels[:-1]) / 2
    pairs = torch.bucketize(blocks / scales, between).to(torch.uint8).view(-1, 2)
    return pairs[:, 0] << 4 | pairs[:, 1], scales


class _Product(torch.autograd.Function):
    """A layer's output from its packed weight. It saves no dequantized weight for the gradient of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _Linear | _Conv2d) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        return layer.product(x, layer.packed.whole())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        return ctx.layer.input_gradient(gradients[0], ctx.layer.packed.whole(), ctx.shape), None


class _Quantised(nn.Module):
    """Base of both quantized layers, which are also subclasses of `nn.Linear` and `nn.Conv2d`."""

    packed: Packed
    bias: Tensor | None

    def __init__(self, layer: nn.Linear | nn.Conv2d, how: Quantization) -> None:
        nn.Module.__init__(self)
        own = self.__dict__.keys()
        self.__dict__.update({name: value for name, value in layer.__dict__.items() if name not in own})
        self.packed, self.bias = Packed(layer.weight, how), layer.bias

    @property
    def weight(self) -> Tensor:
        """The weight, dequantized at each access."""
        return self.packed.whole()


class _Linear(_Quantised, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Product.apply(x, self)
        return out if self.bias is None else out + self.bias

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.linear(x, weight)

    def input_gradient(self, out: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        return out @ weight


class _Conv2d(_Quantised, nn.Conv2d):
    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        """A plain `nn.Conv2d` unless given a layer: PEFT uses the base layer's class for the LoRA's convolutions."""
        if arguments and isinstance(arguments[0], nn.Module):
            return super().__new__(cls)
        return nn.Conv2d(*arguments, **named)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Product.apply(x, self)
        return out if self.bias is None else out + self.bias.view(-1, 1, 1)

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def input_gradient(self, out: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        return nn.grad.conv2d_input(shape, weight, out, self.stride, self.padding, self.dilation, self.groups)
