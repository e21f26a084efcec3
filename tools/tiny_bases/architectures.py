"""The three tiny pipelines: diffusers' own classes, small enough for a CPU and for 12 MB in fp16."""

from typing import Any

from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    UNet2DConditionModel,
)

VP_SCHEDULE: dict[str, Any] = {  # zero terminal SNR, v-prediction, trailing steps: Lin et al. 2023, arXiv 2305.08891
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


def new_sd15_unet() -> UNet2DConditionModel:
    """An untrained UNet for tiny SD 1.5."""
    return UNet2DConditionModel(**_unet(), cross_attention_dim=128, attention_head_dim=4)


def new_sdxl_unet() -> UNet2DConditionModel:
    """An untrained UNet for tiny SDXL."""
    return UNet2DConditionModel(
        **_unet(),
        cross_attention_dim=64 + 128,
        attention_head_dim=[2, 4],
        transformer_layers_per_block=[1, 1],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=128 + 6 * 32,
    )


def _unet() -> dict[str, Any]:
    """Common UNet settings: attention at 8x8 only. `attention_head_dim` is the number of heads in these classes."""
    return {
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (64, 128),
        "layers_per_block": 1,
        "norm_num_groups": 8,
    }


def new_flux_transformer() -> FluxTransformer2DModel:
    """An untrained transformer for tiny FLUX."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=128,
        pooled_projection_dim=128,
        guidance_embeds=True,
        axes_dims_rope=(4, 14, 14),
    )


def new_denoiser(family: str) -> UNet2DConditionModel | FluxTransformer2DModel:
    """The family's untrained denoiser."""
    return {"sd15": new_sd15_unet, "sdxl": new_sdxl_unet, "flux": new_flux_transformer}[family]()


def new_scheduler(family: str) -> DDIMScheduler | EulerDiscreteScheduler | FlowMatchEulerDiscreteScheduler:
    """The family's scheduler: DDIM for sd15, Euler for sdxl, flow-matching Euler for flux."""
    if family == "sd15":
        return DDIMScheduler(**VP_SCHEDULE, clip_sample=False)
    if family == "sdxl":
        return EulerDiscreteScheduler(**VP_SCHEDULE)
    return FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.9,  # at 64 image tokens a shift of about 2.4, close to the 2.5 it is trained with
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
