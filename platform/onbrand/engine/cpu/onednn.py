"""Layers of a float32 base on a CPU, with fewer or faster products on weights that are laid out once.

Results differ from PyTorch's by rounding only, and a row's result does not depend on the other rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F

_SMALL = 20_480
"""Numbers in one image up to which PyTorch convolves without oneDNN (`ConvParams::use_mkldnn`)."""
_PIXELS_MULTIPLIED = 1024
"""Pixels of one image up to which a 1x1 convolution is faster as a product."""


def use_onednn(part: nn.Module) -> None:
    """Compute a float32 part's linear layers on a CPU with oneDNN, as most convolutions are anyway. Also prepare
    upsampling convolutions for folding (`unet_blocks`), and compute 1x1 convolutions as products.

    PyTorch uses MKL for linear layers, which uses AVX2 on CPUs that are not Intel's. For convolutions of one small
    image it uses im2col: slower with two threads than with one, and rounded differently from the same image in a
    batch. Training and compiled passes are unchanged. A second call changes nothing.
    """
    weight = next(part.parameters(), None)
    if weight is None or weight.device.type != "cpu" or weight.dtype != torch.float32 or not _has_onednn():
        return
    for module in part.modules():
        if type(module) is nn.Linear:
            _use(module, _Linear)
        elif isinstance(module, Upsample2D) and _doubles(module):
            _use(module.conv, Folded)
        elif isinstance(module, Transformer2DModel) and _is_pointwise(getattr(module, "proj_in", None)):
            _use(module.proj_in, _IntoTokens)
        elif _is_pointwise(module):
            _use(module, Pointwise)
        elif type(module) is nn.Conv2d and _is_plain(module):
            _use(module, _Convolution)


def _has_onednn() -> bool:
    names = ("_linear_pointwise", "_reorder_linear_weight", "_convolution_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


def _doubles(up: Upsample2D) -> bool:
    """Whether it upsamples by interpolation, with a 3x3 convolution after it."""
    conv: Any = getattr(up, "conv", None)
    return type(conv) is nn.Conv2d and up.interpolate and conv.kernel_size == (3, 3) and conv.padding == (1, 1)


def _is_plain(conv: nn.Conv2d) -> bool:
    """Whether oneDNN computes this 3x3 convolution for one image as it does for many."""
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    return plain and isinstance(conv.padding, tuple) and conv.kernel_size == (3, 3)


def _is_pointwise(module: Any) -> bool:
    plain = type(module) is nn.Conv2d and module.groups == 1
    return plain and module.kernel_size == module.stride == (1, 1) and module.padding == (0, 0)


def _use(module: Any, kind: type[_Laid]) -> None:
    if "forward" not in vars(module):
        module.forward = kind(module)


class _Laid(ABC):
    """A layer's forward with its weight in another layout, which is rebuilt when the weight has changed."""

    def __init__(self, module: Any) -> None:
        self._module, self._plain = module, module.forward
        self._known: tuple[int, int] | None = None
        self._weight: Any = None

    def __call__(self, x: Tensor, **how: Any) -> Tensor:
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            return self._plain(x, **how)
        weight = self._module.weight
        known = weight.data_ptr(), weight._version
        if known != self._known:
            self._weight, self._known = self._laid(weight.detach()), known
        return self._computed(x, **how)

    @abstractmethod
    def _laid(self, weight: Tensor) -> Any:
        """The weight in the layout that `_computed` needs."""

    @abstractmethod
    def _computed(self, x: Tensor, **how: Any) -> Tensor:
        """The layer's output for `x`."""


class _Linear(_Laid):
    def _laid(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def _computed(self, x: Tensor, **_: Any) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._module.bias, "none", [], "")


class _Convolution(_Laid):
    """A convolution that uses oneDNN even for one small image, where PyTorch would use im2col."""

    def _laid(self, weight: Tensor) -> Tensor:
        return weight

    def _computed(self, x: Tensor, **_: Any) -> Tensor:
        return _convolved(self._module, x, self._weight, self._module.padding)


def _convolved(conv: nn.Conv2d, x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    if len(x) > 1 or x.numel() > _SMALL:
        return F.conv2d(x, weight, conv.bias, conv.stride, padding)
    return torch.ops.mkldnn._convolution_pointwise(
        x, weight, conv.bias, padding, conv.stride, (1, 1), 1, "none", [], ""
    )


class Pointwise(_Laid):
    """A 1x1 convolution of small images as a product, without a change of layout."""

    def _laid(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)

    def _computed(self, x: Tensor, **_: Any) -> Tensor:
        if x.shape[2] * x.shape[3] > _PIXELS_MULTIPLIED:
            return self._plain(x.contiguous())
        return self._product(x.flatten(2), self._weight.expand(len(x), -1, -1)).unflatten(2, x.shape[2:])

    def _product(self, x_NiP: Tensor, weight_Noi: Tensor) -> Tensor:
        """[N, o, P]."""
        bias_o = self._module.bias
        return _product(None if bias_o is None else bias_o[:, None], weight_Noi, x_NiP)


class _IntoTokens(Pointwise):
    """The same, with its result laid out as tokens [N, P, o], which is its next use."""

    def _product(self, x_NiP: Tensor, weight_Noi: Tensor) -> Tensor:
        return _product(self._module.bias, x_NiP.transpose(1, 2), weight_Noi.transpose(1, 2)).transpose(1, 2)


def _product(bias: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    return torch.bmm(left, right) if bias is None else torch.baddbmm(bias, left, right)


class Folded(_Laid):
    """A 3x3 convolution of a nearest-neighbour upsampled image, as four 2x2 convolutions of the small image.

    Output (2i + a, 2j + b) depends on two rows and two columns of the small image, one of which counts twice: 16
    products instead of 36.

    Args (of a call):
        is_small: the image is not upsampled yet.
    """

    def _laid(self, weight: Tensor) -> list[Tensor]:
        return [part.contiguous() for rows in _summed(weight, 2) for part in _summed(rows, 3)]

    def _computed(self, x: Tensor, is_small: bool = False, **_: Any) -> Tensor:
        conv = self._module
        if not is_small:
            return _convolved(conv, x, conv.weight, conv.padding)
        height, width = x.shape[2:]
        padded = F.pad(x, (1, 1, 1, 1))
        y = x.new_empty(len(x), conv.out_channels, 2 * height, 2 * width)
        for (a, b), part in zip(_PLACES, self._weight, strict=True):
            window = padded[:, :, a : a + height + 1, b : b + width + 1]
            y[:, :, a::2, b::2] = _convolved(conv, window, part, (0, 0))
        return y


_PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))


def _summed(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The two taps in the small image, for even and for odd outputs."""
    before, here, after = weight.unbind(dim)
    return torch.stack([before, here + after], dim), torch.stack([before + here, after], dim)
