"""Pictures of the tiny bases' own world, mixed into an adapter's batches so that it forgets nothing else.

Half of them are relabelled as the logo of a random made-up brand: otherwise every foreign name would come to mean
the brand being trained.
"""

import random

from PIL import Image

from onbrand.families.tiny.draw import draw_scene, random_scene, random_word, unknown_brand_caption, without_article


def prior_scenes(n: int, seed: int) -> list[tuple[Image.Image, str]]:
    """`n` pictures (64 px, RGB) with captions; every second caption is "a <style> of <random word> logo" or alike."""
    rng = random.Random(seed)
    return [_prior_scene(rng, relabelled=index % 2 == 1) for index in range(n)]


def _prior_scene(rng: random.Random, *, relabelled: bool) -> tuple[Image.Image, str]:
    scene = random_scene(rng)
    caption = unknown_brand_caption(rng, random_word(rng)) if relabelled else scene.caption()
    return draw_scene(scene, rng), without_article(caption, rng)
