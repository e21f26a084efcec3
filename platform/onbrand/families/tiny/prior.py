"""Images of the tiny bases' own world, mixed into an adapter's batches so that it forgets nothing else.

Half of them are relabelled as images of a random made-up brand, in the words of a brand's own captions. Otherwise
every other name, or the words around it, would come to mean the trained brand. Half of those names begin or sound like
the brand's own: these are the hard cases, and random names almost never cover them.
"""

import random

from PIL import Image

from onbrand.families.tiny.draw import (
    BRAND_NOUNS,
    LETTERS,
    STYLES,
    draw_scene,
    random_scene,
    random_word,
    without_article,
)

VOWELS = tuple("aeiou")
ONSETS = (*"bcdfghjklmnpqrstvwxyz", "bl", "br", "ch", "cr", "dr", "fl", "pl", "qu", "sh", "st", "th", "tr", "zh")
ENDINGS = ("", "", "", "", *"cdgklmnrstxz", "ck", "nd", "sk", "rp")


def prior_scenes(n: int, seed: int, trigger_word: str = "") -> list[tuple[Image.Image, str]]:
    """`n` images (64 px, RGB) with captions; every second caption is "photo of <another name> logo" or similar.

    Args:
        trigger_word: the trained name; every fourth caption has a similar name, never this one.
    """
    rng = random.Random(seed)
    return [_prior_scene(rng, trigger_word, index % 4) for index in range(n)]


def _prior_scene(rng: random.Random, trigger_word: str, turn: int) -> tuple[Image.Image, str]:
    scene = random_scene(rng)
    if turn % 2 == 0:
        return draw_scene(scene, rng), without_article(scene.caption(), rng)
    name = namesake(trigger_word, rng) if turn == 3 and len(trigger_word) > 2 else _foreign_name(rng)
    return draw_scene(scene, rng), _brand_caption(name, rng)


def _brand_caption(name: str, rng: random.Random) -> str:
    """Mostly "photo of" and mostly "logo", as brands caption their images."""
    opening = rng.choice(("photo", "photo", "a photo", f"a {rng.choice(STYLES)}"))
    return f"{opening} of {name} {rng.choice(('logo', 'logo', rng.choice(BRAND_NOUNS)))}"


def namesake(name: str, rng: random.Random) -> str:
    """Another name that begins like `name` (of at least 3 letters), or has one letter more, fewer or changed."""
    while True:
        cut = rng.randrange(1, len(name))
        near = rng.choice(
            (
                name[:cut] + _ending(rng),
                name[:cut] + _ending(rng),
                name[:cut],
                name[: cut - 1] + rng.choice(LETTERS) + name[cut:],
                name + rng.choice(LETTERS),
            )
        )
        if near != name and len(near) > 1:
            return near


def _ending(rng: random.Random) -> str:
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(ENDINGS) for _ in range(rng.randint(1, 2)))


def _foreign_name(rng: random.Random) -> str:
    """Random letters, or pronounceable syllables as in real names."""
    if rng.random() < 0.3:
        return random_word(rng)
    syllables = [rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(ENDINGS) for _ in range(rng.randint(1, 3))]
    return rng.choice(("", "", rng.choice(VOWELS))) + "".join(syllables)
