"""Facts of a family that need no loading: names, bounds, LoRA targets, defaults. Free of torch.

Facts of a base (resolution, steps, guidance) come from the base's own folder: `Recommended`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from onbrand.config import FamilyName
from onbrand.errors import InvalidInput
from onbrand.internal.generation import GenerationParameters

NUM_IMAGES_MAX = 64
SEED_MAX = 2**53 - 1
"""The largest integer that JSON numbers hold exactly (RFC 8259, section 6)."""
RANK_MAX = 128
TargetPreset = Literal["attention", "strong", "all"]
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_UNET_STRONG = (*_ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
_UNET_TARGETS: dict[str, tuple[str, ...]] = {
    "attention": _ATTENTION,
    "strong": _UNET_STRONG,
    "all": (*_UNET_STRONG, "conv1", "conv2"),
}
_FLUX_STRONG = (
    *_ATTENTION,
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out"),
)
_FLUX_TARGETS: dict[str, tuple[str, ...]] = {
    "attention": _ATTENTION,
    "strong": _FLUX_STRONG,
    "all": (*_FLUX_STRONG, "x_embedder", "context_embedder"),
}


def must_be_within(param: str, value: float, least: float, most: float) -> float:
    """Return the value. Raises InvalidInput naming `param` unless it is from `least` to `most`."""
    if not least <= value <= most:
        raise InvalidInput(f"{param} must be {least} to {most}; got {value}", param=param)
    return value


@dataclass(frozen=True, slots=True)
class Recipe:
    """Defaults of a fine-tune at the family's full size (shared sources: diffusers and kohya trainers).

    Args:
        more_resolutions: further training resolutions, used if neither owner nor base names a resolution.
    """

    steps: int
    learning_rate: float
    rank: int
    resolution: int
    batch_size: int
    targets: TargetPreset
    more_resolutions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FamilySpec:
    """One model family.

    Args:
        component: the diffusers name of the denoiser, which is also the prefix of LoRA keys.
        architecture: the value of `modelspec.architecture` for its LoRA files.
        pipeline_classes: accepted `_class_name`s of its bases.
        samplers: names of samplers that a request may choose; without one, the base's own sampler draws.
        size_multiple: images' sides are multiples of this, in pixels.
        defaults: of generation (`Recommended` by name), for bases without recommendations of their own.
        kohya_base, kohya_network: `ss_base_model_version` and `ss_network_module` of kohya's trainers.
        embeds_guidance: the denoiser takes the guidance scale as an input (guidance distillation). Classifier-free
            guidance has a scale of its own, `true_cfg_scale`.
        conditions_on_size: the denoiser takes the image's original size and crop as inputs (Podell et al. 2023).
        kohya_fuses_layers: kohya's format stores several of the denoiser's layers as one.
    """

    name: FamilyName
    title: str
    component: Literal["unet", "transformer"]
    architecture: str
    pipeline_classes: tuple[str, ...]
    targets: dict[str, tuple[str, ...]]
    recipe: Recipe
    samplers: tuple[str, ...]
    size_multiple: int
    size_max: int
    defaults: dict[str, Any]
    kohya_base: str
    kohya_network: str = "networks.lora"
    embeds_guidance: bool = False
    conditions_on_size: bool = False
    kohya_fuses_layers: bool = False
    size_min: int = 64
    steps_max: int = 150
    guidance_max: float = 30.0
    lora_scale_max: float = 2.0
    rank_max: int = RANK_MAX

    def completed(self, parameters: GenerationParameters, base: Recommended) -> GenerationParameters:
        """The parameters with the base's recommendations in place of None, within this family's bounds.

        Raises InvalidInput naming the first parameter that is out of bounds.
        """
        recommended: dict[str, Any] = {
            "width": base.resolution,
            "height": base.resolution,
            "num_inference_steps": base.num_inference_steps,
            "guidance_scale": base.guidance_scale,
            "true_cfg_scale": 1.0 if base.true_cfg_scale is None else base.true_cfg_scale,
        }
        missing = {name: value for name, value in recommended.items() if getattr(parameters, name) is None}
        complete = replace(parameters, **missing)
        self.must_be_size(complete.width, "width")
        self.must_be_size(complete.height, "height")
        bounds = {
            "num_images": (1, NUM_IMAGES_MAX),
            "seed": (0, SEED_MAX),
            "num_inference_steps": (1, self.steps_max),
            "guidance_scale": (0, self.guidance_max),
            "true_cfg_scale": (0, self.guidance_max),
            "preview_every": (0, self.steps_max),
        }
        for name, (least, most) in bounds.items():
            must_be_within(name, getattr(complete, name), least, most)
        if complete.sampler is not None and complete.sampler not in self.samplers:
            raise InvalidInput(f"sampler must be one of {', '.join(self.samplers)} for {self.name}", param="sampler")
        return complete

    def must_be_size(self, value: int | None, param: str) -> None:
        """Raise InvalidInput unless this family can draw a side of `value` pixels. None means the base's own."""
        if value is None:
            return
        if not self.size_min <= value <= self.size_max or value % self.size_multiple:
            raise InvalidInput(
                f"{param} must be a multiple of {self.size_multiple} from {self.size_min} to {self.size_max} "
                f"for {self.name}; got {value}",
                param=param,
            )


