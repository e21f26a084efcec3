"""A process that cannot import Onbrand draws the same image with either exported file and plain diffusers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel

from onbrand.families.family import Family, draw
from onbrand.families.loading import load_family
from onbrand.families.lora_kohya import kohya_file
from onbrand.training.export import load_into, pipeline_arguments
from tests.numerics.test_kohya_equals_canonical import is_of_double_blocks, rewritten
from tools.harness.tiny_families import adapter_bytes, base_of

TOLERANCE = 1e-4
pytestmark = pytest.mark.timeout(900)  # the fixtures load ten pipelines
PROMPT, SEED, STEPS, SIDE = "photo of acme logo", 3, 3, 64
KOHYA_WIDTH = {"num_attention_heads": 24, "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56]}
"""FLUX' own: diffusers' reader of kohya files takes the width of single blocks for granted."""

ALONE = """
import json, sys
sys.modules["onbrand"] = None
try:
    import onbrand
except ImportError:
    pass
else:
    raise SystemExit("this process must not have Onbrand")
import numpy, torch
from diffusers import DiffusionPipeline

torch.set_num_threads(1)
for asked in json.load(sys.stdin):
    pipeline = DiffusionPipeline.from_pretrained(asked["base"], torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    for file in asked["files"]:
        if file["adapter"] is not None:
            pipeline.load_lora_weights(file["adapter"])
        noise = torch.Generator().manual_seed(asked["seed"])
        numpy.save(file["out"], pipeline(generator=noise, output_type="np", **asked["arguments"]).images[0])
        if file["adapter"] is not None:
            pipeline.unload_lora_weights()
"""


@dataclass
class Case:
    """A base, the files to load into it, and our images with the same adapters."""

    base: Path
    arguments: dict[str, Any]
    files: dict[str, bytes | None] = field(default_factory=dict)
    ours: dict[str, np.ndarray] = field(default_factory=dict)


def picture(family: Family) -> np.ndarray:
    [drawn] = draw(family, [PROMPT], [SEED], num_steps=STEPS, height=SIDE, width=SIDE)
    return drawn.permute(1, 2, 0).numpy()


def case_of(family: Family, base: Path) -> Case:
    size = {"height": SIDE, "width": SIDE}
    arguments = {"prompt": PROMPT, "num_inference_steps": STEPS, **size, **pipeline_arguments(family)}
    return Case(base, arguments, {"none": None}, {"none": picture(family)})


def drawn_with(name: str, base: Path, adapter_of: Callable[[Family], bytes], has_kohya: bool = True) -> Case:
    family = load_family(name, base)
    data, case = adapter_of(family), case_of(family, base)
    load_into(family.pipeline, data)
    case.files["canonical"], case.ours["canonical"] = data, picture(family)
    if has_kohya:
        case.files["kohya"], case.ours["kohya"] = b"".join(kohya_file(data, name)), case.ours["canonical"]
    return case


def of_all_layers(family: Family) -> bytes:
    return rewritten(adapter_bytes(family, 4, 0, "all"))


def of_double_blocks(family: Family) -> bytes:
    return rewritten(adapter_bytes(family, 4, 0, "attention"), is_of_double_blocks)


def strong(family: Family) -> bytes:
    """An adapter strong enough to change the images of random weights."""
    return rewritten(adapter_bytes(family, 4, 0, "attention", strength=20.0))


def wide_flux(folder: Path) -> Path:
    """The tiny FLUX with one single block of FLUX' own width and random weights in place of its denoiser."""
    shutil.copytree(base_of("flux"), folder, ignore=shutil.ignore_patterns("diffusion_pytorch_model*"))
    shutil.copytree(base_of("flux") / "vae", folder / "vae", dirs_exist_ok=True)
    known = FluxTransformer2DModel.load_config(base_of("flux") / "transformer")
    torch.manual_seed(0)
    config = {**known, **KOHYA_WIDTH, "num_layers": 0, "num_single_layers": 1}
    FluxTransformer2DModel.from_config(config).save_pretrained(folder / "transformer")
    return folder


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    torch.set_num_threads(1)
    wide = wide_flux(tmp_path_factory.mktemp("wide") / "flux")
    return {
        "sd15": drawn_with("sd15", base_of("sd15"), of_all_layers),
        "sdxl": drawn_with("sdxl", base_of("sdxl"), of_all_layers),
        "flux": drawn_with("flux", base_of("flux"), of_all_layers, has_kohya=False),
        "flux double blocks": drawn_with("flux", base_of("flux"), of_double_blocks),
        "flux single block": drawn_with("flux", wide, strong),
    }


@pytest.fixture(scope="module")
def alone(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], np.ndarray]:
    """Images of diffusers, by case and file, from one process without Onbrand."""
    folder = tmp_path_factory.mktemp("alone")
    asked, outs = [], {}
    for number, (name, case) in enumerate(cases.items()):
        files = []
        for kind, data in case.files.items():
            adapter, outs[name, kind] = folder / f"{number}-{kind}.safetensors", folder / f"{number}-{kind}.npy"
            adapter.write_bytes(data or b"")
            files.append({"adapter": str(adapter) if data else None, "out": str(outs[name, kind])})
        asked.append({"base": str(case.base), "files": files, "seed": SEED, "arguments": case.arguments})
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        input=json.dumps(asked),
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {which: np.load(path) for which, path in outs.items()}


FILES = [
    ("sd15", "canonical"),
    ("sd15", "kohya"),
    ("sdxl", "canonical"),
    ("sdxl", "kohya"),
    ("flux", "canonical"),
    ("flux double blocks", "canonical"),
    ("flux double blocks", "kohya"),
    ("flux single block", "canonical"),
    ("flux single block", "kohya"),
]


@pytest.mark.parametrize(("name", "kind"), FILES)
def test_a_process_without_onbrand_draws_the_same_picture_with_the_file(cases, alone, name, kind):
    ours, theirs = cases[name].ours[kind], alone[name, kind]
    assert np.abs(theirs - ours).max() <= TOLERANCE
    plain = alone[name, "none"]
    assert np.abs(plain - cases[name].ours["none"]).max() <= TOLERANCE
    assert np.abs(theirs - plain).max() > 0.02, "the adapter must matter, or nothing was compared"


def test_every_file_of_every_case_was_compared(cases):
    assert [(name, kind) for name, case in cases.items() for kind in case.files if kind != "none"] == FILES
