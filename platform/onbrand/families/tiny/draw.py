"""Training images of the tiny models: coloured shapes on coloured grounds, with captions. Pillow only.

Some (colour, shape, ground) triples are held out: no scene drawn here ever shows or names one.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 220, 50),
    "green": (40, 160, 70),
    "blue": (40, 90, 220),
    "purple": (140, 60, 180),
    "black": (20, 20, 20),
    "white": (250, 250, 250),
}
GROUNDS: dict[str, RGB] = {**COLOURS, "gray": (150, 150, 150), "pink": (250, 180, 200)}
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross")
CONTAINERS = ("circle", "square", "heart")
STYLES = ("photo", "picture", "icon", "logo", "drawing")
BRAND_NOUNS = ("logo", "emblem", "brand", "sign", "product", "packaging")
RELATIONS = ("inside", "next to", "above")

SIDE = 64  # pixels of a finished image
SUPERSAMPLING = 4
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Scene:
    """One shape on a ground, perhaps with a second shape beside or around it."""

    style: str
    colour: str
    shape: str
    ground: str
    size: str = ""  # "", "small" or "large"
    relation: str = ""  # "" or one of RELATIONS
    second_colour: str = ""
    second_shape: str = ""
    names_ground: bool = True

    def caption(self) -> str:
        """The caption, such as "a photo of a red star on a white background"."""
        text = f"a {self.style} of a {self.size + ' ' if self.size else ''}{self.colour} {self.shape}"
        if self.relation:
            text += f" {self.relation} a {self.second_colour} {self.second_shape}"
        return text + (f" on a {self.ground} background" if self.names_ground else "")


def held_out(colour: str, shape: str, ground: str) -> bool:
    """Whether a triple is kept from training: for every (colour, shape) exactly one ground in ten."""
    return (list(COLOURS).index(colour) + 3 * SHAPES.index(shape) + 7 * list(GROUNDS).index(ground)) % 10 == 0


def shows_held_out(scene: Scene) -> bool:
    """Whether the scene shows a held-out triple."""
    shown = [(scene.colour, scene.shape, scene.ground)]
    if scene.relation:
        shown.append((scene.second_colour, scene.second_shape, scene.ground))
    if scene.relation == "inside":
        shown.append((scene.colour, scene.shape, scene.second_colour))
    return any(held_out(*triple) for triple in shown)


def random_scene(rng: random.Random) -> Scene:
    """A scene of the training distribution: three in four show a single shape; none a held-out triple."""
    while shows_held_out(scene := _any_scene(rng)):
        pass
    return scene


def _any_scene(rng: random.Random) -> Scene:
    style, shape, kind = rng.choice(STYLES), rng.choice(SHAPES), rng.random()
    colour = rng.choice(list(COLOURS))
    ground = rng.choice([name for name in GROUNDS if name != colour])
    named = rng.random() < 0.94
    if kind < 0.76:
        size = rng.choice(("", "", "", "", "small", "large"))
        return Scene(style, colour, shape, ground, size=size, names_ground=named)
    inside = kind < 0.90
    relation = "inside" if inside else rng.choice(RELATIONS[1:])
    second_shape = rng.choice(CONTAINERS if inside else SHAPES)
    second = rng.choice([name for name in COLOURS if name != ground and not (inside and name == colour)])
    return Scene(style, colour, shape, ground, "", relation, second, second_shape, named)


def draw_scene(scene: Scene, rng: random.Random) -> Image.Image:
    """A 64 px RGB image of the scene; position, size and colours vary a little with `rng`."""
    image, pen = blank(jittered(GROUNDS[scene.ground], rng))
    for shape, colour, x, y, radius in _placements(scene, rng):
        draw_shape(pen, shape, x, y, radius, jittered(COLOURS[colour], rng))
    return finished(image)


def _placements(scene: Scene, rng: random.Random) -> Iterator[tuple[str, str, float, float, float]]:
    """(shape, colour, x, y, radius) in drawing order, as pixels of the supersampled canvas."""
    side = SIDE * SUPERSAMPLING
    x, y = (side * (0.5 + rng.uniform(-0.04, 0.04)) for _ in range(2))
    first, second = (scene.shape, scene.colour), (scene.second_shape, scene.second_colour)
    if scene.relation == "inside":
        radius = side * rng.uniform(0.37, 0.41)
        yield *second, x, y, radius
        yield *first, x, y - (radius * 0.05 if scene.second_shape == "heart" else 0), radius * 0.5
    elif scene.relation:
        radius, apart = side * rng.uniform(0.18, 0.20), side * rng.uniform(0.225, 0.255)
        beside = scene.relation == "next to"
        yield *first, *((x - apart, y) if beside else (x, y - apart)), radius
        yield *second, *((x + apart, y) if beside else (x, y + apart)), radius
    else:
        low, high = {"": (0.29, 0.33), "small": (0.19, 0.21), "large": (0.385, 0.405)}[scene.size]
        yield *first, x, y, side * rng.uniform(low, high)


def blank(ground: RGB) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A supersampled canvas of one colour, and its pen."""
    image = Image.new("RGB", (SIDE * SUPERSAMPLING,) * 2, ground)
    return image, ImageDraw.Draw(image)


