"""The platform's training loop against diffusers' training scripts, with the same pictures, steps, batch and dtype.

`python -m benchmarks.training --family sd15 --json` prints one JSON object:

- `samples_per_s_over_diffusers`: pictures per second, including encoding and validation, over those of diffusers'
  training script (`--script PATH`) or, without one, of a plain loop that does the same steps as the family's script
  (target: >= 1.5);
- `val_loss_over_diffusers`: loss of the published adapter over that of the other side's last step, on pictures that
  neither used (target: <= 1);
- `val_loss`, `val_loss_diffusers`, `val_loss_base`, `published_step`: the values behind it;
- `seconds_of_a_step`: of our loop and of theirs, by part.

Both sides: LoRA on the attention, gaussian, alpha = rank, AdamW, clip 1; rank and batch of the family's recipe,
the base's learning rate and steps; no prior pictures. The scripts use their default constant learning rate;
ours follows a job's schedule (`--schedule`). Ours holds out a sixth of the pictures; the other side trains on all. The
plain loop (`training_plain.py`) is its own process, and both sides run in turns of some steps, so that a busy machine
slows both. A script (`training_script.py`) runs to its end twice, and the time to start is subtracted. Ours uses a
worker's allocator settings (`keep_memory`), the other side its defaults.

`--real-shapes`, on a CUDA GPU: the same with a full-size base with random weights (`random_base.py`), whose losses are
meaningless; set a small `--steps` and a `--resolution`.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from PIL import Image

from benchmarks.lib.random_base import random_base
from benchmarks.lib.training_plain import CLOCKS, TURN_STEPS, PlainProcess, Timed, loaded
from benchmarks.lib.training_script import Script, base_of
from onbrand.config import FAMILIES
from onbrand.engine.compilation import keep_memory
from onbrand.families.bases import recommended
from onbrand.families.family import Family
from onbrand.families.spec import SPECS
from onbrand.families.tiny.brands import brand_caption, draw_brand, kind_of
from onbrand.families.training_config import ScheduleName, TrainingConfig
from onbrand.training.data.cache import DiskCache
from onbrand.training.data.dataset import CaptionVariants, Picture, held_out
from onbrand.training.data.encoding import encode
from onbrand.training.recipes import Plan, make_plan
from onbrand.training.trainer import Trainer
from onbrand.training.validation import Validator

BRAND, NUM_PICTURES, NUM_JUDGED, FIRST_JUDGED = "zorblax", 12, 8, 1000
_JUDGE_SEED = 77


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--family", choices=FAMILIES, default="sd15")
    options.add_argument("--steps", type=int, help="instead of the base's recommendation")
    options.add_argument("--batch", type=int, help="instead of the family's recipe")
    options.add_argument("--side", type=int, default=1024, help="pixels of the uploaded pictures")
    options.add_argument("--resolution", type=int, help="trained at; default: the base's own")
    options.add_argument("--base", type=Path, help="a folder with a base; default: the tiny flavour")
    options.add_argument(
        "--real-shapes", action="store_true", help="a full-size base with random weights, in bfloat16, on a CUDA GPU"
    )
    options.add_argument("--device", default="cpu")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for a busy machine")
    options.add_argument("--schedule", choices=get_args(ScheduleName), help="of our learning rate; else a job's usual")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--script", type=Path, help="diffusers' training script for the family, to compare with")
    options.add_argument("--packages", type=Path, help="a folder with what the script needs and is not installed")
    options.add_argument("--json", action="store_true", help="one compact line only")
    chosen = options.parse_args()
    if chosen.real_shapes:
        if not torch.cuda.is_available():
            raise SystemExit("--real-shapes needs a CUDA GPU; there is none here")
        chosen.device = "cuda"
    torch.set_num_threads(chosen.threads)
    keep_memory()
    with tempfile.TemporaryDirectory(prefix="onbrand-benchmark-") as folder:
        print(json.dumps(measure(chosen, Path(folder)), indent=None if chosen.json else 1), flush=True)


def measure(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train both sides in turns, then compute both losses on the same pictures and noise."""
    files = written_pictures(folder / "pictures", chosen.side)
    if chosen.real_shapes:
        chosen.base = random_base(chosen.family, folder / "base", device=chosen.device, dtype=torch.bfloat16)
    plan = plan_of(chosen)
    theirs = Script(chosen, plan, files, folder) if chosen.script else PlainProcess(chosen, plan, files)
    ours = Ours(chosen, plan, files, folder / "encoded")
    for _ in range(0, plan.steps, TURN_STEPS):
        ours.turn()
        theirs.turn()
    spent = theirs.finish(folder / "diffusers")
    losses = judged(chosen, plan, ours.trainer, folder / "diffusers")
    seconds = sum(spent.values())
    return {
        "benchmark": "training",
        "family": chosen.family,
        "samples_per_s_over_diffusers": round(seconds / ours.seconds, 3),
        "val_loss_over_diffusers": round(losses["val_loss"] / losses["val_loss_diffusers"], 4),
        **losses,
        "published_step": ours.trainer.published_step,
        "samples_per_s": round(plan.steps * plan.batch_size / ours.seconds, 2),
        "seconds_of_a_step": ours.parts()
        | {f"diffusers_{name}": round(each / plan.steps, 5) for name, each in spent.items()},
        "base": "random, full size" if chosen.real_shapes else chosen.base and chosen.base.name,
        "script": chosen.script and chosen.script.name,
        "steps": plan.steps,
        "batch": plan.batch_size,
        "rank": plan.rank,
        "learning_rate": plan.learning_rate,
        "schedule": plan.lr_schedule,
        "seed": plan.seed,
        "side": chosen.side,
        "resolution": plan.resolution,
        "dtype": str(ours.trainer.family.dtype),
        "device": chosen.device,
        "clock": chosen.clock,
    }


