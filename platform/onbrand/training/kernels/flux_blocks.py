"""FLUX's blocks in training on a CPU: the same layers in fewer operations.

A norm and its modulation are one operation, and so are a gate and its residual sum. Inference still uses diffusers'
code.
Shapes: B rows, L tokens, D numbers of a token; a modulation is [B, 1, D].
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F

_EPS = 1e-6


def fuse_blocks(denoiser: nn.Module) -> int:
    """Fuse operations of FLUX's blocks where gradients are computed; returns how many blocks (0 for other families)."""
    double = [block for block in denoiser.modules() if type(block) is FluxTransformerBlock]
    single = [block for block in denoiser.modules() if type(block) is FluxSingleTransformerBlock]
    for block in double:
        block.forward = _Fused(block, _double)  # type: ignore[method-assign, assignment]
    for block in single:
        block.forward = _Fused(block, _last if block is single[-1] else _single)  # type: ignore[method-assign, assignment]
    return len(double) + len(single)


class _Fused:
    """Replaces a block's `forward`."""

    def __init__(self, block: Any, computed: Any) -> None:
        self._block, self._plain, self._computed = block, type(block).forward, computed

    def __call__(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        usual = hidden_states.dtype == torch.float32 and hidden_states.device.type == "cpu"
        if joint_attention_kwargs or not usual or not torch.is_grad_enabled():
            told = (temb, image_rotary_emb, joint_attention_kwargs)
            return self._plain(self._block, hidden_states, encoder_hidden_states, *told)  # type: ignore[no-any-return]
        return self._computed(self._block, hidden_states, encoder_hidden_states, temb, image_rotary_emb)  # type: ignore[no-any-return]


def _double(block: Any, image: Tensor, text: Tensor, temb: Tensor, turn: Any) -> tuple[Tensor, Tensor]:
    """(text, image), as diffusers' block returns them."""
    of_image, of_text = _modulations(block.norm1, temb), _modulations(block.norm1_context, temb)
    seen, told = _modulated(image, *of_image[:2]), _modulated(text, *of_text[:2])
    seen, told = block.attn(seen, told, image_rotary_emb=turn)
    image, text = torch.addcmul(image, of_image[2], seen), torch.addcmul(text, of_text[2], told)
    seen, told = block.ff(_modulated(image, *of_image[3:5])), block.ff_context(_modulated(text, *of_text[3:5]))
    return torch.addcmul(text, of_text[5], told), torch.addcmul(image, of_image[5], seen)


def _single(block: Any, image: Tensor, text: Tensor, temb: Tensor, turn: Any) -> tuple[Tensor, Tensor]:
    """(text, image), as diffusers' block returns them."""
    num_text = text.shape[1]
    both = _joined(block, torch.cat([text, image], 1), temb, turn)
    return both[:, :num_text], both[:, num_text:]


def _last(block: Any, image: Tensor, text: Tensor, temb: Tensor, turn: Any) -> tuple[Tensor, Tensor]:
    """Like `_single` for the last block, but returns the text unchanged, as nothing reads it."""
    return text, _joined(block, torch.cat([text, image], 1), temb, turn, first=text.shape[1])


def _joined(block: Any, both: Tensor, temb: Tensor, turn: Any, first: int = 0) -> Tensor:
    """The block's output for the tokens from `first` on."""
    shift, scale, gate = _modulations(block.norm, temb)
    seen = _modulated(both, shift, scale)
    attended = block.attn(seen, image_rotary_emb=turn)
    if first:
        both, seen, attended = both[:, first:], seen[:, first:], attended[:, first:]
    known = torch.cat([attended, block.act_mlp(block.proj_mlp(seen))], 2)
    return torch.addcmul(both, gate, block.proj_out(known))


def _modulations(norm: Any, temb: Tensor) -> tuple[Tensor, ...]:
    """Shift, scale and gate; in a double block twice, for attention and for feed-forward."""
    return norm.linear(F.silu(temb)).view(len(temb), -1, 1, temb.shape[1]).unbind(1)  # type: ignore[no-any-return]


def _modulated(x_BLD: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm(x) (1 + scale) + shift (Peebles & Xie 2023, sec. 3.2). For one row, passed as the norm's weight and
    bias."""
    shape = x_BLD.shape[-1:]
    if len(x_BLD) == 1:
        return F.layer_norm(x_BLD, shape, (1 + scale).view(shape), shift.view(shape), _EPS)
    return torch.addcmul(shift, F.layer_norm(x_BLD, shape, eps=_EPS), 1 + scale)
