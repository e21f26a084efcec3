"""Quality of a brand's adapter on a tiny base: its gain for the brand, and its damage to other prompts.

`python -m benchmarks.adapters --family sd15 --json` trains one adapter per made-up brand with the base's own recipe and
prints one JSON object per brand:

- `fit_base`, `fit_adapter`: 1 - cosine of VAE latents to the nearest picture of the brand that was not trained on;
- `other_name_gain`: increase in similarity to the brand for pictures of other made-up names (target: <= 0.1);
- `namesake_gain`: the same for names that begin like the brand's (no target; may be higher);
- `ordinary_loss`: loss of accuracy for prompts without the brand's name (target: <= 0.15);
- `train_seconds`: time of the training loop only.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from onbrand.config import FAMILIES
from onbrand.families.bases import base_source
from onbrand.families.family import Family, draw
from onbrand.families.loading import load_family
from onbrand.families.tiny.brands import BRANDS, brand_caption, draw_brand, kind_of
from onbrand.families.tiny.fit import fit, similarity
from onbrand.families.training_config import TrainingConfig
from onbrand.training.data.dataset import Picture, fitted, held_out, prior_pictures
from onbrand.training.data.encoding import encode
from onbrand.training.recipes import make_plan
from onbrand.training.trainer import Trainer
from tools.tiny_bases.score import judge, prompts

NUM_TRAINED, NUM_REFERENCES = 12, 36
OTHER_NAMES = ("blarnop", "acme", "sks", "fenwick", "tundro", "mirvalo")
NAMESAKES = {"zorblax": ("zorbo", "zorblin"), "quentavo": ("quenta", "quentor")}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--family", choices=FAMILIES, default="sd15")
    options.add_argument("--brand", choices=list(BRANDS), help="one made-up brand; all of them if left out")
    options.add_argument("--prompts", type=int, default=60, help="ordinary prompts that are judged")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--json", action="store_true", help="compact lines only")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    family = load_family(chosen.family, base_source(chosen.family, {}))
    for brand in [chosen.brand] if chosen.brand else BRANDS:
        print(json.dumps(measure(family, brand, chosen.prompts), indent=None if chosen.json else 1), flush=True)


def measure(family: Family, brand: str, num_prompts: int) -> dict[str, float | str]:
    """Results for one brand: draw with the base, train, draw with the adapter, with the same prompts and seeds."""
    unseen = [fitted(draw_brand(brand, 1000 + i), 64) for i in range(NUM_REFERENCES)]
    references = family.encode_images(torch.stack(unseen))
    others = [name for name in (*OTHER_NAMES, *BRANDS) if name != brand]
    asked = {
        "own": [f"photo of {brand} {kind_of(0)}"] * 12,
        "other": [f"photo of {name} logo" for name in others for _ in range(2)],
        "namesake": [f"photo of {name} logo" for name in NAMESAKES[brand] for _ in range(4)],
        "ordinary": [prompt for prompt, _ in prompts(num_prompts, 11, held=False)],
    }
    base = {name: drawn(family, texts) for name, texts in asked.items()}
    trainer, seconds = trained(family, brand)
    with trainer.published():
        with_adapter = {name: drawn(family, texts) for name, texts in asked.items()}
    family.denoiser.unload_lora()  # type: ignore[operator]

    def near(pictures: Tensor) -> float:
        return similarity(family.encode_images(pictures * 2 - 1), references)

    wanted = [triple for _, triple in prompts(num_prompts, 11, held=False)]
    accuracy = [judge(as_images(side["ordinary"]), wanted)["all3"] for side in (base, with_adapter)]
    return {
        "benchmark": "adapters",
        "family": family.spec.name,
        "brand": brand,
        "fit_base": round(fit(family.encode_images(base["own"] * 2 - 1), references), 4),
        "fit_adapter": round(fit(family.encode_images(with_adapter["own"] * 2 - 1), references), 4),
        "other_name_gain": round(near(with_adapter["other"]) - near(base["other"]), 4),
        "namesake_gain": round(near(with_adapter["namesake"]) - near(base["namesake"]), 4),
        "ordinary_base": round(accuracy[0], 3),
        "ordinary_loss": round(accuracy[0] - accuracy[1], 3),
        "steps": trainer.step,
        "published_step": trainer.published_step,
        "train_seconds": round(seconds, 1),
    }


def trained(family: Family, brand: str) -> tuple[Trainer, float]:
    """Train an adapter of `brand` by the base's recipe, as a job does; returns the trainer and its time in seconds."""
    trainer = trainer_of(family, brand, TrainingConfig())
    began = time.perf_counter()
    while not trainer.done:
        trainer.train_step()
    return trainer, time.perf_counter() - began


def trainer_of(family: Family, brand: str, config: TrainingConfig) -> Trainer:
    """The trainer for an adapter of `brand` on a dozen pictures, some of them held out, as in a job."""
    pictures = [
        Picture(draw_brand(brand, i), brand_caption(kind_of(i)).replace("[brand]", brand), f"{brand}-{i}")
        for i in range(NUM_TRAINED)
    ]
    plan = make_plan(family.spec, family.recommended, config, brand)
    prior = prior_pictures(plan.trigger_word) if plan.prior_rows else []
    places = held_out([each.caption for each in pictures], [each.name for each in pictures], plan.held_out, plan.seed)
    judging = encode(family, [pictures[place] for place in places], plan.resolution)
    shown = [picture for place, picture in enumerate(pictures) if place not in places]
    return Trainer(family, plan, encode(family, shown, plan.resolution, prior), held_out=judging)


def drawn(family: Family, texts: Sequence[str], batch: int = 12) -> Tensor:
    """[B, 3, H, W] in 0..1: one picture per text, with seeds 500, 501, ..."""
    parts = []
    for start in range(0, len(texts), batch):
        part = texts[start : start + batch]
        parts.append(draw(family, part, range(500 + start, 500 + start + len(part))))
    return torch.cat(parts)


def as_images(pictures_BCHW: Tensor) -> list[Image.Image]:
    """The pictures (0..1) as PIL images."""
    pixels = (pictures_BCHW.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    return [Image.fromarray(np.ascontiguousarray(picture)) for picture in pixels]


if __name__ == "__main__":
    main()
