"""Faster blocks for a base's UNet and VAE: in place, and without recomputing values that are equal at every step.

They match diffusers' blocks bit for bit, except attention over few tokens. Training and compiled passes use diffusers'
own.
Shapes: N rows of a pass, C channels, T image tokens, L text tokens, H heads, d inputs of one head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F

from onbrand.engine.cpu.onednn import Folded, Pointwise

_BYTES_KEPT = 2**26
_WEIGHTS_MULTIPLIED = 64 * 64
"""Query tokens times key tokens of one head, up to which attention is faster as two products."""


def use_blocks(part: nn.Module) -> None:
    """Have this module's methods compute the part's supported blocks. A second call changes nothing."""
    for module in part.modules():
        if isinstance(module, ResnetBlock2D) and _is_plain_residual(module):
            _use(module, _Residual)
        elif isinstance(module, Upsample2D) and _is_plain_doubling(module):
            _use(module, _Doubling)
        elif isinstance(module, Attention) and _is_plain_attention(module):
            _use(module, _Attention)
        elif isinstance(module, BasicTransformerBlock) and _is_plain_transformer(module):
            _use(module, _Transformer)
        elif isinstance(module, GEGLU):
            _use(module, _Gated)
        elif isinstance(module, Transformer2DModel) and module.is_input_continuous:
            _use(module, _Output, "_get_output_for_continuous_inputs")


def _is_plain_residual(block: ResnetBlock2D) -> bool:
    plain = block.upsample is None and block.downsample is None and isinstance(block.nonlinearity, nn.SiLU)
    return (
        plain
        and block.time_embedding_norm == "default"
        and not block.skip_time_act
        and _is_one(block.output_scale_factor)
    )


def _is_plain_doubling(up: Upsample2D) -> bool:
    return up.interpolate and up.use_conv and up.name == "conv" and up.norm is None and not up.use_conv_transpose


def _is_plain_attention(attention: Attention) -> bool:
    parts = (attention.spatial_norm, attention.group_norm, attention.norm_q, attention.norm_k, attention.norm_cross)
    plain = type(attention.processor) is AttnProcessor2_0 and not any(parts) and not attention.residual_connection
    return plain and _is_one(attention.rescale_output_factor)


def _is_plain_transformer(block: BasicTransformerBlock) -> bool:
    attentions = [block.attn1, block.attn2]
    plain = all(isinstance(each, Attention) and _is_plain_attention(each) for each in attentions)
    others = block.only_cross_attention or block.pos_embed is not None or hasattr(block, "fuser")
    return plain and block.norm_type == "layer_norm" and not others and block._chunk_size is None


def _is_one(factor: float) -> bool:
    return factor == 1.0


def _use(module: Any, kind: type[_Block], method: str = "forward") -> None:
    if method not in vars(module):
        setattr(module, method, kind(module, getattr(module, method)))


class _Block(ABC):
    """A block's replacement method. Uses diffusers' own in training, when compiled, and for unsupported arguments."""

    def __init__(self, module: Any, plain: Any) -> None:
        self._module, self._plain = module, plain

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled() or self._module.training:
            return self._plain(*args, **kwargs)
        return self._computed(*args, **kwargs)

    @abstractmethod
    def _computed(self, *args: Any, **kwargs: Any) -> Tensor:
        """The block's output."""


class _Residual(_Block):
    """x + conv(silu(norm(conv(silu(norm(x))) + time))), computed in place and without a division by 1."""

    def _computed(self, x_NCHW: Tensor, temb: Tensor | None = None) -> Tensor:
        block = self._module
        h_NCHW = block.conv1(F.silu(block.norm1(x_NCHW), inplace=True))
        if block.time_emb_proj is not None:
            h_NCHW += block.time_emb_proj(F.silu(temb))[:, :, None, None]
        h_NCHW = block.conv2(F.silu(block.norm2(h_NCHW), inplace=True))
        return h_NCHW.add_(x_NCHW if block.conv_shortcut is None else block.conv_shortcut(x_NCHW))


class _Doubling(_Block):
    """Nearest-neighbour upsampling by 2 and a convolution, possibly both at once.

    On a CPU PyTorch upsamples small images in another memory format, and converts twice. So all channels are
    upsampled as one tall image, which is not small; each row of an image is doubled independently of the others.
    """

    def _computed(self, x: Tensor, output_size: Any = None) -> Tensor:
        if output_size is not None or x.device.type != "cpu":
            return self._plain(x, output_size)
        if isinstance(vars(self._module.conv).get("forward"), Folded):
            return self._module.conv(x, is_small=True)
        num, channels, height, width = x.shape
        doubled = F.interpolate(x.reshape(1, 1, -1, width), scale_factor=2.0, mode="nearest")
        return self._module.conv(doubled.view(num, channels, 2 * height, 2 * width))


class _Attention(_Block):
    """Attention of image tokens to themselves, or to text with keys and values that may be kept already."""

    kept: TextKVCache | None = None

    def _computed(
        self, x: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None, **more: Any
    ) -> Tensor:
        attention, text = self._module, encoder_hidden_states
        if attention_mask is not None or more or x.dim() != 3:
            return self._plain(x, encoder_hidden_states=text, attention_mask=attention_mask, **more)
        query_NHTd = _heads(attention.to_q(x), attention.heads)
        if text is None:
            key_NHLd, value_NHLd = _keys_and_values(attention, x)
        elif self.kept is None:
            key_NHLd, value_NHLd = _keys_and_values(attention, text)
        else:
            key_NHLd, value_NHLd = self.kept.of(attention, text)
        y_NHTd = _attended(query_NHTd, key_NHLd, value_NHLd)
        return attention.to_out[0](y_NHTd.transpose(1, 2).flatten(2))


