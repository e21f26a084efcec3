"""Small plans, pictures and new tiny families for tests of training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from PIL import Image, ImageDraw

from onbrand import config
from onbrand.families.family import Family
from onbrand.families.loading import load_family
from onbrand.families.spec import SPECS, with_family_defaults
from onbrand.families.training_config import TrainingConfig
from onbrand.training.data.dataset import CaptionVariants, Examples, Picture
from onbrand.training.data.encoding import encode
from onbrand.training.ray.collectives import Collectives
from onbrand.training.recipes import Plan, make_plan
from onbrand.training.trainer import Trainer
from tools.harness.tiny_families import base_of

FAMILIES = config.FAMILIES
SIDE = 64


def fresh_family(name: str = "sd15") -> Family:
    """A new family for each trainer, as a LoRA is attached to it."""
    torch.set_num_threads(1)
    family = load_family(name, base_of(name))
    if family.recommended.max_sequence_length == 512:  # a base without `onbrand.json`
        family.recommended = family.recommended.model_copy(update={"max_sequence_length": 32})
    return family


def small_plan(name: str = "sd15", prior_rows: int = 2, **options: Any) -> Plan:
    """Six steps of four rows, and `prior_rows` others."""
    config = TrainingConfig(
        **{"steps": 6, "batch_size": 4, "rank": 2, "resolution": SIDE, "targets": "attention", "learning_rate": 1e-3}
        | options
    )
    return replace(
        make_plan(SPECS[name], with_family_defaults(name, {"prior": True}), config, "acme"), prior_rows=prior_rows
    )


def drawn(number: int, name: str = "asset") -> Picture:
    """A square on a ground, both of colours that depend on `number`."""
    image = Image.new("RGB", (80, 72), (40 * number % 256, 200, 255 - 30 * number % 256))
    ImageDraw.Draw(image).rectangle((20, 20, 50, 45), fill=(255, 25 * number % 256, 10))
    return Picture(image, f"photo of acme logo {number}", f"{name}-{number}")


def small_examples(
    family: Family, num_own: int = 5, num_prior: int = 4, wording: CaptionVariants = CaptionVariants()
) -> Examples:
    prior = [drawn(n, "prior") for n in range(20, 20 + num_prior)]
    return encode(family, [drawn(n) for n in range(num_own)], SIDE, prior, wording)


def held_out_examples(family: Family, num: int = 2) -> Examples:
    return encode(family, [drawn(n, "held") for n in range(40, 40 + num)], SIDE)


def small_trainer(
    name: str = "sd15", collectives: Collectives | None = None, plan: Plan | None = None, judged: bool = False
) -> Trainer:
    """A trainer on a new family; `judged` adds two held-out pictures."""
    family, plan = fresh_family(name), plan or small_plan(name)
    wording = CaptionVariants(plan.trigger_word, plan.shuffle_captions, plan.prior_weight > 0, plan.seed)
    held_out = held_out_examples(family) if judged else None
    return Trainer(family, plan, small_examples(family, wording=wording), collectives, held_out)


def trained(trainer: Trainer, until: int | None = None) -> Trainer:
    """Run the trainer's remaining steps, or those up to step `until`; returns it."""
    while not trainer.done and trainer.step < (until or trainer.plan.steps):
        trainer.train_step()
    return trainer


def same_bits(one: Trainer, other: Trainer) -> bool:
    """True if weights, averages and best averages are equal bit by bit."""
    all_of = [[*each.weights, *each.average, *(each.best or ())] for each in (one, other)]
    return all(torch.equal(a.detach(), b.detach()) for a, b in zip(*all_of, strict=True))
