"""Runs diffusers' training scripts unchanged, each in its own process, and measures their time.

They need `datasets`, `torchvision` and `accelerate`. The platform only has the last; `--packages` names a folder with
the others (`pip install --no-deps --target`). A torchvision built for CUDA cannot be imported with a torch for CPUs, as
its operators cannot be loaded. The scripts only use its transforms, which are plain Python. So the two operators that
the import needs are declared without an implementation before the script runs (`_LAUNCHER`).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import safetensors.torch
from torch.nn import functional

from onbrand.families.bases import base_source, recommended
from onbrand.training.recipes import Plan

SCRIPTS = {
    "sd15": "train_text_to_image_lora.py",
    "sdxl": "train_text_to_image_lora_sdxl.py",
    "flux": "train_dreambooth_lora_flux.py",
}
FEW_STEPS = 20
CLIP_TOKENS = 77
_FLUX_TARGETS = "attn.to_k,attn.to_q,attn.to_v,attn.to_out.0"
_LAUNCHER = """
import runpy, sys, torch
try:
    import torchvision
except RuntimeError:
    declared = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        declared.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
torch.set_num_threads(int(sys.argv[1]))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Script:
    """One of diffusers' scripts on the benchmark's pictures.

    Raises SystemExit with the end of its stderr if the script fails, and for a script of another family.
    """

    def __init__(self, chosen: argparse.Namespace, plan: Plan, files: list[tuple[Path, str]], folder: Path) -> None:
        if chosen.script.name != SCRIPTS[chosen.family]:
            raise SystemExit(f"{chosen.family} is compared with {SCRIPTS[chosen.family]}; got {chosen.script.name}")
        self.chosen, self.plan, self.folder = chosen, plan, folder
        base = base_of(chosen)
        self._length = recommended(plan.family, base).max_sequence_length or 512
        self.base = with_long_captions(base, folder / "base") if plan.family == "flux" else base
        self.pictures = files[0][0].parent
        lines = [json.dumps({"file_name": path.name, "text": caption}) for path, caption in files]
        (self.pictures / "metadata.jsonl").write_text("\n".join(lines) + "\n")
        self.started = self.seconds(FEW_STEPS, folder / "few")

    def seconds(self, num_steps: int, out: Path) -> float:
        """Train `num_steps` steps into `out`, in a process without caches of earlier ones; returns its time."""
        home = self.folder / f"home-{num_steps}"
        words = [sys.executable, "-c", _LAUNCHER, str(self.chosen.threads), *self._command(num_steps, out, home)]
        before, began = _processor_seconds(), time.perf_counter()
        ended = subprocess.run(words, env=self._environment(home), capture_output=True, text=True, check=False)
        wall, processor = time.perf_counter() - began, _processor_seconds() - before
        if ended.returncode:
            raise SystemExit(f"{self.chosen.script.name} failed:\n{ended.stderr[-3000:]}")
        shutil.rmtree(home)
        return wall if self.chosen.clock == "wall" else processor

    def finish(self, folder: Path) -> dict[str, float]:
        """Train all steps into `folder`; returns the seconds of the steps.

        The time of a run with `FEW_STEPS` is subtracted, to exclude the start (imports, loading, reading the folder).
        """
        num_steps = self.plan.steps
        return {"script": (self.seconds(num_steps, folder) - self.started) * num_steps / (num_steps - FEW_STEPS)}

    def turn(self) -> None:
        """Do nothing, as a script runs to its end in `finish`."""

    def _environment(self, home: Path) -> dict[str, str]:
        offline = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        paths = [str(self.chosen.packages)] if self.chosen.packages else []
        paths += [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
        threads = {"OMP_NUM_THREADS": str(self.chosen.threads), "PYTHONPATH": os.pathsep.join(paths)}
        return {**os.environ, **offline, **threads}

    def _command(self, num_steps: int, out: Path, home: Path) -> list[str]:
        plan = self.plan
        said = {
            "pretrained_model_name_or_path": self.base,
            "output_dir": out,
            "cache_dir": home / "pictures",
            "resolution": plan.resolution,
            "train_batch_size": plan.batch_size,
            "max_train_steps": num_steps,
            "learning_rate": plan.learning_rate,
            "lr_scheduler": "constant",
            "lr_warmup_steps": 0,
            "adam_weight_decay": plan.weight_decay,
            "max_grad_norm": plan.clip_norm,
            "rank": plan.rank,
            "seed": plan.seed,
            "mixed_precision": "bf16" if self.chosen.device.startswith("cuda") else "no",
            "checkpointing_steps": 10**6,
            "image_column": "image",
            "caption_column": "text",
        }
        said |= self._flux() if plan.family == "flux" else {"train_data_dir": self.pictures}
        return [str(self.chosen.script), "--center_crop", *(f"--{name}={value}" for name, value in said.items())]

    def _flux(self) -> dict[str, object]:
        return {
            "dataset_name": self.pictures,
            "instance_prompt": self.plan.trigger_word,
            "lora_alpha": self.plan.rank,
            "lora_layers": _FLUX_TARGETS,
            "guidance_scale": 1,
            "max_sequence_length": self._length,
        }


def with_long_captions(base: Path, copy: Path) -> Path:
    """A base whose CLIP takes the 77 tokens that the FLUX script always uses: `base` itself, or a modified copy.

    The added positions follow the end of a caption. No earlier token attends to them, so the pooled text is the same.
    """
    config = json.loads((base / "text_encoder" / "config.json").read_text())
    if config["max_position_embeddings"] >= CLIP_TOKENS:
        return base
    shutil.copytree(base, copy)
    weights = copy / "text_encoder" / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    [places] = [name for name in tensors if name.endswith("position_embedding.weight")]
    missing = CLIP_TOKENS - len(tensors[places])
    tensors[places] = functional.pad(tensors[places], (0, 0, 0, missing))
    safetensors.torch.save_file(tensors, weights, metadata={"format": "pt"})
    weights.with_name("config.json").write_text(json.dumps(config | {"max_position_embeddings": CLIP_TOKENS}))
    return copy


def base_of(chosen: argparse.Namespace) -> Path:
    """The folder of the base for both sides: `--base`, or the tiny flavour's."""
    return Path(chosen.base or base_source(chosen.family, {}))


def _processor_seconds() -> float:
    """Processor seconds of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