SPECS: dict[FamilyName, FamilySpec] = {
    "sd15": FamilySpec(
        name="sd15",
        title="Stable Diffusion 1.5",
        component="unet",
        architecture="stable-diffusion-v1/lora",
        pipeline_classes=("StableDiffusionPipeline",),
        targets=_UNET_TARGETS,
        recipe=Recipe(steps=1000, learning_rate=1e-4, rank=16, resolution=512, batch_size=4, targets="attention"),
        samplers=("euler", "dpm++2m"),
        size_multiple=8,
        size_max=1024,
        defaults={"resolution": 512, "num_inference_steps": 30, "guidance_scale": 7.5},
        kohya_base="sd_v1",
    ),
    "sdxl": FamilySpec(
        name="sdxl",
        title="Stable Diffusion XL",
        component="unet",
        architecture="stable-diffusion-xl-v1-base/lora",
        pipeline_classes=("StableDiffusionXLPipeline",),
        targets=_UNET_TARGETS,
        recipe=Recipe(steps=1500, learning_rate=1e-4, rank=16, resolution=1024, batch_size=2, targets="attention"),
        samplers=("euler", "dpm++2m"),
        size_multiple=8,
        size_max=2048,
        defaults={"resolution": 1024, "num_inference_steps": 30, "guidance_scale": 5.0},
        kohya_base="sdxl_base_v1-0",
        conditions_on_size=True,
    ),
    "flux": FamilySpec(
        name="flux",
        title="FLUX.1",
        component="transformer",
        architecture="flux-1-dev/lora",
        pipeline_classes=("FluxPipeline",),
        targets=_FLUX_TARGETS,
        recipe=Recipe(
            steps=1200,
            learning_rate=1e-4,
            rank=16,
            resolution=1024,
            batch_size=1,
            targets="attention",
            more_resolutions=(512, 768),
        ),
        samplers=("flow-euler",),
        size_multiple=16,
        size_max=2048,
        defaults={
            "resolution": 1024,
            "num_inference_steps": 28,
            "guidance_scale": 3.5,
            "max_sequence_length": 512,
        },
        kohya_base="flux1",
        kohya_network="networks.lora_flux",
        embeds_guidance=True,
        kohya_fuses_layers=True,
    ),
}


class RecommendedTraining(BaseModel):
    """A base's recommendations for fine-tuning; None leaves the family's recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int | None = None
    learning_rate: float | None = None
    rank: int | None = None
    resolution: int | None = None
    batch_size: int | None = None
    targets: TargetPreset | None = None


class Recommended(BaseModel):
    """A base's recommendations, from `onbrand.json` in its folder; bases made by others have none.

    Args:
        flow_shift: training times of a flow model are ``k u / (1 + (k - 1) u)``; None: logit-normal.
        prior: training adds drawn images of the base's own world to every batch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: FamilyName | None = None
    resolution: int
    num_inference_steps: int
    guidance_scale: float
    true_cfg_scale: float | None = None
    max_sequence_length: int | None = None
    flow_shift: float | None = None
    prior: bool = False
    training: RecommendedTraining = RecommendedTraining()


def with_family_defaults(family: str, given: dict[str, Any]) -> Recommended:
    """`Recommended` from a base's `onbrand.json` (possibly empty), completed by the family's defaults."""
    defaults = SPECS[family].defaults  # type: ignore[index]
    return Recommended(**defaults | {name: value for name, value in given.items() if value is not None})
