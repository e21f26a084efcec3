"""The adapter's file: diffusers' keys, a header, and a check that plain diffusers draws the same picture with it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from onbrand.errors import TrainingFailed
from onbrand.families import lora
from onbrand.families.family import Family, draw, family_guidance
from onbrand.families.loading import load_family
from onbrand.families.lora_kohya import kohya_file
from onbrand.families.spec import FamilySpec
from onbrand.families.training_config import Quantization
from onbrand.training.memory.quantization import quantize
from onbrand.training.recipes import Plan

_PROOF_STEPS = 3
_PICTURE_TOLERANCE = {torch.float32: 1e-4}
_LOW_PRECISION_TOLERANCE = 3e-2
_FILE = "adapter.safetensors"


@dataclass(frozen=True)
class Export:
    """A file that may be published.

    Args:
        difference: largest difference of a pixel (0..1) between the family's picture and that of plain diffusers.
    """

    data: bytes
    difference: float

    def __repr__(self) -> str:
        return f"Export({len(self.data)} bytes, difference {self.difference:.1e})"


@dataclass(frozen=True, slots=True)
class Label:
    """Metadata of a file.

    Args:
        resolution: pixels of a side.
        steps: training steps; None if unknown.
    """

    title: str
    trigger_word: str
    rank: int
    resolution: int
    steps: int | None = None


def header(spec: FamilySpec, label: Label, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Header with `modelspec.*` (sai_model_spec 1.0.1) and few of kohya's `ss_*`: no captions, tags or file names."""
    side = f"{label.resolution}x{label.resolution}"
    steps = {} if label.steps is None else {"ss_steps": str(label.steps)}
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": spec.architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": label.title,
        "modelspec.trigger_phrase": label.trigger_word,
        "modelspec.resolution": side,
        "modelspec.date": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "modelspec.hash_sha256": f"0x{content_hash(state)}",
        "ss_network_module": spec.kohya_network,
        "ss_network_dim": str(label.rank),
        "ss_network_alpha": str(float(label.rank)),
        "ss_base_model_version": spec.kohya_base,
        "ss_resolution": side,
        **steps,
    }


def content_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tensors' bytes in the order of their keys, without metadata, as modelspec defines it."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(state[key].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def export(
    family: Family,
    folder: Path,
    plan: Plan,
    state: Mapping[str, Tensor],
    prompt: str,
    title: str,
    quantization: Quantization = "none",
) -> Export:
    """Serialize the adapter and verify the file.

    Args:
        family: the base with this adapter attached, and the weights of `state`.
        folder: the base's folder; a second pipeline is loaded from it.
        state: the adapter's tensors by PEFT key.
        prompt: prompt of the picture for the check.
        quantization: of the family's denoiser; applied to the second one too.

    Raises TrainingFailed: plain diffusers does not load the same tensors, or does not draw the same picture.
    """
    targets = family.spec.targets[plan.targets]
    label = Label(title, plan.trigger_word, plan.rank, plan.resolution, plan.steps)
    data = lora.serialize(family, state, plan.rank, targets, header(family.spec, label, state))
    ours = proof_picture(family, plan, prompt)
    with family.denoiser_away():
        fresh = load_family(family.spec.name, folder, dtype=family.dtype)
        lora.read_adapter(data, fresh)
        must_be_the_same_in_kohyas_form(fresh, data, state)
        load_into(fresh.pipeline, data)
        quantize(fresh.denoiser, quantization)
        must_be_same_tensors(fresh.denoiser, state)
        _bring(fresh.pipeline, family.device)
        theirs = diffusers_picture(fresh.pipeline, family, prompt, plan.seed, plan.resolution)
    return Export(data, must_be_same_pictures(ours, theirs, family.dtype))


def proof_picture(family: Family, plan: Plan, prompt: str) -> np.ndarray:
    """[side, side, 3] in 0..1: the family's picture with its attached adapter."""
    size = {"height": plan.resolution, "width": plan.resolution}
    [picture] = draw(family, [prompt], [plan.seed], num_steps=_PROOF_STEPS, **size)
    drawn: np.ndarray = picture.permute(1, 2, 0).cpu().numpy()
    return drawn


