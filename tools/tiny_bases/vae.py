"""The VAE shared by the three tiny families: 64 px RGB to 4 x 16 x 16 latents and back."""

import random
import time
from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from onbrand.families.tiny.draw import draw_scene, random_scene
from tools.tiny_bases.dataset import generic_picture
from tools.tiny_bases.loop import cosine, must_be_finite, set_learning_rate

NUM_SCENES, NUM_GENERIC = 8000, 8000
BATCH, CROP = 16, 32
LATENT_NOISE = 0.12  # relative to the latents' spread: the decoder learns to ignore a denoiser's small errors

Report = Callable[[str], None]


def new_vae() -> AutoencoderKL:
    """An untrained VAE with an almost deterministic posterior."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=1,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )
    with torch.no_grad():  # start nearly deterministic: the posterior's log-variance at -6
        vae.encoder.conv_out.bias[4:] = -6.0
        vae.encoder.conv_out.weight[4:] *= 0.1
    return vae


def to_tensor(images: list[Image.Image]) -> Tensor:
    """RGB pictures of one size as float BCHW in -1..1."""
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return from_bytes(torch.from_numpy(pixels).permute(0, 3, 1, 2))


def from_bytes(images_BCHW: Tensor) -> Tensor:
    """Byte pictures as float in -1..1."""
    return images_BCHW.float() / 127.5 - 1


def training_pictures(rng: random.Random) -> Tensor:
    """Half scenes, half generic pictures, as bytes BCHW."""
    scenes = (draw_scene(random_scene(rng), rng) for _ in range(NUM_SCENES))
    generic = (generic_picture(rng) for _ in range(NUM_GENERIC))
    pixels = np.stack([np.asarray(image) for images in (scenes, generic) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def train_vae(steps: int, seed: int, report: Report) -> AutoencoderKL:
    """A VAE with scaling factor 1/std of the latents of scenes. The first 65 % of the steps see 32 px crops only."""
    torch.manual_seed(seed)
    images_BCHW = training_pictures(random.Random(seed))
    vae = new_vae().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4, betas=(0.9, 0.99))
    started = time.monotonic()
    for step in range(steps):
        set_learning_rate([optimizer], cosine(step / steps, warmup=(step + 1) / 50, floor=0.01))
        batch_BCHW = _batch(images_BCHW, crop=step < steps * 0.65)
        loss, mse = _loss(vae, batch_BCHW)
        must_be_finite(loss, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            report(f"vae {step + 1}/{steps} psnr {psnr(mse):.1f} {time.monotonic() - started:.0f}s")
    vae.eval()
    vae.register_to_config(scaling_factor=round(1 / _latent_spread(vae, images_BCHW[:2000]), 5))
    return vae


def _batch(images_BCHW: Tensor, *, crop: bool) -> Tensor:
    batch_BCHW = from_bytes(images_BCHW[torch.randint(len(images_BCHW), (BATCH,))])
    if torch.rand(()) < 0.5:
        batch_BCHW = batch_BCHW.flip(3)
    if crop:
        top, left = torch.randint(64 - CROP + 1, (2,)).tolist()
        batch_BCHW = batch_BCHW[:, :, top : top + CROP, left : left + CROP]
    return batch_BCHW.contiguous(memory_format=torch.channels_last)


def _loss(vae: AutoencoderKL, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """(L1 + L2 + a small KL term, the plain mean squared error)."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(images_BCHW).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float().clamp(-12, 2)
        noise = torch.exp(0.5 * logvar) + LATENT_NOISE * mean.std().detach()
        decoded = vae.decode(mean + noise * torch.randn_like(mean)).sample.float()
    error = decoded - images_BCHW
    mse = error.pow(2).mean()
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    return error.abs().mean() + mse + 1e-4 * kl, mse.detach()


@torch.no_grad()
def encode(vae: AutoencoderKL, images_BCHW: Tensor, batch: int = 100) -> Tensor:
    """Latent means, unscaled, of byte pictures."""
    means = [vae.encode(from_bytes(chunk)).latent_dist.mean for chunk in images_BCHW.split(batch)]
    return torch.cat(means)


def _latent_spread(vae: AutoencoderKL, images_BCHW: Tensor) -> float:
    return float(encode(vae, images_BCHW).std())


def psnr(mse: Tensor | float) -> float:
    """Peak signal to noise in dB for values in -1..1."""
    return float(10 * torch.log10(4 / torch.as_tensor(mse)))
