"""FLUX's attention in training on a CPU: projections, norms and rotary positions as two operations per layer.

Diffusers uses about a hundred small operations, each with its autograd node. At a batch of one they cost as much as the
matrix products. Inference still uses diffusers' code.
Shapes: B rows, L tokens, H heads, D numbers per head, C = D / 2 complex numbers per head; N = B L; I and O inputs and
outputs of a projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import Tensor, nn
from torch.nn import functional as F

from onbrand.families.lora import ADAPTER
from onbrand.training.kernels.lora_layers import is_plain


class Projected(torch.autograd.Function):
    """Queries and keys [B, L, 2, O], values [B, L, O]: W x + b + B A x for three frozen W and b, LoRA or none.

    Gradients of x, A and B, as in `lora_layers.LoraLinear`; one product for all three A, and no separate sum for x.
    """

    @staticmethod
    def forward(ctx: Any, x_BLI: Tensor, *parts: Tensor) -> tuple[Tensor, Tensor]:
        rows_NI = x_BLI.reshape(-1, x_BLI.shape[-1])
        weights, biases, downs, ups = (parts[start : start + 3] for start in range(0, 12, 3))
        both_N2O = rows_NI.new_empty(len(rows_NI), 2, len(weights[0]))
        value_NO = rows_NI.new_empty(len(rows_NI), len(weights[0]))
        outs = (*both_N2O.unbind(1), value_NO)
        for out_NO, weight, bias in zip(outs, weights, biases, strict=True):
            torch.addmm(bias, rows_NI, weight.T, out=out_NO)
        kept: list[Tensor] = []
        if downs:
            down_3RI = torch.cat(downs)
            low_N3R = rows_NI @ down_3RI.T
            for out_NO, low_NR, up in zip(outs, low_N3R.chunk(3, 1), ups, strict=True):
                out_NO.addmm_(low_NR, up.T)
            kept = [down_3RI, low_N3R, *ups]
        ctx.save_for_backward(rows_NI, *weights, *kept)
        shape = x_BLI.shape[:-1]
        return both_N2O.view(*shape, 2, -1), value_NO.view(*shape, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows_NI, *rest = ctx.saved_tensors
        weights, kept = rest[:3], rest[3:]
        outs = (*gradients[0].reshape(len(rows_NI), 2, -1).unbind(1), gradients[1].reshape(len(rows_NI), -1))
        wanted: list[Tensor | None] = [None] * 6
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = outs[0] @ weights[0]
            x_gradient.addmm_(outs[1], weights[1]).addmm_(outs[2], weights[2])
        if kept:
            down_3RI, low_N3R, *ups = kept
            low_gradient_N3R = torch.cat([out_NO @ up for out_NO, up in zip(outs, ups, strict=True)], 1)
            wanted += (low_gradient_N3R.T @ rows_NI).chunk(3)
            wanted += [out_NO.T @ low_NR for out_NO, low_NR in zip(outs, low_N3R.chunk(3, 1), strict=True)]
            if x_gradient is not None:
                x_gradient.addmm_(low_gradient_N3R, down_3RI)
        return (None if x_gradient is None else x_gradient.view(*gradients[1].shape[:-1], -1), *wanted)


class NormedAndTurned(torch.autograd.Function):
    """Queries and keys [B, H, L, D]: RMSNorm of each head (Zhang & Sennrich 2019, eq. 4), then rotary positions (Su
    et al. 2021, sec. 3.4.1).

    Args:
        both_BL2HD: projected queries and keys.
        weight_L21D: frozen weights of the norms, per token (or 1 for L).
        turn_L11C: complex numbers of magnitude 1.
    """

    @staticmethod
    def forward(ctx: Any, both_BL2HD: Tensor, weight_L21D: Tensor, turn_L11C: Tensor, eps: float) -> tuple[Tensor, ...]:
        scale = both_BL2HD.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        unit = both_BL2HD * scale
        ctx.save_for_backward(unit, scale, weight_L21D, turn_L11C)
        query, key = _turned(unit * weight_L21D, turn_L11C).unbind(2)
        return query.transpose(1, 2), key.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        unit, scale, weight_L21D, turn_L11C = ctx.saved_tensors
        both = torch.stack([gradient.transpose(1, 2) for gradient in gradients], 2)
        gradient = _turned(both, turn_L11C.conj()).mul_(weight_L21D)
        along = (gradient * unit).mean(-1, keepdim=True)
        return gradient.addcmul_(unit, along, value=-1).mul_(scale), None, None, None


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(-2)


def fuse_attention(denoiser: nn.Module) -> int:
    """Fuse FLUX's attention layers where gradients are computed on a CPU; returns how many (0 for other families).

    It is never undone, as it computes the same with a LoRA and without one.
    """
    layers = [module for module in denoiser.modules() if isinstance(module, FluxAttention)]
    if layers:
        positions = _Positions(denoiser.pos_embed)
        denoiser.pos_embed.forward = positions  # type: ignore[union-attr, method-assign, assignment]
    for layer in layers:
        layer.forward = _Fused(layer, positions)  # type: ignore[method-assign, assignment]
    return len(layers)


class _Positions:
    """The positional embedding, cached for the last ids."""

    def __init__(self, embedding: Any) -> None:
        self._embedding, self._plain = embedding, type(embedding).forward
        self._last: tuple[Tensor, tuple[Tensor, Tensor], Tensor] | None = None

    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        if self._last is None or not torch.equal(self._last[0], ids):
            found = self._plain(self._embedding, ids)
            self._last = ids.clone(), found, _turn(*found)
        return self._last[1]

    def turn_L11C(self, cos_LD: Tensor, sin_LD: Tensor) -> Tensor:
        """The embedding as complex numbers."""
        if self._last is not None and cos_LD is self._last[1][0]:
            return self._last[2]
        return _turn(cos_LD, sin_LD)


def _turn(cos_LD: Tensor, sin_LD: Tensor) -> Tensor:
    """[L, 1, 1, C]"""
    return torch.complex(cos_LD[:, ::2], sin_LD[:, ::2])[:, None, None]


class _Fused:
    """Replaces an attention layer's `forward`."""

    def __init__(self, layer: Any, positions: _Positions) -> None:
        self._layer, self._plain, self._positions = layer, type(layer).forward, positions
        self._own = _Projections(layer, ("to_q", "to_k", "to_v"))
        self._added = _Projections(layer, ("add_q_proj", "add_k_proj", "add_v_proj"))
        self._has_norms = layer.norm_q.weight is not None

    def __call__(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        usual = attention_mask is None and not kwargs and torch.is_grad_enabled() and self._fits(hidden_states)
        if image_rotary_emb is None or not usual:
            kwargs |= {"attention_mask": attention_mask, "image_rotary_emb": image_rotary_emb}
            return self._plain(self._layer, hidden_states, encoder_hidden_states, **kwargs)
        out = self._attend(hidden_states, encoder_hidden_states, self._positions.turn_L11C(*image_rotary_emb))
        if encoder_hidden_states is None:
            return out
        layer, num_text = self._layer, encoder_hidden_states.shape[1]
        text, image = out.split_with_sizes([num_text, out.shape[1] - num_text], 1)
        return layer.to_out[1](layer.to_out[0](image)), layer.to_add_out(text)

    def _fits(self, x: Tensor) -> bool:
        """True for float32 on a CPU, norms with weights, and projections that are frozen or plain LoRAs."""
        on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
        all_fit = self._own.fit and (self._layer.added_kv_proj_dim is None or self._added.fit)
        return on_cpu and self._has_norms and all_fit

    def _attend(self, image: Tensor, text: Tensor | None, turn_L11C: Tensor) -> Tensor:
        layer = self._layer
        both, value = self._own(image)
        weight = _weights(layer.norm_q, layer.norm_k)
        if text is not None:
            both_of_text, value_of_text = self._added(text)
            both, value = torch.cat([both_of_text, both], 1), torch.cat([value_of_text, value], 1)
            of_text = _weights(layer.norm_added_q, layer.norm_added_k)
            weight = torch.cat([each.expand(x.shape[1], -1, -1, -1) for each, x in ((of_text, text), (weight, image))])
        both_BL2HD = both.view(*both.shape[:3], -1, layer.head_dim)
        query, key = NormedAndTurned.apply(both_BL2HD, weight, turn_L11C, layer.norm_q.eps)
        value = value.view(*value.shape[:2], -1, layer.head_dim).transpose(1, 2)
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class _Projections:
    """Three projections as one operation; reads the layers again if a LoRA was attached or detached."""

    def __init__(self, layer: Any, names: Sequence[str]) -> None:
        self._layer, self._names = layer, names
        self._known: list[Any] = []
        self._all_fit = False
        self._frozen: list[Tensor] = []
        self._trained: list[Tensor] = []

    @property
    def fit(self) -> bool:
        """True if all have biases, and all are frozen or all are plain LoRAs."""
        layers = [self._layer._modules.get(name) for name in self._names]
        if layers != self._known:
            self._look(layers)
        return self._all_fit

    def _look(self, layers: list[Any]) -> None:
        self._known, adapted = layers, all(is_plain(layer) for layer in layers)
        bases: list[Any] = [layer.base_layer if adapted else layer for layer in layers]
        self._all_fit = all(type(base) is nn.Linear and base.bias is not None for base in bases)
        if self._all_fit:
            self._frozen = [base.weight for base in bases] + [base.bias for base in bases]
            loras = [(layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight) for layer in layers if adapted]
            self._trained = [a for a, _ in loras] + [b for _, b in loras]

    def __call__(self, x_BLI: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L, 2, O] and [B, L, O]"""
        disabled = any(getattr(layer, "disable_adapters", False) for layer in self._known)
        return Projected.apply(x_BLI, *self._frozen, *(() if disabled else self._trained))  # type: ignore[no-any-return]


def _weights(norm_q: nn.RMSNorm, norm_k: nn.RMSNorm) -> Tensor:
    """[1, 2, 1, D]"""
    return torch.stack([norm_q.weight, norm_k.weight])[None, :, None]
