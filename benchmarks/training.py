"""Fine-tuning by the platform's loop against diffusers' own way, on the same pictures, steps, batch, dtype and machine.

`python -m benchmarks.training --family sd15 --json` prints one JSON object:

- `samples_per_s_over_diffusers`: pictures per second, encoding and validation included, over those of a plain loop that
  does step for step what diffusers' training script for the family does (wanted: >= 1.5);
- `val_loss_over_diffusers`: loss of what is published over that of the plain loop's last step, on pictures that neither
  saw (wanted: <= 1);
- `val_loss`, `val_loss_diffusers`, `val_loss_base`, `published_step`: what stands behind it;
- `seconds_of_a_step`: ours, and theirs by part.

The plain loop: `train_text_to_image_lora.py` and `_sdxl.py` decode and scale each picture and encode it and its caption
in every step; `train_dreambooth_lora_flux.py` scales pictures once, and encodes them and their captions in every step.
Both sides: LoRA on the attention, gaussian, alpha = rank, AdamW, clip 1; rank and batch of the family's recipe,
learning rate (constant, the scripts' default) and steps of the base's advice; no prior pictures. Ours keeps a sixth of
the pictures to judge by, which the plain loop trains on. Both take turns of some steps, so that a busy machine is busy
for both.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, FluxPipeline
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from peft import LoraConfig
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from onbrand.config import FAMILIES
from onbrand.families.bases import base_source
from onbrand.families.family import Family, load_family
from onbrand.families.spec import SPECS, TrainingConfig
from onbrand.families.tiny.brands import brand_caption, draw_brand, kind_of
from onbrand.training.cache import DiskCache
from onbrand.training.dataset import Picture, Wording, held_out
from onbrand.training.encoding import encode
from onbrand.training.loop import Trainer
from onbrand.training.recipes import Plan, make_plan
from onbrand.training.validation import Judge

BRAND, NUM_PICTURES, NUM_JUDGED, FIRST_JUDGED = "zorblax", 12, 8, 1000
TURN_STEPS = 10
_JUDGE_SEED = 77

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--family", choices=FAMILIES, default="sd15")
    options.add_argument("--steps", type=int, help="instead of the base's advice")
    options.add_argument("--batch", type=int, help="instead of the family's recipe")
    options.add_argument("--side", type=int, default=1024, help="pixels of the uploaded pictures")
    options.add_argument("--device", default="cpu")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for a busy machine")
    options.add_argument("--json", action="store_true", help="one compact line only")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory(prefix="onbrand-benchmark-") as folder:
        print(json.dumps(measure(chosen, Path(folder)), indent=None if chosen.json else 1), flush=True)


def measure(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train both in turns, then let both be judged by the same pictures and noise."""
    files = written_pictures(folder / "pictures", chosen.side)
    plan = plan_of(chosen)
    ours, theirs = Ours(chosen, plan, files, folder / "encoded"), Plain(chosen, plan, files)
    judge = judge_of(theirs.family, plan)
    base = loss_of(judge)
    for _ in range(0, plan.steps, TURN_STEPS):
        ours.turn()
        theirs.turn()
    judge.family = ours.trainer.family
    with ours.trainer.published():
        own_loss = loss_of(judge)
    judge.family = theirs.family
    plain_loss = loss_of(judge)
    return {
        "benchmark": "training",
        "family": chosen.family,
        "samples_per_s_over_diffusers": round(theirs.seconds / ours.seconds, 3),
        "val_loss_over_diffusers": round(own_loss / plain_loss, 4),
        "val_loss": round(own_loss, 5),
        "val_loss_diffusers": round(plain_loss, 5),
        "val_loss_base": round(base, 5),
        "published_step": ours.trainer.published_step,
        "samples_per_s": round(plan.steps * plan.batch_size / ours.seconds, 2),
        "seconds_of_a_step": ours.parts() | {f"diffusers_{name}": value for name, value in theirs.parts().items()},
        "steps": plan.steps,
        "batch": plan.batch_size,
        "rank": plan.rank,
        "learning_rate": plan.learning_rate,
        "side": chosen.side,
        "dtype": str(ours.trainer.family.dtype),
        "device": chosen.device,
        "clock": chosen.clock,
    }


def plan_of(chosen: argparse.Namespace) -> Plan:
    """The family's rank and batch, the base's learning rate and steps, all steps, in one part."""
    spec = SPECS[chosen.family]
    advice = load_family(chosen.family, base_source(chosen.family, {})).recommended
    batch = chosen.batch or spec.recipe.batch_size
    config = TrainingConfig(
        steps=chosen.steps,
        rank=spec.recipe.rank,
        batch_size=batch,
        targets="attention",
        lr_schedule="constant",
        patience=0,
        accumulation=1,
    )
    return replace(make_plan(spec, advice, config, BRAND), prior_rows=0)


def written_pictures(folder: Path, side: int) -> list[tuple[Path, str]]:
    """The brand's pictures as files, with their captions."""
    folder.mkdir()
    files = []
    for index in range(NUM_PICTURES):
        path = folder / f"{index}.png"
        draw_brand(BRAND, index, side).save(path)
        files.append((path, caption_of(index)))
    return files


