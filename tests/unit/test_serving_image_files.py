"""The file of a generated picture."""

from __future__ import annotations

import io
import random

import pytest
from PIL import Image

from onbrand.serving.drawing import Pixels
from onbrand.serving.image_files import encoded

NOISE = Pixels(64, 64, random.Random(1).randbytes(3 * 64 * 64))


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_a_lower_quality_makes_a_smaller_file_and_none_is_95(kind: str) -> None:
    sizes = [len(encoded(NOISE, kind, {}, quality)) for quality in (0, 50, 95, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    assert encoded(NOISE, kind, {}) == encoded(NOISE, kind, {}, 95)
    assert Image.open(io.BytesIO(encoded(NOISE, kind, {}, 0))).size == (64, 64)
