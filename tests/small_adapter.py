"""The smallest file that may be published, and a worker's facts about it."""

from __future__ import annotations

import json
import struct

FACTS = {"rank": 4, "trigger_word": "zorgle", "base_revision": "tiny", "metrics": {"loss": 0.1}}


def safetensors(seed: int = 0) -> bytes:
    """A plain safetensors file of one tensor; another one for every seed."""
    data = struct.pack("<4f", *(float(seed + i) for i in range(4)))
    header = json.dumps({"unet.x.lora_A.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(header)) + header + data
