"""Prompts to conditioning: one by one, or in a batch where that was verified bit-identical."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

from torch import Tensor, nn

from onbrand.engine.cpu.exact_batching import ExactBatcher
from onbrand.engine.cpu.onednn import use_onednn
from onbrand.families.family import Conditioning, Family

MOST_AT_ONCE = 8
"""Requests per batch: a larger one would delay its first request."""


@dataclass(frozen=True)
class PromptPair:
    """The prompts of a request; `guided`: with a negative branch, of no negative prompt if it is None."""

    prompt: str
    negative: str | None
    guided: bool


Branches = tuple[Conditioning, Conditioning | None]
"""The conditioning of a prompt, and that of its negative branch or None."""


class Encoder:
    """Encodes with a family's text encoders. From any thread, one call at a time: tokenizers are not thread-safe."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._lock = Lock()
        self._encoded: ExactBatcher[PromptPair, Branches] = ExactBatcher(self._encode, _bits)
        for encoder in family.text_encoders():
            projection = getattr(encoder, "text_projection", None)
            if isinstance(projection, nn.Module):  # one token per prompt: MKL rounds few rows differently from many
                use_onednn(projection)

    def branches(self, pairs: Sequence[PromptPair]) -> list[Branches | Exception]:
        """The branches of each request, or its exception. All requests are guided, or none is."""
        with self._lock:
            if self._family.device.type == "cpu":
                return self._encoded(pairs, pairs[0].guided)
            return self._encoded.one_by_one(pairs)

    def _encode(self, pairs: Sequence[PromptPair]) -> list[Branches]:
        prompts = [each.prompt for each in pairs]
        if not pairs[0].guided:
            encoded = self._family.encode_prompts(prompts)
            return [(encoded.rows([n]), None) for n in range(len(pairs))]
        positive, negative = self._family.encode_pairs(prompts, [each.negative for each in pairs])
        return [(positive.rows([n]), negative.rows([n])) for n in range(len(pairs))]


def _bits(branches: Branches) -> Iterator[Tensor]:
    for branch in branches:
        if branch is not None:
            yield from branch.tensors.values()
