"""A plain loop with the same steps as diffusers' training scripts, in its own process like a script.

`train_text_to_image_lora.py` and `_sdxl.py` decode and scale each picture (Lanczos) and encode it and its caption in
every step. `train_dreambooth_lora_flux.py` scales pictures once (bilinear), and encodes them and their captions, CLIP's
at 77 tokens, in every step. Optimizer, schedule, loader and clipping are accelerate's, as in the scripts. The sdxl
script clips the trained weights; the FLUX script passes all weights; the sd15 script clips nothing, as it passes an
iterator that the optimizer has exhausted. Omitted: the progress bar, trackers, and the overhead of `datasets`. SDXL
gets the trained size instead of the uploaded one, the only size that the tiny base knows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, FluxPipeline
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from benchmarks.lib.training_script import CLIP_TOKENS, base_of, with_long_captions
from onbrand.families.family import Family
from onbrand.families.loading import load_family
from onbrand.training.recipes import Plan

TURN_STEPS = 10

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


def loaded(chosen: argparse.Namespace, source: str | Path | None = None) -> Family:
    """The base (or `source`) on the chosen device: bfloat16 on a GPU, float32 on a CPU."""
    dtype = torch.bfloat16 if chosen.device.startswith("cuda") else torch.float32
    return load_family(chosen.family, source or base_of(chosen), dtype=dtype, device=chosen.device)


def _loaded_for_a_script(chosen: argparse.Namespace) -> Family:
    """The base; for FLUX with a longer CLIP, as the script uses more tokens than the tiny base's CLIP takes."""
    if chosen.family != "flux":
        return loaded(chosen)
    with tempfile.TemporaryDirectory(prefix="onbrand-benchmark-") as folder:
        return loaded(chosen, with_long_captions(base_of(chosen), Path(folder) / "base"))