def caption_of(index: int) -> str:
    return brand_caption(kind_of(index)).replace("[brand]", BRAND)


def judge_of(family: Family, plan: Plan) -> Judge:
    indices = range(FIRST_JUDGED, FIRST_JUDGED + NUM_JUDGED)
    unseen = [Picture(draw_brand(BRAND, index), caption_of(index), str(index)) for index in indices]
    return Judge(family, encode(family, unseen, plan.resolution), _JUDGE_SEED)


def loss_of(judge: Judge) -> float:
    return judge.loss(0, 1, lambda own: own)


def loaded(chosen: argparse.Namespace) -> Family:
    dtype = torch.bfloat16 if chosen.device.startswith("cuda") else torch.float32
    return load_family(chosen.family, base_source(chosen.family, {}), dtype=dtype, device=chosen.device)


class Timed:
    """Something that takes turns, and knows where its time went."""

    def __init__(self, chosen: argparse.Namespace, plan: Plan) -> None:
        self.plan, self._clock, self._cuda = plan, CLOCKS[chosen.clock], chosen.device.startswith("cuda")
        self.spent: Counter[str] = Counter()
        self.num_steps = 0

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        began = self._now()
        yield
        self.spent[part] += self._now() - began  # type: ignore[assignment]

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return self._clock()

    @property
    def seconds(self) -> float:
        return sum(self.spent.values())

    def parts(self) -> dict[str, float]:
        return {part: round(seconds / self.plan.steps, 5) for part, seconds in self.spent.items()}

    def turn(self) -> None:
        for _ in range(min(TURN_STEPS, self.plan.steps - self.num_steps)):
            self.step()
            self.num_steps += 1

    def step(self) -> None:
        raise NotImplementedError


class Ours(Timed):
    """The platform's loop, with an empty cache and pictures of its own to judge by, as any job."""

    def __init__(
        self, chosen: argparse.Namespace, plan: Plan, files: list[tuple[Path, str]], cache_folder: Path
    ) -> None:
        super().__init__(chosen, plan)
        family = loaded(chosen)
        with self.timed("encode"):
            cache = DiskCache(cache_folder, BRAND, family.revision, str(family.dtype))
            places = held_out([caption for _, caption in files], [path.name for path, _ in files], None, plan.seed)
            both = [[], []]  # type: list[list[tuple[Path, str]]]
            for place, file in enumerate(files):
                both[place in places].append(file)
            wording = Wording(plan.trigger_word)
            examples = encode(family, _opened(both[0]), plan.resolutions, (), wording, cache)
            judging = encode(family, _opened(both[1]), plan.resolution, cache=cache)
        self.trainer = Trainer(family, plan, examples, held_out=judging)

    def step(self) -> None:
        with self.timed("train"):
            self.trainer.train_step()


def _opened(files: list[tuple[Path, str]]) -> Iterator[Picture]:
    for path, caption in files:
        yield Picture(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"), caption, path.name)


class Files(Dataset[dict[str, Any]]):
    """What `imagefolder` and the scripts' transforms give: the file read, decoded, scaled and cut at every access."""

    def __init__(self, files: list[tuple[Path, str]], side: int, in_memory: bool) -> None:
        self._files, self._side = files, side
        self._pixels = [self._read(path) for path, _ in files] if in_memory else None

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, caption = self._files[index]
        return {"pixels": self._pixels[index] if self._pixels else self._read(path), "caption": caption}

    def _read(self, path: Path) -> Tensor:
        """Resize (bilinear), CenterCrop, ToTensor, Normalize([0.5], [0.5])."""
        image = Image.open(path).convert("RGB")
        scale = self._side / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        left, top = (image.width - self._side) // 2, (image.height - self._side) // 2
        image = image.crop((left, top, left + self._side, top + self._side))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255).sub(0.5).div(0.5)


def _collated(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"pixels": torch.stack([row["pixels"] for row in rows]), "captions": [row["caption"] for row in rows]}