def finished(image: Image.Image, side: int = SIDE) -> Image.Image:
    """The image scaled down to `side` x `side` pixels."""
    return image.resize((side, side), Image.Resampling.BOX)


def jittered(colour: RGB, rng: random.Random, reach: int = 6) -> RGB:
    """The colour with each channel changed by up to `reach`, within 0..255."""
    red, green, blue = (min(255, max(0, value + rng.randint(-reach, reach))) for value in colour)
    return red, green, blue


def draw_shape(pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, colour: RGB) -> None:
    """Draws one filled shape around (x, y); raises KeyError for an unknown one."""
    if shape == "circle":
        pen.ellipse(_box(x, y, radius), fill=colour)
    elif shape == "square":
        pen.rectangle(_box(x, y, radius * 0.88), fill=colour)
    elif shape == "ring":
        pen.ellipse(_box(x, y, radius), outline=colour, width=int(radius * 0.38))
    elif shape == "cross":
        bar = radius * 0.32
        pen.rectangle((x - bar, y - radius, x + bar, y + radius), fill=colour)
        pen.rectangle((x - radius, y - bar, x + radius, y + bar), fill=colour)
    else:
        pen.polygon([(x + radius * dx, y + radius * dy) for dx, dy in OUTLINES[shape]], fill=colour)


def _box(x: float, y: float, half: float) -> tuple[float, float, float, float]:
    return x - half, y - half, x + half, y + half


def _star() -> list[tuple[float, float]]:
    reach = [1.1 if corner % 2 == 0 else 0.45 for corner in range(10)]
    return [(r * math.sin(math.pi * k / 5), 0.08 - r * math.cos(math.pi * k / 5)) for k, r in enumerate(reach)]


def _heart() -> list[tuple[float, float]]:
    angles = [2 * math.pi * k / 60 for k in range(60)]
    wave = [13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) for a in angles]
    return [(math.sin(a) ** 3, -(height + 2.5) / 15) for a, height in zip(angles, wave, strict=True)]


OUTLINES: dict[str, list[tuple[float, float]]] = {
    "triangle": [(0, -1), (1, 0.8), (-1, 0.8)],
    "diamond": [(0, -1), (1, 0), (0, 1), (-1, 0)],
    "star": _star(),
    "heart": _heart(),
}


def random_word(rng: random.Random) -> str:
    """A random word of 3 to 9 letters, such as the name of a brand that does not exist."""
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(3, 9)))


def without_article(caption: str, rng: random.Random) -> str:
    """One caption in four opens "photo of" rather than "a photo of"."""
    return caption.removeprefix("a ") if rng.random() < 0.25 else caption
