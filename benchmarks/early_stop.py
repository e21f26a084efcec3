"""What ending at the best step brings, against training to a fixed last step, on a tiny base.

`python -m benchmarks.early_stop --family sd15 --json` trains one brand's adapter to a last step that is fixed before,
and looks at the held-out pictures on the way, as a job does; the steps up to the end that patience would have chosen
are the same, bit for bit. Then the average of the best step and that of the last one are judged by pictures that
neither training nor the choice has seen, with other noise. Prints one JSON object:

- `best_over_last`: the best step's loss on unseen pictures over the last step's (wanted: < 1);
- `loss_base`, `loss_best`, `loss_last`: of the bare base, and of either;
- `held_out_best`, `held_out_last`: the loss on the held-out pictures, by which the step was chosen;
- `best_step`, `stopped_at`, `steps`: which step is published, where patience ends the run, the fixed last one;
- `steps_saved`: the part of the steps that need not be trained.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.adapters import trainer_of
from onbrand.config import FAMILIES
from onbrand.families.bases import base_source
from onbrand.families.family import Family, load_family
from onbrand.families.spec import TrainingConfig
from onbrand.families.tiny.brands import BRANDS, brand_caption, draw_brand, kind_of
from onbrand.training.dataset import Picture
from onbrand.training.encoding import encode
from onbrand.training.layers import frozen_base
from onbrand.training.loop import Trainer
from onbrand.training.validation import Judge, Verdicts

NUM_UNSEEN = 24
NUM_STEPS = 1500
"""What trainers' recipes say for a dozen pictures, whatever the base."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--family", choices=FAMILIES, default="sd15")
    options.add_argument("--brand", choices=list(BRANDS), default=next(iter(BRANDS)))
    options.add_argument("--steps", type=int, default=NUM_STEPS, help=f"the fixed last step (default {NUM_STEPS})")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--json", action="store_true", help="one compact line")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    family = load_family(chosen.family, base_source(chosen.family, {}))
    found = measure(family, chosen.brand, chosen.steps)
    print(json.dumps(found, indent=None if chosen.json else 1), flush=True)


def measure(family: Family, brand: str, steps: int) -> dict[str, Any]:
    """Train to the last step, then judge what patience would have published, and the last step, by unseen pictures."""
    patience = TrainingConfig().patience
    trainer = trainer_of(family, brand, TrainingConfig(steps=steps, patience=0))
    began = time.perf_counter()
    early = trained_to_the_end(trainer, patience)
    seconds = time.perf_counter() - began
    base, best, last = unseen_losses(trainer, brand)
    assert early.best is not None, "some pictures are held out"
    stopped_at = early.history[-1][0]
    return {
        "benchmark": "early_stop",
        "family": family.spec.name,
        "brand": brand,
        "best_over_last": round(best / last, 4),
        "loss_base": round(base, 5),
        "loss_best": round(best, 5),
        "loss_last": round(last, 5),
        "held_out_best": round(early.best[1], 5),
        "held_out_last": round(trainer.verdicts.history[-1][1], 5),
        "best_step": early.best[0],
        "stopped_at": stopped_at,
        "steps": trainer.step,
        "steps_saved": round(1 - stopped_at / trainer.step, 3),
        "patience": patience,
        "num_unseen": NUM_UNSEEN,
        "train_seconds": round(seconds, 1),
    }


def trained_to_the_end(trainer: Trainer, patience: int) -> Verdicts:
    """All steps; what a run with patience would have seen, and as `trainer.best` what it would have published."""
    early = Verdicts(patience)
    best: list[Tensor] | None = None
    while not trainer.done:
        facts = trainer.train_step()
        if facts.validation_loss is None or early.exhausted:
            continue
        if early.add(facts.step, facts.validation_loss):
            best = [average.clone() for average in trainer.average]
    trainer.best = best
    return early


def unseen_losses(trainer: Trainer, brand: str) -> tuple[float, float, float]:
    """Of the bare base, of the best step, and of the last one."""
    family, plan = trainer.family, trainer.plan
    pictures = [
        Picture(draw_brand(brand, 1000 + i), brand_caption(kind_of(i)).replace("[brand]", brand), f"unseen-{i}")
        for i in range(NUM_UNSEEN)
    ]
    judge = Judge(family, encode(family, pictures, plan.resolution), plan.seed + 1)

    def loss() -> float:
        return judge.loss(0, 1, lambda errors: errors)

    with frozen_base(family.denoiser):
        base = loss()
    with trainer.published():
        best = loss()
    with trainer.averaged():
        return base, best, loss()


if __name__ == "__main__":
    main()
