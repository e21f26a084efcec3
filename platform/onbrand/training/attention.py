"""FLUX's attention while it is trained on a CPU: projections, norms and positions as two operations per layer.

Diffusers takes some hundred small operations for it, each with its node for the gradient; at a batch of one they cost
as much as the products. Drawing stays diffusers'.
Shapes: B rows, L tokens, H heads, D numbers of a head, C = D / 2 of them as complex numbers; N = B L, I and O a
projection's numbers in and out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import Tensor, nn
from torch.nn import functional as F

from onbrand.families.lora import ADAPTER
from onbrand.training.layers import is_plain


class Projected(torch.autograd.Function):
    """[B, L, 3, O]: W x + b + B A x for each of three frozen W and b, with a LoRA or without (None).

    Gradients of x, A and B, as in `layers.LoraLinear`, without a sum over the three for x.
    """

    @staticmethod
    def forward(ctx: Any, x_BLI: Tensor, *parts: Tensor | None) -> Tensor:
        rows_NI, kept = x_BLI.reshape(-1, x_BLI.shape[-1]), []
        weights, biases, downs, ups = _columns(parts)
        out_N3O = rows_NI.new_empty(len(rows_NI), 3, len(weights[0]))
        for place, (weight, bias, a, b) in enumerate(zip(weights, biases, downs, ups, strict=True)):
            out_NO = out_N3O[:, place]
            if bias is None:
                torch.mm(rows_NI, weight.T, out=out_NO)
            else:
                torch.addmm(bias, rows_NI, weight.T, out=out_NO)
            if a is not None:
                low_NR = rows_NI @ a.T
                out_NO.addmm_(low_NR, b.T)
                kept += [a, b, low_NR]
        ctx.save_for_backward(rows_NI, *weights, *kept)
        ctx.adapted = [a is not None for a in downs]
        return out_N3O.view(*x_BLI.shape[:-1], 3, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows_NI, *rest = ctx.saved_tensors
        weights, kept = rest[:3], iter(rest[3:])
        out_N3O = gradients[0].reshape(len(rows_NI), 3, -1)
        wanted: list[Tensor | None] = []
        x_gradient = torch.zeros_like(rows_NI) if ctx.needs_input_grad[0] else None
        for place, weight in enumerate(weights):
            out_NO = out_N3O[:, place]
            if x_gradient is not None:
                x_gradient.addmm_(out_NO, weight)
            wanted += [None, None]
            if not ctx.adapted[place]:
                wanted += [None, None]
                continue
            a, b, low_NR = next(kept), next(kept), next(kept)
            low_gradient_NR = out_NO @ b
            if x_gradient is not None:
                x_gradient.addmm_(low_gradient_NR, a)
            wanted += [low_gradient_NR.T @ rows_NI, out_NO.T @ low_NR]
        shape = (*gradients[0].shape[:-2], -1)
        return (None if x_gradient is None else x_gradient.view(shape), *wanted)


def _columns(parts: Sequence[Tensor | None]) -> list[Any]:
    """Weights, biases, A and B of three projections, which come one projection after the other."""
    return [parts[kind::4] for kind in range(4)]


class NormedAndTurned(torch.autograd.Function):
    """Queries, keys and values [B, H, L, D]: RMSNorm of each head of the first two (Zhang & Sennrich 2019, eq. 4), then
    its rotary position (Su et al. 2021, sec. 3.4.1).

    Args:
        all_BL3HD, weight_L21D: what was projected, and the frozen weights of the norms, by token.
        turn_L11C: complex numbers of magnitude 1.
    """

    @staticmethod
    def forward(ctx: Any, all_BL3HD: Tensor, weight_L21D: Tensor, turn_L11C: Tensor, eps: float) -> tuple[Tensor, ...]:
        both = all_BL3HD[:, :, :2]
        scale = both.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        unit = both * scale
        ctx.save_for_backward(unit, scale, weight_L21D, turn_L11C)
        turned = _turned(unit * weight_L21D, turn_L11C)
        every = (turned[:, :, 0], turned[:, :, 1], all_BL3HD[:, :, 2].clone())
        return tuple(each.transpose(1, 2) for each in every)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        unit, scale, weight_L21D, turn_L11C = ctx.saved_tensors
        query, key, value = (gradient.transpose(1, 2) for gradient in gradients)
        gradient = _turned(torch.stack([query, key], 2), turn_L11C.conj()).mul_(weight_L21D)
        along = (gradient * unit).mean(-1, keepdim=True)
        gradient.addcmul_(unit, along, value=-1).mul_(scale)
        return torch.cat([gradient, value[:, :, None]], 2), None, None, None


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2)


def fuse_attention(denoiser: nn.Module) -> int:
    """Let FLUX's attention on a CPU be few operations while gradients are wanted; returns how many layers.

    Of other families: none. It computes the same with a LoRA and without one, so nothing takes it away again.
    """
    layers = [module for module in denoiser.modules() if isinstance(module, FluxAttention)]
    for layer in layers:
        layer.forward = _Fused(layer)  # type: ignore[method-assign, assignment]
    if layers:
        denoiser.pos_embed.forward = _Positions(denoiser.pos_embed)  # type: ignore[union-attr, method-assign, assignment]
    return len(layers)


def _fits(layer: Any) -> bool:
    """On a CPU in float32, with norms that have weights, and projections that are frozen or a plain LoRA's."""
    weight = layer.norm_q.weight
    if weight is None or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    return all(type(each) is nn.Linear or is_plain(each) for each in (*_own(layer), *_added(layer)))


