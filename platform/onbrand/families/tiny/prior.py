"""Pictures of the tiny bases' own world, mixed into an adapter's batches so that it forgets nothing else.

Half of them are relabelled as belonging to a random made-up brand, in the very words of a brand's own captions:
otherwise every foreign name, or the words around it, would come to mean the brand being trained.
"""

import random

from PIL import Image

from onbrand.families.tiny.draw import BRAND_NOUNS, STYLES, draw_scene, random_scene, random_word, without_article

VOWELS = tuple("aeiou")
ONSETS = (*"bcdfghjklmnpqrstvwxyz", "bl", "br", "ch", "cr", "dr", "fl", "pl", "qu", "sh", "st", "th", "tr", "zh")
ENDINGS = ("", "", "", "", *"cdgklmnrstxz", "ck", "nd", "sk", "rp")


def prior_scenes(n: int, seed: int) -> list[tuple[Image.Image, str]]:
    """`n` pictures (64 px, RGB) with captions; every second caption is "photo of <random word> logo" or alike."""
    rng = random.Random(seed)
    return [_prior_scene(rng, relabelled=index % 2 == 1) for index in range(n)]


def _prior_scene(rng: random.Random, *, relabelled: bool) -> tuple[Image.Image, str]:
    scene = random_scene(rng)
    caption = _foreign_brand(rng) if relabelled else without_article(scene.caption(), rng)
    return draw_scene(scene, rng), caption


def _foreign_brand(rng: random.Random) -> str:
    """Mostly "photo of" and mostly "logo", as brands caption their pictures."""
    opening = rng.choice(("photo", "photo", "a photo", f"a {rng.choice(STYLES)}"))
    return f"{opening} of {_foreign_name(rng)} {rng.choice(('logo', 'logo', rng.choice(BRAND_NOUNS)))}"


def _foreign_name(rng: random.Random) -> str:
    """Random letters, or syllables that one could pronounce, as real names are."""
    if rng.random() < 0.3:
        return random_word(rng)
    syllables = [rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(ENDINGS) for _ in range(rng.randint(1, 3))]
    return rng.choice(("", "", rng.choice(VOWELS))) + "".join(syllables)
