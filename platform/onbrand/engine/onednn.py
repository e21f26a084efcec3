"""Layers of a float32 base on a CPU, computed with fewer or faster products on weights that are laid out once.

None of it changes what is computed beyond rounding, and every row is computed alike whatever the others are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F

_SMALL = 20_480
"""Numbers of one picture up to which PyTorch convolves without oneDNN (`ConvParams::use_mkldnn`)."""


def use_onednn(part: nn.Module) -> None:
    """Compute a float32 part's linear layers on a CPU with oneDNN, as most convolutions are anyway; fold its doublings.

    PyTorch takes MKL for linear layers, which uses AVX2 on CPUs that are not Intel's, and im2col for convolutions of
    one small picture: two threads make it slower than one, and its rounding is not that of the same picture among
    others. Training and compiled passes are left as they are; again changes nothing.
    """
    weight = next(part.parameters(), None)
    if weight is None or weight.device.type != "cpu" or weight.dtype != torch.float32 or not _has_onednn():
        return
    for module in part.modules():
        if type(module) is nn.Linear:
            _use(module, _Linear)
        elif isinstance(module, Upsample2D) and _doubles(module):
            _use(module.conv, _Folded)
        elif type(module) is nn.Conv2d and _is_plain(module):
            _use(module, _Convolution)


def _has_onednn() -> bool:
    names = ("_linear_pointwise", "_reorder_linear_weight", "_convolution_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


def _doubles(up: Upsample2D) -> bool:
    """Whether a 3x3 convolution follows its doubling."""
    conv: Any = getattr(up, "conv", None)
    return type(conv) is nn.Conv2d and up.interpolate and conv.kernel_size == (3, 3) and conv.padding == (1, 1)


def _is_plain(conv: nn.Conv2d) -> bool:
    """Whether it is a 3x3 convolution of the kind that oneDNN computes in one picture as it does in many."""
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    return plain and isinstance(conv.padding, tuple) and conv.kernel_size == (3, 3)


def _use(module: Any, kind: type[_Laid]) -> None:
    if "forward" not in vars(module):
        module.forward = kind(module)


class _Laid(ABC):
    """A layer's forward on its weight in another layout, which is made anew when the weight has changed."""

    def __init__(self, module: Any) -> None:
        self._module, self._plain = module, module.forward
        self._known: tuple[int, int] | None = None
        self._weight: Any = None

    def __call__(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            return self._plain(x)
        weight = self._module.weight
        known = weight.data_ptr(), weight._version
        if known != self._known:
            self._weight, self._known = self._laid(weight.detach()), known
        return self._computed(x)

    @abstractmethod
    def _laid(self, weight: Tensor) -> Any:
        """The weight as `_computed` wants it."""

    @abstractmethod
    def _computed(self, x: Tensor) -> Tensor:
        """What the layer makes of `x`."""


class _Linear(_Laid):
    def _laid(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def _computed(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._module.bias, "none", [], "")


class _Convolution(_Laid):
    """A convolution that is computed by oneDNN also where PyTorch would take im2col: of one small picture."""

    def _laid(self, weight: Tensor) -> Tensor:
        return weight

    def _computed(self, x: Tensor) -> Tensor:
        return _convolved(self._module, x, self._weight, self._module.padding)


def _convolved(conv: nn.Conv2d, x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    if len(x) > 1 or x.numel() > _SMALL:
        return F.conv2d(x, weight, conv.bias, conv.stride, padding)
    return torch.ops.mkldnn._convolution_pointwise(
        x, weight, conv.bias, padding, conv.stride, (1, 1), 1, "none", [], ""
    )


class _Folded(_Laid):
    """A 3x3 convolution of what was doubled by nearest neighbours, as four 2x2 convolutions of what it was before.

    Output (2i + a, 2j + b) sees two rows and two columns of the small picture, of which one counts twice: 16 products
    where there were 36. A picture that was halved to an odd size is no doubling, and is computed as it is.
    """

    def _laid(self, weight: Tensor) -> list[Tensor]:
        return [part.contiguous() for rows in _summed(weight, 2) for part in _summed(rows, 3)]

    def _computed(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if height % 2 or width % 2:
            return self._plain(x)
        small = F.pad(x[:, :, ::2, ::2], (1, 1, 1, 1))
        y = x.new_empty(len(x), self._module.out_channels, height, width)
        for (a, b), part in zip(_PLACES, self._weight, strict=True):
            seen = small[:, :, a : a + height // 2 + 1, b : b + width // 2 + 1]
            y[:, :, a::2, b::2] = _convolved(self._module, seen, part, (0, 0))
        return y


_PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))


def _summed(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The two taps, in the small picture, of even and of odd outputs."""
    before, here, after = weight.unbind(dim)
    return torch.stack([before, here + after], dim), torch.stack([before + here, after], dim)
