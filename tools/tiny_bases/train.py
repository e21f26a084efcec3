"""Trains a tiny base from scratch: vocabulary, VAE, text encoders, denoiser.

Each stage leaves its result in the work folder and is skipped if that exists. So a stopped training can resume, and the
families share parts.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from transformers import CLIPTokenizer, T5TokenizerFast

from onbrand.families.family import Conditioning, Family
from onbrand.families.loading import load_family
from onbrand.families.tiny.draw import draw_scene, random_scene
from tools.tiny_bases.architectures import new_denoiser
from tools.tiny_bases.assembly import (
    CLIP,
    CLIP_NARROW,
    CLIP_PROJECTING,
    T5,
    T5_TOKENIZER,
    TOKENIZER,
    VAE,
    new_pipeline,
    save_base,
    warm_start,
)
from tools.tiny_bases.card import Facts, write_card
from tools.tiny_bases.dataset import captioned_scenes
from tools.tiny_bases.denoiser import Recipe, train_denoiser
from tools.tiny_bases.loop import averaged_weights
from tools.tiny_bases.score import score
from tools.tiny_bases.text_encoders import (
    mean_of_tokens,
    new_clip,
    new_projecting_clip,
    new_t5,
    penultimate,
    penultimate_and_projected,
    pooled,
    teach,
)
from tools.tiny_bases.vae import psnr, to_tensor, train_vae
from tools.tiny_bases.vocabulary import new_clip_tokenizer, new_t5_tokenizer

DENOISER_STEPS = {"sd15": 2000, "sdxl": 2000, "flux": 5000}  # about 12, 16 and 26 minutes of an idle core
CAPTION_DROP = 0.1
ROWS_AT_ONCE = 250

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """Length of each stage. The shipped weights took about as long, in wall time on a busy machine."""

    vae_steps: int = 7000
    clip_steps: int = 800
    t5_steps: int = 2400
    num_scenes: int = 24_000
    recipe: Recipe | None = None  # None: `DENOISER_STEPS` of the family
    num_scored: int = 100


def train(
    family: str,
    out: Path,
    *,
    work: Path,
    steps: int | None = None,
    seed: int = 0,
    progress: Progress = print,
    plan: Plan | None = None,
) -> Path:
    """Train the tiny base of `family` and write it to `out`; returns `out`.

    Args:
        family: "sd15", "sdxl" or "flux". SDXL starts from the SD 1.5 trained in `work`, if there is one.
        work: holds the results of the stages; a later call with the same folder resumes from them.
        steps: of the denoiser; None takes the plan's.
        progress: called with a line of text now and then.

    Raises:
        FloatingPointError: a loss was not finite.
    """
    plan = plan or Plan()
    recipe = plan.recipe or Recipe(steps=DENOISER_STEPS[family])
    recipe = recipe if steps is None else replace(recipe, steps=steps)
    torch.set_num_threads(1)  # two threads on layers this small are slower than one
    make_parts(family, work, plan, seed, progress)
    base = _starting_point(family, work, progress)
    lessons = Lessons.prepare(base, plan.num_scenes, seed, work / f"lessons-{family}.safetensors", progress)
    started = time.monotonic()
    steps_taken = train_denoiser(
        base.denoiser.to(memory_format=torch.channels_last) if family != "flux" else base.denoiser,
        lessons.loss,
        len(lessons),
        recipe,
        checkpoint=_checkpoint(family, work),
        seed=seed,
        report=lambda line: progress(f"{family} {line}"),
    )
    facts = Facts(steps_taken, time.monotonic() - started, plan.num_scenes, _vae_psnr(base))
    save_base(base.pipeline, family, out)
    write_card(family, out, facts, score(family, out, n=plan.num_scored))
    return out


def make_parts(family: str, work: Path, plan: Plan, seed: int, progress: Progress) -> None:
    """Tokenizers, VAE and the text encoders that `family` needs, each in its folder of `work`."""
    work.mkdir(parents=True, exist_ok=True)
    clip_tokens, t5_tokens = new_clip_tokenizer(), new_t5_tokenizer()
    clip_tokens.save_pretrained(work / TOKENIZER)
    t5_tokens.save_pretrained(work / T5_TOKENIZER)
    if not (work / VAE).exists():
        _keep(train_vae(plan.vae_steps, seed, progress), work / VAE)
    for name in {"sd15": (CLIP,), "flux": (CLIP, T5), "sdxl": (CLIP_NARROW, CLIP_PROJECTING)}[family]:
        if not (work / name).exists():
            _keep(_taught_encoder(name, clip_tokens, t5_tokens, plan, seed, progress), work / name)


def _keep(part: torch.nn.Module, folder: Path) -> None:
    """Save a finished part; it gets its final name only when it is complete."""
    partial = folder.with_name(f".{folder.name}.partial")
    part.to(memory_format=torch.contiguous_format).save_pretrained(partial)
    partial.rename(folder)


def _taught_encoder(
    name: str, clip_tokens: CLIPTokenizer, t5_tokens: T5TokenizerFast, plan: Plan, seed: int, progress: Progress
) -> torch.nn.Module:
    torch.manual_seed(seed)
    encoder, features = {
        CLIP: lambda: (new_clip(clip_tokens), pooled),
        CLIP_NARROW: lambda: (new_clip(clip_tokens, width=64), penultimate),
        CLIP_PROJECTING: lambda: (new_projecting_clip(clip_tokens), penultimate_and_projected),
        T5: lambda: (new_t5(t5_tokens), mean_of_tokens),
    }[name]()
    tokenizer, steps = (t5_tokens, plan.t5_steps) if name == T5 else (clip_tokens, plan.clip_steps)
    right = teach(name, encoder, features(encoder), tokenizer, steps=steps, seed=seed, report=progress)
    progress(f"{name}: {right:.1%} of slots and letters right")
    return encoder


def _checkpoint(family: str, work: Path) -> Path:
    return work / f"denoiser-{family}.safetensors"


def _starting_point(family: str, work: Path, progress: Progress) -> Family:
    """The untrained base as a loaded family: training then uses `Family.loss`, as an adapter's does."""
    pipeline = new_pipeline(family, work)
    sd15 = _checkpoint("sd15", work)
    if family == "sdxl" and sd15.exists():
        copied = warm_start(pipeline.unet, averaged_weights(sd15, new_denoiser("sd15")))
        progress(f"sdxl starts from {copied / 1e6:.2f} M weights of this folder's sd15")
    folder = save_base(pipeline, family, work / f"untrained-{family}", dtype=torch.float32)
    return load_family(family, folder)