def _own(layer: Any) -> tuple[Any, ...]:
    return layer.to_q, layer.to_k, layer.to_v


def _added(layer: Any) -> tuple[Any, ...]:
    return (layer.add_q_proj, layer.add_k_proj, layer.add_v_proj) if layer.added_kv_proj_dim is not None else ()


class _Positions:
    """What the embedding of positions gave for the last ids, as long as they are the same."""

    def __init__(self, embedding: Any) -> None:
        self._embedding, self._plain = embedding, type(embedding).forward
        self._last: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        if self._last is None or not torch.equal(self._last[0], ids):
            self._last = ids.clone(), self._plain(self._embedding, ids)
        return self._last[1]


class _Fused:
    """What an attention layer calls instead of its class's `forward`."""

    def __init__(self, layer: Any) -> None:
        self._layer, self._plain = layer, type(layer).forward

    def __call__(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        usual = attention_mask is None and not kwargs and torch.is_grad_enabled() and _fits(self._layer)
        if image_rotary_emb is None or not usual:
            kwargs |= {"attention_mask": attention_mask, "image_rotary_emb": image_rotary_emb}
            return self._plain(self._layer, hidden_states, encoder_hidden_states, **kwargs)
        out = self._attend(hidden_states, encoder_hidden_states, *image_rotary_emb)
        if encoder_hidden_states is None:
            return out
        layer, num_text = self._layer, encoder_hidden_states.shape[1]
        text, image = out.split_with_sizes([num_text, out.shape[1] - num_text], 1)
        return layer.to_out[1](layer.to_out[0](image)), layer.to_add_out(text)

    def _attend(self, image: Tensor, text: Tensor | None, cos_LD: Tensor, sin_LD: Tensor) -> Tensor:
        layer = self._layer
        all_BL3O = _projected(image, _own(layer))
        weight_L2D = _weights(layer.norm_q, layer.norm_k, image.shape[1])
        if text is not None:
            all_BL3O = torch.cat([_projected(text, _added(layer)), all_BL3O], 1)
            of_text = _weights(layer.norm_added_q, layer.norm_added_k, text.shape[1])
            weight_L2D = torch.cat([of_text, weight_L2D])
        turn_LC = torch.complex(cos_LD[:, ::2], sin_LD[:, ::2])
        all_BL3HD = all_BL3O.unflatten(-1, (-1, layer.head_dim))
        placed = (weight_L2D[:, :, None], turn_LC[:, None, None])
        query, key, value = NormedAndTurned.apply(all_BL3HD, *placed, layer.norm_q.eps)
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _projected(states: Tensor, layers: Sequence[Any]) -> Tensor:
    parts = [part for layer in layers for part in _parts(layer)]
    return Projected.apply(states, *parts)  # type: ignore[no-any-return]


def _parts(layer: Any) -> tuple[Tensor | None, ...]:
    """Weight, bias, A and B."""
    if type(layer) is nn.Linear:
        return layer.weight, layer.bias, None, None
    base = layer.base_layer
    if layer.disable_adapters:
        return base.weight, base.bias, None, None
    return base.weight, base.bias, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight


def _weights(norm_q: nn.RMSNorm, norm_k: nn.RMSNorm, num_tokens: int) -> Tensor:
    """[L, 2, D]"""
    return torch.stack([norm_q.weight, norm_k.weight]).expand(num_tokens, -1, -1)
