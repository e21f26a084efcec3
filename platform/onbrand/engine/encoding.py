"""Prompts to conditioning: a request by itself, or some that wait at once where that was seen to change no bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

from torch import Tensor, nn

from onbrand.engine.at_once import AtOnce
from onbrand.engine.onednn import use_onednn
from onbrand.families.family import Conditioning, Family

MOST_AT_ONCE = 8
"""Requests: more would keep the first of them waiting for the last."""


@dataclass(frozen=True)
class Asked:
    """The prompts of a request; `guided`: with a negative branch, of no negative prompt if it is None."""

    prompt: str
    negative: str | None
    guided: bool


Branches = tuple[Conditioning, Conditioning | None]
"""What a prompt became, and its negative branch; None: there is none."""


class Encoder:
    """Encodes with a family's text encoders. From any thread, one at a time: tokenizers are not safe to share."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._lock = Lock()
        self._encoded: AtOnce[Asked, Branches] = AtOnce(self._encode, _bits)
        for encoder in family.text_encoders():
            projection = getattr(encoder, "text_projection", None)
            if isinstance(projection, nn.Module):  # of one token a prompt: MKL rounds few rows otherwise than more
                use_onednn(projection)

    def branches(self, asked: Sequence[Asked]) -> list[Branches | Exception]:
        """Of each, or why there are none; they are all guided, or none is."""
        with self._lock:
            if self._family.device.type == "cpu":
                return self._encoded(asked, asked[0].guided)
            return self._encoded.one_by_one(asked)

    def _encode(self, asked: Sequence[Asked]) -> list[Branches]:
        prompts = [each.prompt for each in asked]
        if not asked[0].guided:
            found = self._family.encode_prompts(prompts)
            return [(found.rows([n]), None) for n in range(len(asked))]
        positive, negative = self._family.encode_pairs(prompts, [each.negative for each in asked])
        return [(positive.rows([n]), negative.rows([n])) for n in range(len(asked))]


def _bits(branches: Branches) -> Iterator[Tensor]:
    for branch in branches:
        if branch is not None:
            yield from branch.tensors.values()
