"""A process without Onbrand loads an exported adapter with plain diffusers and draws the same picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from onbrand.config import Settings
from onbrand.families.bases import base_source
from tests.acceptance.conftest import Trained
from tools.harness.platform_process import pixels

ALONE = """
import json, sys
sys.modules["onbrand"] = None  # importing it raises
import torch
from diffusers import StableDiffusionPipeline

asked = json.loads(sys.argv[1])
torch.set_num_threads(1)
pipeline = StableDiffusionPipeline.from_pretrained(asked["base"], safety_checker=None, torch_dtype=torch.float32)
pipeline.set_progress_bar_config(disable=True)
for adapter, out in asked["files"].items():
    pipeline.load_lora_weights(adapter)
    picture = pipeline(
        asked["prompt"],
        num_inference_steps=asked["num_inference_steps"],
        guidance_scale=asked["guidance_scale"],
        height=asked["height"],
        width=asked["width"],
        generator=torch.Generator().manual_seed(asked["seed"]),
    ).images[0]
    picture.save(out)
    pipeline.unload_lora_weights()
"""


def draw_alone(asked: dict[str, Any], folder: Path) -> None:
    """Draw with diffusers in a process that cannot import Onbrand."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, json.dumps(asked)],
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_diffusers_alone_draws_the_same_picture_with_either_file(acme: Trained, tmp_path: Path) -> None:
    made = acme.generation
    asked = {name: made[name] for name in ("num_inference_steps", "guidance_scale", "height", "width", "seed")}
    asked |= {"base": base_source("sd15", Settings().bases), "files": {}}
    asked |= {"prompt": made["prompt"].replace("[brand]", acme.model["trigger_word"])}
    for kind in ("diffusers", "kohya"):
        wish = ("--out", tmp_path / kind, "--format", kind)
        adapter = acme.person.says("model", "download", "sd15-lora-v1", *wish)["path"]
        asked["files"][adapter] = str(tmp_path / f"{kind}.png")
    draw_alone(asked, tmp_path)
    for kind, out in zip(("diffusers", "kohya"), asked["files"].values(), strict=True):
        difference = np.abs(pixels(out) - pixels(made["paths"][0])).max()
        assert difference <= 1, kind  # 1e-4 before both were rounded to 8 bits