class Timed:
    """A training loop that runs in turns and measures its time by part."""

    def __init__(self, chosen: argparse.Namespace, plan: Plan) -> None:
        self.plan, self._clock, self._cuda = plan, CLOCKS[chosen.clock], chosen.device.startswith("cuda")
        self.spent: Counter[str] = Counter()
        self.num_steps = 0

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time of the block to `part`."""
        began = self._now()
        yield
        self.spent[part] += self._now() - began  # type: ignore[assignment]

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return self._clock()

    @property
    def seconds(self) -> float:
        """Total time of all parts."""
        return sum(self.spent.values())

    def parts(self) -> dict[str, float]:
        """Seconds per step, by part."""
        return {part: round(seconds / self.plan.steps, 5) for part, seconds in self.spent.items()}

    def turn(self) -> None:
        """Do the next `TURN_STEPS` steps, or the remaining ones."""
        for _ in range(min(TURN_STEPS, self.plan.steps - self.num_steps)):
            self.step()
            self.num_steps += 1

    def step(self) -> None:
        """Do one step."""
        raise NotImplementedError


class Files(Dataset[dict[str, Any]]):
    """`imagefolder` with the scripts' transforms: reads, decodes, scales and crops a file at every access.

    With `in_memory` it does so once, with bilinear instead of Lanczos scaling.
    """

    def __init__(self, files: list[tuple[Path, str]], side: int, in_memory: bool) -> None:
        self._files, self._side = files, side
        self._how = Image.Resampling.BILINEAR if in_memory else Image.Resampling.LANCZOS
        self._pixels = [self._read(path) for path, _ in files] if in_memory else None

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, caption = self._files[index]
        return {"pixels": self._pixels[index] if self._pixels else self._read(path), "caption": caption}

    def _read(self, path: Path) -> Tensor:
        """Resize, CenterCrop, ToTensor, Normalize([0.5], [0.5])."""
        image = Image.open(path).convert("RGB")
        scale = self._side / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), self._how)
        left, top = (image.width - self._side) // 2, (image.height - self._side) // 2
        image = image.crop((left, top, left + self._side, top + self._side))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255).sub(0.5).div(0.5)


def _collated(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"pixels": torch.stack([row["pixels"] for row in rows]), "captions": [row["caption"] for row in rows]}


class Plain(Timed):
    """The plain loop, with the same steps as diffusers' training scripts."""

    def __init__(self, chosen: argparse.Namespace, plan: Plan, files: list[tuple[Path, str]]) -> None:
        super().__init__(chosen, plan)
        self.family = _loaded_for_a_script(chosen)
        self.pipeline: Any = self.family.pipeline
        self.accelerator = Accelerator(cpu=not self._cuda, mixed_precision="bf16" if self._cuda else "no")
        torch.manual_seed(plan.seed)
        weights = self._attached(self.family.denoiser)
        self._clipped = {"sd15": [], "sdxl": weights}.get(plan.family)  # None: all weights
        optimizer = torch.optim.AdamW(weights, lr=plan.learning_rate, betas=(0.9, 0.999), weight_decay=1e-2)
        with self.timed("read"):
            dataset = Files(files, plan.resolution, in_memory=chosen.family == "flux")
        loader = DataLoader(dataset, plan.batch_size, shuffle=True, collate_fn=_collated)
        prepared = self.accelerator.prepare(
            self.family.denoiser, optimizer, loader, get_scheduler("constant", optimizer)
        )
        self.denoiser, self.optimizer, self.loader, self.schedule = prepared
        self.batches = self._endless()
        self.noise_schedule = self.pipeline.scheduler
        if chosen.family != "flux":
            self.noise_schedule = DDPMScheduler.from_config(self.pipeline.scheduler.config)
        self.denoiser.train()

    def _attached(self, denoiser: Any) -> list[nn.Parameter]:
        """Attach a LoRA on the attention; returns its weights in float32."""
        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        rank = self.plan.rank
        denoiser.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets))
        weights = [weight for weight in denoiser.parameters() if weight.requires_grad]
        for weight in weights:
            weight.data = weight.data.float()
        return weights

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
        with self.timed("train"), self.accelerator.accumulate(self.denoiser):
            loss = (self._flow_loss if self.plan.family == "flux" else self._unet_loss)(latents, text)
            self.accelerator.backward(loss)
            clipped = self.denoiser.parameters() if self._clipped is None else self._clipped
            self.accelerator.clip_grad_norm_(clipped, 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            loss.detach().item()  # the scripts log it at every step

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
        length = CLIP_TOKENS if self.plan.family == "flux" else parts.tokenizer.model_max_length
        first = self._ids(parts.tokenizer, captions, length)
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
        prediction = self.denoiser(noisy, times, text["text"], **added, return_dict=False)[0]
        loss = functional.mse_loss(prediction.float(), target.float(), reduction="mean")
        self.accelerator.gather(loss.repeat(self.plan.batch_size)).mean().item()
        return loss

    def _flow_loss(self, latents: Tensor, text: dict[str, Tensor]) -> Tensor:
        batch, channels, height, width = latents.shape
        scheduler, device = self.noise_schedule, latents.device
        ids = FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, device, latents.dtype)
        noise = torch.randn_like(latents)
        u = compute_density_for_timestep_sampling("none", batch, 0.0, 1.0, 1.29)
        times = scheduler.timesteps[(u * scheduler.config.num_train_timesteps).long()].to(device)
        sigmas = self._sigmas(times, latents.dtype)
        noisy = (1 - sigmas) * latents + sigmas * noise
        knows_guidance = self.accelerator.unwrap_model(self.denoiser).config.guidance_embeds
        prediction = self.denoiser(
            hidden_states=FluxPipeline._pack_latents(noisy, batch, channels, height, width),
            timestep=times / 1000,
            guidance=torch.ones(batch, device=device) if knows_guidance else None,  # --guidance_scale=1, as for ours
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

    def _sigmas(self, times: Tensor, dtype: torch.dtype) -> Tensor:
        scheduler, device = self.noise_schedule, times.device
        known = scheduler.timesteps.to(device)
        places = [(known == time).nonzero().item() for time in times]
        return scheduler.sigmas.to(device, dtype)[places].view(-1, 1, 1, 1)

    def write(self, folder: Path) -> None:
        """Write the adapter as the scripts do, for `load_lora_weights`."""
        weights = {f"{self.family.spec.component}_lora_layers": get_peft_model_state_dict(self.denoiser)}
        self.pipeline.save_lora_weights(folder, **weights)


class PlainProcess:
    """Runs the plain loop in its own process, so that our settings do not affect it.

    Messages are lines of JSON. Raises RuntimeError if the process ends early.
    """

    def __init__(self, chosen: argparse.Namespace, plan: Plan, files: list[tuple[Path, str]]) -> None:
        command = [sys.executable, "-m", "benchmarks.lib.training_plain"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        told = {name: getattr(chosen, name) for name in ("family", "device", "threads", "clock")}
        told["base"] = str(base_of(chosen))
        named = [(str(path), caption) for path, caption in files]
        self._ask({"chosen": told, "plan": asdict(plan), "files": named})
        self._num_steps = plan.steps

    def turn(self) -> None:
        """Let the process do one turn."""
        self._ask("turn")

    def finish(self, folder: Path) -> dict[str, float]:
        """Write the adapter into `folder` and end the process; returns the run's seconds by part."""
        spent: dict[str, float] = self._ask(str(folder))
        self._process.communicate()
        return spent

    def _ask(self, what: object) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        if not (answer := self._process.stdout.readline()):
            raise RuntimeError(f"the plain loop's process ended with {self._process.wait()}; it said why on stderr")
        return json.loads(answer)


def main() -> None:
    """The process of a `PlainProcess`. Stdout carries its messages, so output of libraries goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(what: object) -> None:
        print(json.dumps(what), file=answers, flush=True)

    told = json.loads(sys.stdin.readline())
    chosen, plan = argparse.Namespace(**told["chosen"]), Plan(**told["plan"])
    torch.set_num_threads(chosen.threads)
    plain = Plain(chosen, plan, [(Path(path), caption) for path, caption in told["files"]])
    answer("ready")
    while (asked := json.loads(sys.stdin.readline())) == "turn":
        plain.turn()
        answer("done")
    plain.write(Path(asked))
    answer(dict(plain.spent))


if __name__ == "__main__":
    main()