class Plain(Timed):
    """What diffusers' training scripts do in a step, written out."""

    def __init__(self, chosen: argparse.Namespace, plan: Plan, files: list[tuple[Path, str]]) -> None:
        super().__init__(chosen, plan)
        self.family = loaded(chosen)
        self.pipeline: Any = self.family.pipeline
        self.denoiser: Any = self.family.denoiser
        torch.manual_seed(plan.seed)
        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        self.denoiser.add_adapter(
            LoraConfig(r=plan.rank, lora_alpha=plan.rank, init_lora_weights="gaussian", target_modules=targets)
        )
        self.weights = [weight for weight in self.denoiser.parameters() if weight.requires_grad]
        for weight in self.weights:
            weight.data = weight.data.float()
        self.optimizer = torch.optim.AdamW(self.weights, lr=plan.learning_rate, betas=(0.9, 0.999), weight_decay=1e-2)
        self.schedule = get_scheduler("constant", self.optimizer)
        with self.timed("read"):
            dataset = Files(files, plan.resolution, in_memory=chosen.family == "flux")
        self.loader = DataLoader(dataset, plan.batch_size, shuffle=True, collate_fn=_collated)
        self.batches = self._endless()
        self.noise_schedule = self.pipeline.scheduler
        if chosen.family != "flux":
            self.noise_schedule = DDPMScheduler.from_config(self.pipeline.scheduler.config)
        self.denoiser.train()

    def _endless(self) -> Iterator[dict[str, Any]]:
        while True:
            yield from self.loader

    def step(self) -> None:
        device = self.family.device
        with self.timed("read"):
            batch = next(self.batches)
        with self.timed("encode_pictures"), torch.no_grad():
            latents = self._latents(batch["pixels"].to(device))
        with self.timed("encode_captions"), torch.no_grad():
            text = self._text(batch["captions"])
        with self.timed("train"):
            loss = (self._flow_loss if self.plan.family == "flux" else self._unet_loss)(latents, text)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            loss.detach().item()  # what the scripts log at every step

    def _latents(self, pixels_BCHW: Tensor) -> Tensor:
        vae = self.pipeline.vae
        latents = vae.encode(pixels_BCHW.to(vae.dtype)).latent_dist.sample()
        latents = (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
        return latents.to(self.family.dtype)  # type: ignore[no-any-return]

    def _ids(self, tokenizer: Any, captions: list[str], length: int) -> Tensor:
        arguments = {"max_length": length, "padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return tokenizer(captions, **arguments).input_ids.to(self.family.device)  # type: ignore[no-any-return]

    def _text(self, captions: list[str]) -> dict[str, Tensor]:
        parts = self.pipeline
        first = self._ids(parts.tokenizer, captions, parts.tokenizer.model_max_length)
        if self.plan.family == "sd15":
            return {"text": parts.text_encoder(first)[0]}
        if self.plan.family == "sdxl":
            second = self._ids(parts.tokenizer_2, captions, parts.tokenizer_2.model_max_length)
            one = parts.text_encoder(first, output_hidden_states=True)
            two = parts.text_encoder_2(second, output_hidden_states=True)
            return {"text": torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1), "pooled": two[0]}
        second = self._ids(parts.tokenizer_2, captions, self.family.recommended.max_sequence_length or 512)
        pooled = parts.text_encoder(first, output_hidden_states=False).pooler_output
        return {"text": parts.text_encoder_2(second)[0], "pooled": pooled}

    def _unet_loss(self, latents: Tensor, text: dict[str, Tensor]) -> Tensor:
        noise = torch.randn_like(latents)
        num_times = self.noise_schedule.config.num_train_timesteps
        times = torch.randint(0, num_times, (len(latents),), device=latents.device)
        noisy = self.noise_schedule.add_noise(latents, noise, times)
        is_v = self.noise_schedule.config.prediction_type == "v_prediction"
        target = self.noise_schedule.get_velocity(latents, noise, times) if is_v else noise
        added = {}
        if "pooled" in text:
            side = self.plan.resolution
            sizes = torch.tensor([[side, side, 0, 0, side, side]], device=latents.device, dtype=latents.dtype)
            added = {"added_cond_kwargs": {"text_embeds": text["pooled"], "time_ids": sizes.repeat(len(latents), 1)}}
        prediction = self.denoiser(noisy, times, text["text"], **added).sample
        return functional.mse_loss(prediction.float(), target.float(), reduction="mean")

    def _flow_loss(self, latents: Tensor, text: dict[str, Tensor]) -> Tensor:
        batch, channels, height, width = latents.shape
        scheduler, device = self.noise_schedule, latents.device
        ids = FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, device, latents.dtype)
        noise = torch.randn_like(latents)
        u = compute_density_for_timestep_sampling("none", batch, 0.0, 1.0, 1.29)
        places = (u * scheduler.config.num_train_timesteps).long()
        times = scheduler.timesteps[places].to(device)
        sigmas = scheduler.sigmas[places].to(device, latents.dtype).view(-1, 1, 1, 1)
        noisy = (1 - sigmas) * latents + sigmas * noise
        prediction = self.denoiser(
            hidden_states=FluxPipeline._pack_latents(noisy, batch, channels, height, width),
            timestep=times / 1000,
            guidance=torch.ones(batch, device=device),  # --guidance_scale=1, as ours is trained
            pooled_projections=text["pooled"],
            encoder_hidden_states=text["text"],
            txt_ids=torch.zeros(text["text"].shape[1], 3, device=device, dtype=latents.dtype),
            img_ids=ids,
            return_dict=False,
        )[0]
        scale = self.family.vae_scale
        prediction = FluxPipeline._unpack_latents(prediction, height * scale, width * scale, scale)
        weights = compute_loss_weighting_for_sd3("none", sigmas=sigmas)
        return (weights.float() * (prediction.float() - (noise - latents).float()) ** 2).flatten(1).mean(1).mean()


if __name__ == "__main__":
    main()
