"""The file of a generated picture."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from onbrand.serving.image_files import encoded

NOISE_CHW = torch.rand((3, 64, 64), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_a_lower_quality_makes_a_smaller_file_and_none_is_95(kind: str) -> None:
    sizes = [len(encoded(NOISE_CHW, kind, {}, quality)) for quality in (0, 50, 95, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    assert encoded(NOISE_CHW, kind, {}) == encoded(NOISE_CHW, kind, {}, 95)
    assert Image.open(io.BytesIO(encoded(NOISE_CHW, kind, {}, 0))).size == (64, 64)
