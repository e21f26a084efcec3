"""Full-size denoisers with random weights: many brands in one compiled pass, against one brand and `set_adapters`.

`python -m benchmarks.engine --real-shapes --family sdxl` prints one JSON object per line, on a CUDA GPU only. Text is
not encoded and pictures are not decoded here: the figures are of denoising alone, which is all but a few per cent.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from onbrand.engine.kernels import compile_passes, uncompile_passes
from onbrand.engine.slots import RowAdapter, Slots
from onbrand.families.lora import LayerWeights
from onbrand.families.spec import SPECS

_FEW, _FULL = 4, 28
_PEER = "b{}"


@dataclass(frozen=True)
class Architecture:
    """A denoiser by its configuration, and what it is fed with besides latents."""

    family: str
    config: dict[str, Any]
    sides: tuple[int, ...]
    is_guided: bool

    def build(self) -> nn.Module:
        """With random weights, on the current default device and in the default dtype."""
        kind = FluxTransformer2DModel if self.family == "flux" else UNet2DConditionModel
        return kind(**self.config).requires_grad_(False).eval()

    def inputs(self, num: int, side: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """A pass of `num` rows of pictures of side x side pixels."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, device=device, dtype=dtype)

        if self.family == "flux":
            return _flux_inputs(self.config, normal, num, side // 16)
        channels = self.config["in_channels"]
        inputs: dict[str, Any] = {"sample": normal(num, channels, side // 8, side // 8)}
        inputs["timestep"] = torch.full((num,), 500.0, device=device)
        inputs["encoder_hidden_states"] = normal(num, 77, self.config["cross_attention_dim"])
        if "projection_class_embeddings_input_dim" in self.config:
            pooled = self.config["projection_class_embeddings_input_dim"] - 6 * self.config["addition_time_embed_dim"]
            sizes = torch.tensor([[side, side, 0, 0, side, side]], device=device, dtype=dtype).repeat(num, 1)
            inputs["added_cond_kwargs"] = {"text_embeds": normal(num, pooled), "time_ids": sizes}
        return inputs


def _flux_inputs(config: dict[str, Any], normal: Callable[..., Tensor], num: int, side: int) -> dict[str, Any]:
    text = normal(num, 512, config["joint_attention_dim"])
    ids = FluxPipeline._prepare_latent_image_ids(num, side, side, text.device, text.dtype)
    return {
        "hidden_states": normal(num, side * side, config["in_channels"]),
        "timestep": torch.full((num,), 0.5, device=text.device, dtype=text.dtype),
        "guidance": torch.full((num,), 3.5, device=text.device),
        "pooled_projections": normal(num, config["pooled_projection_dim"]),
        "encoder_hidden_states": text,
        "txt_ids": torch.zeros(512, 3, device=text.device, dtype=text.dtype),
        "img_ids": ids,
    }


_ATTENTION_DOWN, _ATTENTION_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"

ARCHITECTURES = {
    "sd15": Architecture(
        "sd15",
        {
            "sample_size": 64,
            "in_channels": 4,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
            "block_out_channels": (320, 640, 1280, 1280),
            "down_block_types": (_ATTENTION_DOWN, _ATTENTION_DOWN, _ATTENTION_DOWN, "DownBlock2D"),
            "up_block_types": ("UpBlock2D", _ATTENTION_UP, _ATTENTION_UP, _ATTENTION_UP),
        },
        (512,),
        is_guided=True,
    ),
    "sdxl": Architecture(
        "sdxl",
        {
            "sample_size": 128,
            "in_channels": 4,
            "cross_attention_dim": 2048,
            "attention_head_dim": [5, 10, 20],
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", _ATTENTION_DOWN, _ATTENTION_DOWN),
            "up_block_types": (_ATTENTION_UP, _ATTENTION_UP, "UpBlock2D"),
            "transformer_layers_per_block": [1, 2, 10],
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        (512, 1024),
        is_guided=True,
    ),
    "flux": Architecture(
        "flux",
        {
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "guidance_embeds": True,
            "axes_dims_rope": (16, 56, 56),
        },
        (512, 1024),
        is_guided=False,
    ),
}
"""stable-diffusion-v1-5, stable-diffusion-xl-base-1.0 and FLUX.1-dev, from their own config.json."""


class Pair:
    """One set of weights twice: as the engine uses it, and as diffusers does, with PEFT's layers in it."""

    def __init__(self, architecture: Architecture, device: str, dtype: torch.dtype, num_brands: int, rank: int) -> None:
        self.ours = _random(architecture, device, dtype)
        with torch.device("meta"):
            self.theirs: Any = architecture.build()
        self.theirs.load_state_dict(self.ours.state_dict(), assign=True)
        targets = list(SPECS[architecture.family].targets["attention"])  # type: ignore[index]
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights=False)
        self.adapters = []
        for n in range(num_brands):
            self.theirs.add_adapter(config, adapter_name=_PEER.format(n))
            self.adapters.append(_layers(get_peft_model_state_dict(self.theirs, adapter_name=_PEER.format(n))))
        for name, parameter in self.theirs.named_parameters():
            parameter.requires_grad_(False)
            if ".lora_" in name:  # PEFT makes them in float32
                parameter.data = parameter.data.to(device, dtype)


def _random(architecture: Architecture, device: str, dtype: torch.dtype) -> nn.Module:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return architecture.build()
    finally:
        torch.set_default_dtype(before)


def _layers(state: dict[str, Tensor]) -> dict[str, LayerWeights]:
    names = [key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")]
    return {
        name: LayerWeights(state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"].flatten(1)) for name in names
    }


def measure(
    architecture: Architecture,
    side: int,
    *,
    device: str,
    dtype: torch.dtype,
    num_brands: int,
    rank: int,
    repeats: int,
    backend: str = "inductor",
    all_steps: tuple[int, ...] = (_FEW, _FULL),
) -> list[dict[str, Any]]:
    """Figures of few steps and of all steps, each from one run whose parts take turns."""
    pair = Pair(architecture, device, dtype, num_brands, rank)
    copies = 2 if architecture.is_guided else 1
    slots = Slots(pair.ours, num_brands, max_rows=copies * num_brands)
    rows = [_put(slots, layers, rank) for layers in pair.adapters]
    inputs = architecture.inputs(copies * num_brands, side, device, dtype)
    compile_passes(pair.ours, backend)
    try:
        error = _error(pair, slots, rows, inputs, copies)
        facts = {
            "family": architecture.family,
            "side": side,
            "brands": num_brands,
            "rank": rank,
            "device": _name(device),
        }
        return [
            {**facts, "steps": steps, "relative_error": error}
            | _figures(pair, slots, rows, inputs, copies, steps, repeats, device)
            for steps in all_steps
        ]
    finally:
        uncompile_passes(pair.ours)


def _put(slots: Slots, layers: dict[str, LayerWeights], rank: int) -> RowAdapter:
    slot = slots.allocate(rank)
    assert slot is not None
    return RowAdapter(slot, slots.write(slot, layers), 1.0)


@torch.inference_mode()
def _error(pair: Pair, slots: Slots, rows: list[RowAdapter], inputs: dict[str, Any], copies: int) -> float:
    """The largest difference of a row to that row alone with diffusers, against the largest value."""
    ours = _mixed(pair, slots, rows, inputs).float()
    errors = []
    for n in range(len(rows)):
        pair.theirs.set_adapters(_PEER.format(n))
        index = [n + copy * len(rows) for copy in range(copies)]
        alone = pair.theirs(**_rows(inputs, index), return_dict=False)[0].float()
        errors.append(float((ours[index] - alone).abs().max() / alone.abs().max()))
    return max(errors)


def _mixed(pair: Pair, slots: Slots, rows: list[RowAdapter], inputs: dict[str, Any]) -> Tensor:
    torch.compiler.cudagraph_mark_step_begin()
    with slots.bind(rows):
        return pair.ours(**inputs, return_dict=False)[0]


def _rows(inputs: Any, index: list[int]) -> Any:
    """The rows at `index` of every tensor that has rows."""
    if isinstance(inputs, dict):
        return {
            name: value if name.endswith("_ids") and value.dim() == 2 and name != "time_ids" else _rows(value, index)
            for name, value in inputs.items()
        }
    return inputs[index]


@torch.inference_mode()
def _figures(
    pair: Pair,
    slots: Slots,
    rows: list[RowAdapter],
    inputs: dict[str, Any],
    copies: int,
    steps: int,
    repeats: int,
    device: str,
) -> dict[str, Any]:
    num = len(rows)
    alone = _rows(inputs, list(range(copies)))

    def together(chosen: list[RowAdapter]) -> None:
        for _ in range(steps):
            _mixed(pair, slots, chosen, inputs)

    def one_by_one() -> None:
        for n in range(num):
            pair.theirs.set_adapters(_PEER.format(n))
            for _ in range(steps):
                pair.theirs(**alone, return_dict=False)

    def switch() -> None:
        with slots.bind(rows[1:] + rows[:1]):
            pass

    parts = {"mixed": lambda: together(rows), "single": lambda: together([rows[0]] * num), "set_adapters": one_by_one}
    taken: dict[str, list[float]] = {name: [] for name in (*parts, "switch")}
    for round_ in range(repeats + 1):
        for name, part in {**parts, "switch": switch}.items():
            seconds = _seconds(part, device)
            if round_:
                taken[name].append(seconds)
    best = {name: min(values) for name, values in taken.items()}
    return {
        "mixed_over_single": round(best["single"] / best["mixed"], 3),
        "over_set_adapters": round(best["set_adapters"] / best["mixed"], 3),
        "switch_ms": round(1000 * best["switch"], 3),
        "seconds": {name: round(value, 4) for name, value in best.items()},
    }


def _seconds(part: Callable[[], None], device: str) -> float:
    _wait(device)
    began = time.perf_counter()
    part()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device


def main(family: str, num_brands: int, rank: int, repeats: int) -> None:
    """Print the figures of a family's shapes; ends with an error where there is no CUDA GPU."""
    if not torch.cuda.is_available():
        sys.exit(
            "--real-shapes draws full-size models and needs a CUDA GPU; this machine has none. Leave it out for the "
            "tiny flavours on a CPU"
        )
    architecture = ARCHITECTURES[family]
    for side in architecture.sides:
        figures = measure(
            architecture,
            side,
            device="cuda",
            dtype=torch.bfloat16,
            num_brands=num_brands,
            rank=rank,
            repeats=repeats,
        )
        for line in figures:
            print(json.dumps(line), flush=True)
