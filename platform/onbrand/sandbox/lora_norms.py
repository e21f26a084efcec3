"""The share of text encoders in a LoRA file's update: norms of alpha / rank B A, computed from r x r matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from onbrand.errors import AdapterRefused
from onbrand.lora_names import ImportOptions, LoraNames, LoraSettings, PairNames, scale_of
from onbrand.safetensors_header import SafetensorsHeader, TensorFacts

RANK_MAX = 512
"""The highest rank that is read. No base serves more than 128, and FLUX' original fuses up to four layers into one."""
_KINDS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U8": "<u1",
}


class Norms:
    """Computes norms from a file's tensors, in any order; it needs none if no text-encoder layers are dropped.

    Raises AdapterRefused as `lora_names.scale_of` does, and for a rank above `RANK_MAX` if such layers are dropped.
    """

    def __init__(
        self,
        names: LoraNames,
        header: SafetensorsHeader,
        settings: Mapping[str, LoraSettings],
        options: ImportOptions,
    ) -> None:
        self._names, self._settings, self._options = names, settings, options
        for pair in (*names.pairs, *names.text_pairs):
            rank = header.tensors[pair.down].shape[0]
            scale_of(pair, rank, None if pair.alpha is None else float(rank), settings, options)
            if names.text_pairs and rank > RANK_MAX:
                raise AdapterRefused(f"the rank of {pair.layer[:120]} is {rank}; at most {RANK_MAX} is read")
        weighed = (*names.pairs, *names.text_pairs) if names.text_pairs else ()
        self._roles = {pair.down: "down" for pair in weighed} | {pair.up: "up" for pair in weighed}
        self._roles |= {pair.alpha: "alpha" for pair in weighed if pair.alpha is not None}
        self._grams: dict[str, np.ndarray] = {}
        self._alphas: dict[str, float] = {}

    def wants(self, name: str) -> bool:
        """Whether `take` needs this tensor."""
        return name in self._roles

    def take(self, name: str, data: bytes, facts: TensorFacts) -> None:
        """Keep the part of a tensor that the norms need: an [r, r] Gram matrix, or alpha."""
        numbers = _numbers(data, facts.dtype)
        if self._roles[name] == "alpha":
            self._alphas[name] = float(numbers[0])
            return
        matrix = numbers.reshape(facts.shape[0], -1)
        self._grams[name] = matrix @ matrix.T if self._roles[name] == "down" else matrix.T @ matrix

    def of_text_and_all(self) -> tuple[float, float]:
        """The norms of the text encoders' updates and of all updates; both 0 if no text-encoder layers are dropped."""
        if not self._roles:
            return 0.0, 0.0
        text, rest = (sum(map(self._energy, pairs)) for pairs in (self._names.text_pairs, self._names.pairs))
        return math.sqrt(text), math.sqrt(text + rest)

    def _energy(self, pair: PairNames) -> float:
        """The squared Frobenius norm of scale * up @ down: scale^2 tr((U'U)(DD'))."""
        down, up = self._grams[pair.down], self._grams[pair.up]
        alpha = None if pair.alpha is None else self._alphas[pair.alpha]
        scale = scale_of(pair, len(down), alpha, self._settings, self._options)
        return max(0.0, float((down * up).sum())) * scale**2


def _numbers(data: bytes, dtype: str) -> np.ndarray:
    """The tensor's values in double precision."""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").astype("<f8")
    return np.frombuffer(data, _KINDS[dtype]).astype("<f8")
