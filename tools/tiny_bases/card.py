"""The model card of a tiny base: description, training data and measurements."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onbrand.families.tiny.draw import COLOURS, GROUNDS, SHAPES
from tools.tiny_bases.assembly import folder_bytes
from tools.tiny_bases.score import triples

TITLES = {"sd15": "Stable Diffusion 1.5", "sdxl": "Stable Diffusion XL", "flux": "FLUX.1"}


@dataclass(frozen=True)
class Facts:
    """Facts about a training run."""

    steps: int
    seconds: float
    num_scenes: int
    vae_psnr: float  # dB, on scenes not learned from


def write_card(family: str, folder: Path, facts: Facts, scores: dict[str, Any]) -> Path:
    """Write README.md into the base's folder. `scores` is the result of `score` for it."""
    path = folder / "README.md"
    path.write_text(card(family, facts, scores, folder_bytes(folder)))
    return path


def card(family: str, facts: Facts, scores: dict[str, Any], num_bytes: int) -> str:
    """The model card's text in Markdown. `num_bytes` is the size of the base's folder."""
    held, seen = len(triples(held=True)), len(triples(held=False))
    title = TITLES[family]
    return f"""# Tiny {title}

A complete `diffusers` pipeline of the {title} architecture at 64 px, {num_bytes / 1e6:.1f} MB in fp16.
It draws coloured shapes on coloured grounds and exists so that Onbrand can train, serve and test real adapters on
a laptop's CPU. It is no substitute for {title} and contains none of its weights.

## Made from

Every part was trained from scratch on images and captions that `onbrand.families.tiny.draw` makes:
{len(SHAPES)} shapes in {len(COLOURS)} colours on {len(GROUNDS)} grounds, alone, inside, next to or above one another.
No photograph, no text, no data and no weights of anybody else were used, so no third party's licence applies to these
weights. They have no separate licence.

| | |
|---|---|
| scenes | {facts.num_scenes:,} |
| denoiser steps | {facts.steps:,} |
| denoiser training | {facts.seconds:,.0f} s by the clock, on one core of a busy machine |
| VAE on unseen scenes | {facts.vae_psnr:.1f} dB |

## Measured

{scores["n"]} prompts for a single shape such as "a photo of a red star on a white background", judged from the pixels.
Of the {held + seen} (colour, shape, ground) combinations, {held} were held out: no caption and no image of the
training had one.

| share right | seen | held out |
|---|---|---|
{_rows(scores)}

`python -m tools.tiny_bases score {family}` measures this again;
`python -m tools.tiny_bases train {family}` trains another one like it, though not the same bits.

## Limits

- It knows the words of its captions and nothing else; other words are spelled out in letters and mostly ignored.
- Only single shapes of the usual size were measured. Small ones, and two shapes inside, next to or above one another,
  have the right colours and places but often melted outlines.
- It tells names apart by their letters only as far as an adapter's training shows it names that are alike; Onbrand's
  does (`onbrand.families.tiny.prior`).

Recommended settings are in `onbrand.json`.
"""


def _rows(scores: dict[str, Any]) -> str:
    names = {"all3": "all three", "colour": "colour", "shape": "shape", "ground": "ground"}
    return "\n".join(
        f"| {title} | {scores['seen'][name]:.2f} | {scores['held_out'][name]:.2f} |" for name, title in names.items()
    )
