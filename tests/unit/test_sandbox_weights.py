"""Only weights that the engine can serve unchanged may be published."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import pytest

from onbrand.errors import AdapterRefused
from onbrand.sandbox.weights import check_weights

LAYER = "unet.mid.to_q"
PLAIN = {f"{LAYER}.lora_A.weight": [4, 6], f"{LAYER}.lora_B.weight": [5, 4]}


def checked(shapes: dict[str, list[int]], config: Any = None) -> int:
    """Check a file of ones with these tensors and this configuration."""
    header: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        num = 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + num]}
        at += num
    if config is not None:
        header["__metadata__"] = {"lora_adapter_metadata": config if isinstance(config, str) else json.dumps(config)}
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + struct.pack("<f", 1.0) * (at // 4)
    return check_weights(io.BytesIO(data).read, len(data)).num_tensors


@pytest.mark.parametrize(
    "config",
    [
        None,
        {},
        {"unet.lora_alpha": 4},
        {"unet.lora_alpha": 4.0},
        {"unet.lora_alpha": 9, "unet.alpha_pattern": {"mid.to_q": 4}},
    ],
)
def test_an_alpha_that_is_the_rank_is_published(config):
    assert checked(PLAIN, config) == 2


@pytest.mark.parametrize(
    "config",
    [
        {"unet.lora_alpha": 2},
        {"unet.lora_alpha": "4"},
        {"unet.lora_alpha": None},
        {"unet.lora_alpha": 4, "unet.alpha_pattern": {"mid.to_q": 8}},
    ],
)
def test_an_alpha_that_is_not_folded_is_refused(config):
    with pytest.raises(AdapterRefused, match=r"fold alpha / rank into lora_B"):
        checked(PLAIN, config)


@pytest.mark.parametrize(
    ("shapes", "config", "why"),
    [
        (PLAIN, {"unet.use_dora": True}, "DoRA"),
        (PLAIN, {"unet.lora_bias": True}, "biases"),
        (PLAIN | {f"{LAYER}.lora_magnitude_vector": [5, 1]}, None, "DoRA"),
        (PLAIN | {f"{LAYER}.lora_B.bias": [5, 1]}, None, "biases"),
        (PLAIN | {"text_encoder.x.lora_A.weight": [4, 6]}, None, "text encoder"),
        (PLAIN | {"text_encoder_2.x.lora_A.weight": [4, 6]}, None, "text encoder"),
        (PLAIN, "{", "not JSON"),
        (PLAIN, "[1]", "not a JSON object"),
        (PLAIN, {"unet.alpha_pattern": [1]}, "not a JSON object"),
    ],
)
def test_what_the_engine_does_not_serve_is_not_published(shapes, config, why):
    with pytest.raises(AdapterRefused, match=why):
        checked(shapes, config)