def judged(chosen: argparse.Namespace, plan: Plan, trainer: Trainer, written: Path) -> dict[str, float]:
    """Losses of the base, our adapter and diffusers' adapter, on the same pictures and noise."""
    family = loaded(chosen)
    judge = judge_of(family, plan)
    base = loss_of(judge)
    family.pipeline.load_lora_weights(written)
    theirs = loss_of(judge)
    judge.family = trainer.family
    with trainer.published():
        own = loss_of(judge)
    found = {"val_loss": own, "val_loss_diffusers": theirs, "val_loss_base": base}
    return {name: round(loss, 5) for name, loss in found.items()}


def plan_of(chosen: argparse.Namespace) -> Plan:
    """The plan: the family's rank and batch, the base's learning rate and steps, no early end and no accumulation."""
    spec = SPECS[chosen.family]
    advice = recommended(chosen.family, base_of(chosen))
    batch = chosen.batch or spec.recipe.batch_size
    config = TrainingConfig(
        steps=chosen.steps,
        rank=spec.recipe.rank,
        batch_size=batch,
        resolution=chosen.resolution or advice.resolution,
        targets="attention",
        patience=0,
        accumulation=1,
        seed=chosen.seed,
        **({"lr_schedule": chosen.schedule} if chosen.schedule else {}),
    )
    return replace(make_plan(spec, advice, config, BRAND), prior_rows=0)


def written_pictures(folder: Path, side: int) -> list[tuple[Path, str]]:
    """Write the brand's pictures as files; returns them with their captions."""
    folder.mkdir()
    files = []
    for index in range(NUM_PICTURES):
        path = folder / f"{index}.png"
        draw_brand(BRAND, index, side).save(path)
        files.append((path, caption_of(index)))
    return files


def caption_of(index: int) -> str:
    """The caption of picture `index`."""
    return brand_caption(kind_of(index)).replace("[brand]", BRAND)


def judge_of(family: Family, plan: Plan) -> Validator:
    """A judge on pictures that neither side trains on."""
    indices = range(FIRST_JUDGED, FIRST_JUDGED + NUM_JUDGED)
    unseen = [Picture(draw_brand(BRAND, index), caption_of(index), str(index)) for index in indices]
    return Validator(family, encode(family, unseen, plan.resolution), _JUDGE_SEED)


def loss_of(judge: Validator) -> float:
    """The judge's loss on a single worker."""
    return judge.loss(0, 1, lambda own: own)


class Ours(Timed):
    """The platform's loop, with an empty cache and held-out pictures, as in a job."""

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
            wording = CaptionVariants(plan.trigger_word)
            examples = encode(family, _opened(both[0]), plan.resolutions, (), wording, cache)
            judging = encode(family, _opened(both[1]), plan.resolution, cache=cache)
        self.trainer = Trainer(family, plan, examples, held_out=judging)

    def step(self) -> None:
        with self.timed("train"):
            self.trainer.train_step()


def _opened(files: list[tuple[Path, str]]) -> list[Picture]:
    return [
        Picture(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"), caption, path.name) for path, caption in files
    ]


if __name__ == "__main__":
    main()
