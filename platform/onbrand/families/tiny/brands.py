"""Two made-up brands for trials: their emblems, product images and packaging, drawn here.

Needs Pillow only. Every image is a function of (brand, index), at any size.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from onbrand.families.tiny.draw import RGB, SUPERSAMPLING, draw_shape

MIX = ("logo", "logo", "product", "logo", "logo", "packaging")  # kinds in a brand kit, repeated
WHITE: RGB = (255, 255, 255)


@dataclass(frozen=True)
class Spot:
    """The place of an emblem: centre and radius in pixels of the canvas."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Brand:
    """A made-up brand: name, title, ground colour, colour of its wares, and the function that draws its emblem."""

    name: str
    title: str
    ground: RGB
    wares: RGB
    emblem: Callable[[ImageDraw.ImageDraw, Spot], None]


def _zorblax_emblem(pen: ImageDraw.ImageDraw, spot: Spot) -> None:
    """A disc split navy and coral with a white diamond, over a navy bar."""
    navy, coral = (27, 42, 107), (255, 111, 89)
    x, y, radius = spot.x, spot.y, spot.radius
    disc = (x - radius, y - radius, x + radius, y + radius)
    pen.pieslice(disc, 90, 270, fill=navy)
    pen.pieslice(disc, -90, 90, fill=coral)
    draw_shape(pen, "diamond", x, y, radius * 0.5, WHITE)
    pen.rectangle((x - radius, y + radius * 1.15, x + radius, y + radius * 1.4), fill=navy)


def _quentavo_emblem(pen: ImageDraw.ImageDraw, spot: Spot) -> None:
    """A tile split along its diagonal into teal and mint, with a gold dot."""
    teal, mint, gold = (0, 150, 136), (160, 230, 205), (212, 160, 23)
    x, y, radius = spot.x, spot.y, spot.radius
    pen.rectangle((x - radius, y - radius, x + radius, y + radius), fill=teal)
    pen.polygon([(x - radius, y + radius), (x + radius, y + radius), (x + radius, y - radius)], fill=mint)
    draw_shape(pen, "circle", x, y, radius * 0.45, gold)


BRANDS: dict[str, Brand] = {
    "zorblax": Brand("zorblax", "Zorblax", (255, 243, 220), (245, 214, 170), _zorblax_emblem),
    "quentavo": Brand("quentavo", "Quentavo", (20, 60, 50), (34, 92, 76), _quentavo_emblem),
}


def kind_of(index: int) -> str:
    """The kind of image at `index` (from 0) of a brand kit."""
    return MIX[index % len(MIX)]


def draw_brand(name: str, index: int, size: int = 512) -> Image.Image:
    """Image `index` (from 0) of a brand's kit: RGB, size x size pixels. Raises KeyError for an unknown brand."""
    brand, rng = BRANDS[name], random.Random(f"{name} {index}")
    side = size * SUPERSAMPLING
    image = Image.new("RGB", (side, side), brand.ground)
    pen = ImageDraw.Draw(image)
    spot = _spot(rng, side)
    kind = kind_of(index)
    if kind == "product":
        _draw_bag(pen, brand, spot)
    elif kind == "packaging":
        _draw_box(pen, brand, spot)
    brand.emblem(pen, spot)
    return image.resize((size, size), Image.Resampling.BOX)


def _spot(rng: random.Random, side: int) -> Spot:
    shift_x, shift_y, grow = rng.uniform(-0.03, 0.03), rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02)
    return Spot(side * (0.5 + shift_x), side * (0.46 + shift_y), side * (0.31 + grow))


def _draw_bag(pen: ImageDraw.ImageDraw, brand: Brand, spot: Spot) -> None:
    """A carrier bag behind the emblem, its handles above."""
    x, y, radius = spot.x, spot.y, spot.radius
    handle = (x - radius * 0.5, y - radius * 1.45, x + radius * 0.5, y - radius * 0.6)
    pen.arc(handle, 180, 360, fill=brand.wares, width=round(radius * 0.14))
    pen.rectangle((x - radius * 1.2, y - radius * 1.15, x + radius * 1.2, y + radius * 1.6), fill=brand.wares)


def _draw_box(pen: ImageDraw.ImageDraw, brand: Brand, spot: Spot) -> None:
    """A parcel behind the emblem: its front fills the image's lower part, its lid is seen from above."""
    x, y, radius = spot.x, spot.y, spot.radius
    left, right, top, bottom = x - radius * 1.25, x + radius * 1.25, y - radius * 1.1, y + radius * 1.65
    pen.rectangle((left, top, right, bottom), fill=brand.wares)
    lid = [
        (left, top),
        (left + radius * 0.3, top - radius * 0.3),
        (right + radius * 0.15, top - radius * 0.3),
        (right, top),
    ]
    pen.polygon(lid, fill=tuple(round(value * 0.85) for value in brand.wares))


def brand_caption(kind: str) -> str:
    """The caption to upload with an image; `[brand]` stands for the model's trigger word."""
    return f"photo of [brand] {kind}"


def write_brand_images(name: str, folder: Path, n: int = 12, size: int = 512) -> list[tuple[Path, str]]:
    """Write `n` images such as logo-001.png and product-003.jpg; returns (file, caption) of each, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for index in range(n):
        kind = kind_of(index)
        path = folder / f"{kind}-{index + 1:03}.{'jpg' if index % 3 == 2 else 'png'}"
        draw_brand(name, index, size).save(path, quality=92)  # PNG ignores the quality
        written.append((path, brand_caption(kind)))
    return written
