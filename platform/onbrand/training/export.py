"""The adapter's file: diffusers' keys, an honest header, and the proof that plain diffusers draws the same with it."""

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
from onbrand.families.family import Family, draw, family_guidance, load_family
from onbrand.families.kohya import kohya_file
from onbrand.families.spec import FamilySpec, Quantization
from onbrand.training.quantization import quantize
from onbrand.training.recipes import Plan

_KOHYA_BASES = {"sd15": "sd_v1", "sdxl": "sdxl_base_v1-0", "flux": "flux1"}
_PROOF_STEPS = 3
_PICTURE_TOLERANCE = {torch.float32: 1e-4}
_LOW_PRECISION_TOLERANCE = 3e-2
_FILE = "adapter.safetensors"


@dataclass(frozen=True)
class Export:
    """A file that may be published.

    Args:
        difference: largest difference of a pixel (0..1) between the family's picture and plain diffusers' one.
    """

    data: bytes
    difference: float

    def __repr__(self) -> str:
        return f"Export({len(self.data)} bytes, difference {self.difference:.1e})"


@dataclass(frozen=True, slots=True)
class Label:
    """What a file says of itself beside its tensors.

    Args:
        resolution: pixels of a side.
        steps: of its training; None where that is not known.
    """

    title: str
    trigger_word: str
    rank: int
    resolution: int
    steps: int | None = None


def header(spec: FamilySpec, label: Label, state: Mapping[str, Tensor]) -> dict[str, str]:
    """`modelspec.*` (sai_model_spec 1.0.1) and the least of kohya's `ss_*`: no captions, tag counts or file names."""
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
        "ss_network_module": "networks.lora_flux" if spec.name == "flux" else "networks.lora",
        "ss_network_dim": str(label.rank),
        "ss_network_alpha": str(float(label.rank)),
        "ss_base_model_version": _KOHYA_BASES[spec.name],
        "ss_resolution": side,
        **steps,
    }


def content_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tensors' bytes in the order of their keys, as modelspec defines it: metadata does not count."""
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
    """Serialize the adapter and prove it.

    Args:
        family: has this very adapter attached, with the weights of `state`.
        folder: the base's folder, from which the fresh pipeline is loaded.
        state: the adapter's tensors by PEFT key.
        prompt: what the proving picture shows.
        quantization: of the family's denoiser; the fresh one gets the same.

    Raises:
        TrainingFailed: plain diffusers does not load the same tensors, or does not draw the same picture.
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
    """[side, side, 3] in 0..1: what the family draws with the adapter it has."""
    size = {"height": plan.resolution, "width": plan.resolution}
    [picture] = draw(family, [prompt], [plan.seed], num_steps=_PROOF_STEPS, **size)
    drawn: np.ndarray = picture.permute(1, 2, 0).cpu().numpy()
    return drawn


def _bring(pipeline: Any, device: torch.device) -> None:
    """To the device, one part at a time on a GPU, as its memory was weighed."""
    if device.type == "cuda":
        pipeline.enable_model_cpu_offload(gpu_id=device.index)
    else:
        pipeline.to(device)


def load_into(pipeline: Any, data: bytes) -> None:
    """Load the file as any user of plain diffusers would."""
    with tempfile.TemporaryDirectory(prefix="onbrand-export-") as place:
        (Path(place) / _FILE).write_bytes(data)
        pipeline.load_lora_weights(place, weight_name=_FILE, adapter_name=lora.ADAPTER)


def must_be_the_same_in_kohyas_form(fresh: Family, data: bytes, state: Mapping[str, Tensor]) -> None:
    """Raise TrainingFailed unless plain diffusers reads the same tensors from what a download in kohya's form will be.

    Not for FLUX: there q, k and v are one layer, which its reader splits into other tensors of the same product, and
    only at FLUX' own width (`tests/numerics/test_kohya_equals_canonical.py` compares the products).
    """
    if fresh.spec.name == "flux":
        return
    load_into(fresh.pipeline, b"".join(kohya_file(data, fresh.spec.name)))
    must_be_same_tensors(fresh.denoiser, state)
    fresh.pipeline.unload_lora_weights()


def must_be_same_tensors(denoiser: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise TrainingFailed unless the reloaded LoRA holds exactly these tensors and alpha = rank everywhere."""
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
    """[side, side, 3] in 0..1, by the plain pipeline with whatever adapter it has loaded, as the base recommends."""
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
    """The pipeline's arguments that are what `draw` does with the base's advice."""
    advice, scale = family.recommended, family_guidance(family)
    if family.spec.name != "flux":
        return {"guidance_scale": scale}
    arguments: dict[str, Any] = {"guidance_scale": advice.guidance_scale or 1.0}
    if advice.max_sequence_length:
        arguments["max_sequence_length"] = advice.max_sequence_length
    return arguments | ({"true_cfg_scale": scale, "negative_prompt": ""} if scale > 1 else {})