@dataclass(frozen=True)
class Lessons:
    """Latents and conditioning of the scenes, computed once."""

    base: Family
    latents_NCHW: Tensor
    conditioning: Conditioning
    absent: Conditioning  # conditioning of a dropped caption

    def __len__(self) -> int:
        return len(self.latents_NCHW)

    @classmethod
    def prepare(cls, base: Family, num: int, seed: int, kept: Path, progress: Progress) -> "Lessons":
        """Load the latents and conditioning kept in `kept`; if the file is missing, draw and encode `num` scenes
        first."""
        if not kept.exists():
            progress(f"drawing and encoding {num} scenes")
            latents_NCHW, rows = _encoded_scenes(base, num, seed)
            safetensors.torch.save_file({"latents": latents_NCHW, **rows}, kept)
        tensors = safetensors.torch.load_file(kept)
        return cls(base, tensors.pop("latents"), Conditioning(tensors), base.encode_negatives([None]))

    def loss(self, rows: Tensor) -> Tensor:
        """Mean loss of the scenes at `rows`; one caption in ten is dropped, FLUX's guidance is drawn from 1..5."""
        latents_BCHW = self.latents_NCHW[rows].float()
        dropped_B = torch.rand(len(rows)) < CAPTION_DROP
        conditioning = self.conditioning.rows(rows).to(torch.float32).where(dropped_B, self.absent)
        t_B = self.base.training_times(torch.rand(len(rows)))
        guidance_B = 1 + 4 * torch.rand(len(rows))
        return self.base.loss(latents_BCHW, conditioning, t_B, torch.randn_like(latents_BCHW), guidance_B).mean()


def _encoded_scenes(base: Family, num: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """(latents, conditioning) of `num` scenes in half precision."""
    images_NCHW, captions = captioned_scenes(num, seed)
    latents, rows = [], []
    for start in range(0, num, ROWS_AT_ONCE):
        chunk = slice(start, start + ROWS_AT_ONCE)
        latents.append(base.encode_images(images_NCHW[chunk].float() / 127.5 - 1).half())
        rows.append(base.encode_prompts(captions[chunk]).to(torch.float16))
    return torch.cat(latents), Conditioning.cat(rows).tensors


def _vae_psnr(base: Family, num: int = 64) -> float:
    """PSNR in dB of the VAE on scenes outside its training set."""
    rng = random.Random("unseen")
    images_BCHW = to_tensor([draw_scene(random_scene(rng), rng) for _ in range(num)])
    decoded_BCHW = base.decode(base.encode_images(images_BCHW)) * 2 - 1
    return psnr((decoded_BCHW - images_BCHW).pow(2).mean())