class _Transformer(_Block):
    """Self-attention, attention to text, and a gated layer, each after a norm and with a residual sum."""

    def _computed(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        **more: Any,
    ) -> Tensor:
        block, text = self._module, encoder_hidden_states
        x = block.attn1(block.norm1(x), attention_mask=attention_mask, **(cross_attention_kwargs or {})).add_(x)
        x = block.attn2(
            block.norm2(x), text, attention_mask=encoder_attention_mask, **(cross_attention_kwargs or {})
        ).add_(x)
        return block.ff(block.norm3(x)).add_(x)


class _Gated(_Block):
    """One half times GELU of the other half."""

    def _computed(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        hidden, gate = self._module.proj(x).chunk(2, dim=-1)
        return F.gelu(gate).mul_(hidden)


class _Output(_Block):
    """Turn a transformer's tokens back into an image, and add the image they were made of."""

    def _computed(self, hidden_states: Tensor, residual: Tensor, height: int, width: int, **given: Any) -> Tensor:
        project = self._module.proj_out
        if not isinstance(vars(project).get("forward"), Pointwise):
            return self._plain(hidden_states, residual, height=height, width=width, **given)
        return project(hidden_states.transpose(1, 2).unflatten(2, (height, width))).add_(residual)


def _heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


def _keys_and_values(attention: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return _heads(attention.to_k(x), attention.heads), _heads(attention.to_v(x), attention.heads)


def _attended(query_NHTd: Tensor, key_NHLd: Tensor, value_NHLd: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V. Few tokens in float32 on a CPU: two products, because PyTorch's kernel would use
    blocks of 32 tokens, too small to be fast. Otherwise PyTorch's kernel."""
    num, heads, tokens, width = query_NHTd.shape
    is_plain = query_NHTd.device.type == "cpu" and query_NHTd.dtype == torch.float32
    if not is_plain or tokens * key_NHLd.shape[2] > _WEIGHTS_MULTIPLIED:
        return F.scaled_dot_product_attention(query_NHTd, key_NHLd, value_NHLd)
    query, key, value = (each.reshape(-1, *each.shape[2:]) for each in (query_NHTd, key_NHLd, value_NHLd))
    weights = query.new_empty(len(query), tokens, key.shape[1])
    weights.baddbmm_(query, key.transpose(1, 2), beta=0, alpha=width**-0.5)
    return torch.bmm(weights.softmax(-1), value).view(num, heads, tokens, width)


class TextKVCache:
    """Cross-attention keys and values of one text, adapters included, kept for the rows of that text.

    They take 2 N L C numbers per layer: 1 MiB for eight guided rows of the tiny bases. At most 64 MiB are kept; further
    layers are computed at every step. (SDXL of full size would take 51 MB per guided row in half precision and save
    less than 1 % of its products: its text is short compared to its images.)
    """

    def __init__(self) -> None:
        self._pairs: dict[nn.Module, tuple[Tensor, Tensor, Tensor]] = {}
        self._num_bytes = 0

    def of(self, attention: nn.Module, text: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's keys and values of `text`; computed unless they were made of this very tensor."""
        known = self._pairs.get(attention)
        if known is not None and known[0] is text:
            return known[1], known[2]
        key, value = _keys_and_values(attention, text)
        if text.device.type == "cpu":  # `_attended` multiplies them there
            key, value = key.contiguous(), value.contiguous()
        num_bytes = key.nbytes + value.nbytes
        if known is None and self._num_bytes + num_bytes <= _BYTES_KEPT:
            self._num_bytes += num_bytes
            self._pairs[attention] = (text, key, value)
        return key, value


class _Shared:
    """A part with equal results for both branches of guidance: computed for the rows of one, and repeated."""

    def __init__(self, module: Any) -> None:
        self._plain = module.forward
        self.copies = 1

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.copies == 1 or torch.compiler.is_compiling():
            return self._plain(*args, **kwargs)
        once = {name: self._once(value) for name, value in kwargs.items()}
        return self._repeated(self._plain(*map(self._once, args), **once))

    def _once(self, value: Any) -> Any:
        return value[: len(value) // self.copies] if isinstance(value, Tensor) else value

    def _repeated(self, made: Any) -> Any:
        if isinstance(made, tuple):
            return tuple(map(self._repeated, made))
        return made.repeat(self.copies, *[1] * (made.dim() - 1))


class Passes:
    """Lets passes of a denoiser skip known results: kept keys and values, and results that both branches share.

    Args:
        before_text: parts of the denoiser that do not depend on text; none contains another.
    """

    def __init__(self, denoiser: nn.Module, before_text: Sequence[nn.Module]) -> None:
        forwards = [vars(module).get("forward") for module in denoiser.modules()]
        self._crossing = [forward for forward in forwards if isinstance(forward, _Attention)]
        self._shared = [_shared(part) for part in before_text]

    @contextmanager
    def of(self, kept: TextKVCache, copies: int) -> Iterator[None]:
        """Within the context, a pass uses the kept keys and values, and keeps those that it computes.

        Args:
            copies: number of copies of the same images at the same steps in the pass, with different texts.
        """
        self._set(kept, copies)
        try:
            yield
        finally:
            self._set(None, 1)

    def _set(self, kept: TextKVCache | None, copies: int) -> None:
        for layer in self._crossing:
            layer.kept = kept
        for part in self._shared:
            part.copies = copies


def _shared(part: Any) -> _Shared:
    if not isinstance(vars(part).get("forward"), _Shared):
        part.forward = _Shared(part)
    return part.forward