def _bring(pipeline: Any, device: torch.device) -> None:
    """Move the pipeline to the device; on a GPU one model at a time, as the memory estimate assumes."""
    if device.type == "cuda":
        pipeline.enable_model_cpu_offload(gpu_id=device.index)
    else:
        pipeline.to(device)


def load_into(pipeline: Any, data: bytes) -> None:
    """Load the file with plain diffusers' loader."""
    with tempfile.TemporaryDirectory(prefix="onbrand-export-") as place:
        (Path(place) / _FILE).write_bytes(data)
        pipeline.load_lora_weights(place, weight_name=_FILE, adapter_name=lora.ADAPTER)


def must_be_the_same_in_kohyas_form(fresh: Family, data: bytes, state: Mapping[str, Tensor]) -> None:
    """Raise TrainingFailed unless plain diffusers reads the same tensors from the file in kohya's format.

    Skipped for a family of which kohya fuses layers (FLUX: q, k and v). Diffusers splits them into other tensors with
    the same product, and only at FLUX's real width (`tests/numerics/test_kohya_equals_canonical.py` compares products).
    """
    if fresh.spec.kohya_fuses_layers:
        return
    load_into(fresh.pipeline, b"".join(kohya_file(data, fresh.spec.name)))
    must_be_same_tensors(fresh.denoiser, state)
    fresh.pipeline.unload_lora_weights()


def must_be_same_tensors(denoiser: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise TrainingFailed unless the reloaded LoRA has exactly these tensors, and alpha = rank in all layers."""
    found = get_peft_model_state_dict(denoiser, adapter_name=lora.ADAPTER)
    differing = [key for key in state if key not in found or not torch.equal(found[key].to(state[key]), state[key])]
    scalings = (getattr(module, "scaling", {}) for module in denoiser.modules())
    scales = {float(scaling[lora.ADAPTER]) for scaling in scalings if lora.ADAPTER in scaling}
    if differing or set(found) != set(state) or scales != {1.0}:
        raise TrainingFailed(
            f"the exported file does not load as it was saved: {len(differing)} of {len(state)} tensors differ",
            stage="export",
        )


def diffusers_picture(pipeline: Any, family: Family, prompt: str, seed: int, side: int) -> np.ndarray:
    """[side, side, 3] in 0..1: the plain pipeline's picture with its loaded adapter, by the base's recommendations."""
    arguments = {
        "prompt": prompt,
        "num_inference_steps": _PROOF_STEPS,
        "output_type": "np",
        "height": side,
        "width": side,
        **pipeline_arguments(family),
    }
    with torch.no_grad():
        picture: np.ndarray = pipeline(generator=torch.Generator().manual_seed(seed), **arguments).images[0]
    return picture


def must_be_same_pictures(one: np.ndarray, other: np.ndarray, dtype: torch.dtype) -> float:
    """The largest difference of a pixel between both pictures. Raises TrainingFailed over the tolerance of `dtype`."""
    difference = float(np.abs(one - other).max())
    if not difference <= _PICTURE_TOLERANCE.get(dtype, _LOW_PRECISION_TOLERANCE):
        raise TrainingFailed(
            f"plain diffusers draws another picture with the exported file (difference {difference:.1e})",
            stage="export",
        )
    return difference


def pipeline_arguments(family: Family) -> dict[str, Any]:
    """Arguments with which the pipeline follows the base's recommendations as `draw` does."""
    recommended, scale = family.recommended, family_guidance(family)
    if not family.spec.embeds_guidance:
        return {"guidance_scale": scale}
    arguments: dict[str, Any] = {"guidance_scale": recommended.guidance_scale or 1.0}
    if recommended.max_sequence_length:
        arguments["max_sequence_length"] = recommended.max_sequence_length
    return arguments | ({"true_cfg_scale": scale, "negative_prompt": ""} if scale > 1 else {})
