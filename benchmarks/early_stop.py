"""Early stopping at the best step against training to a fixed last step, on a tiny base.

`python -m benchmarks.early_stop --family sd15 --json` trains one brand's adapter to a fixed last step and validates on
held-out pictures, as a job does. Up to the end by `patience` the steps are bit-identical to those of a job. Then it
compares the averages of the best and of the last step, by the loss on pictures that neither training nor validation
used, with other noise. Prints one JSON object:

- `best_over_last`: the best step's loss on unseen pictures over the last step's (target: < 1);
- `loss_base`, `loss_best`, `loss_last`: loss on unseen pictures of the base and of both averages;
- `held_out_best`, `held_out_last`: validation loss, which selects the best step;
- `best_step`, `stopped_at`, `steps`: the published step, the end by patience, the fixed last step;
- `steps_saved`: fraction of the steps that early stopping saves.
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
from onbrand.families.family import Family
from onbrand.families.loading import load_family
from onbrand.families.tiny.brands import BRANDS, brand_caption, draw_brand, kind_of
from onbrand.families.training_config import TrainingConfig
from onbrand.training.data.dataset import Picture
from onbrand.training.data.encoding import encode
from onbrand.training.kernels.lora_layers import frozen_base
from onbrand.training.trainer import Trainer
from onbrand.training.validation import ValidationHistory, Validator

NUM_UNSEEN = 24
NUM_STEPS = 1500
"""Usual number of steps in trainers' recipes for a dozen pictures, for any base."""


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
    """Train to the last step, then compare the early-stopped and the last average on unseen pictures."""
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
        "held_out_last": round(trainer.validations.history[-1][1], 5),
        "best_step": early.best[0],
        "stopped_at": stopped_at,
        "steps": trainer.step,
        "steps_saved": round(1 - stopped_at / trainer.step, 3),
        "patience": patience,
        "num_unseen": NUM_UNSEEN,
        "train_seconds": round(seconds, 1),
    }


def trained_to_the_end(trainer: Trainer, patience: int) -> ValidationHistory:
    """Do all steps; returns the validations of a run with patience and sets `trainer.best` to its published average."""
    early = ValidationHistory(patience)
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
    """Losses on unseen pictures of the base, the best step and the last step."""
    family, plan = trainer.family, trainer.plan
    pictures = [
        Picture(draw_brand(brand, 1000 + i), brand_caption(kind_of(i)).replace("[brand]", brand), f"unseen-{i}")
        for i in range(NUM_UNSEEN)
    ]
    judge = Validator(family, encode(family, pictures, plan.resolution), plan.seed + 1)

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
