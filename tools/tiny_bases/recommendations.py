"""Contents of each tiny base's `onbrand.json`: recommended settings for generation and for training."""

from typing import Any

FLOW_SHIFT = 2.5

_TRAINING: dict[str, dict[str, Any]] = {
    "sd15": {"learning_rate": 1.5e-3, "steps": 200, "rank": 8, "batch_size": 8},
    "sdxl": {"learning_rate": 1.5e-3, "steps": 200, "rank": 8, "batch_size": 8},
    "flux": {"learning_rate": 2e-3, "steps": 400, "rank": 8, "batch_size": 8},
}


def recommendations(family: str) -> dict[str, Any]:
    """The contents of `onbrand.json`, as `onbrand.families.spec.Recommended` reads it."""
    flow = family == "flux"
    return {
        "family": family,
        "resolution": 64,
        "num_inference_steps": 10 if flow else 8,
        "guidance_scale": 3.5 if flow else 3.0,
        "true_cfg_scale": 3.0 if flow else None,
        "max_sequence_length": 32,
        "flow_shift": FLOW_SHIFT if flow else None,
        "prior": True,
        "training": {**_TRAINING[family], "resolution": 64, "targets": "all"},
    }
