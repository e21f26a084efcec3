"""Several pieces of work as one, where that was seen to change no bit.

On a CPU a small text or picture leaves most of the processor idle, and eight at once take half the time of eight in
turn. But what a brand gets must not depend on who else asks in the same step, and no library promises that eight round
as one does. So the first of every number and kind are done both ways; only if all are equal, bit for bit, the next of
that number and kind are done at once. Rounding is a question of shapes, which data does not choose; values that are
not finite say nothing about it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

_MODERATE = 1e6
Item = TypeVar("Item")
Made = TypeVar("Made")


class AtOnce(Generic[Item, Made]):
    """Does items at once or one by one. From any thread.

    Args:
        work: what is made of each of some items.
        bits: the tensors of what was made, in an order that lasts.
    """

    def __init__(self, work: Callable[[Sequence[Item]], list[Made]], bits: Callable[[Made], Iterable[Tensor]]) -> None:
        self._work, self._bits = work, bits
        self._is_exact: dict[tuple[int, Hashable], bool] = {}

    def __call__(self, items: Sequence[Item], kind: Hashable) -> list[Made | Exception]:
        """What was made of each, or why nothing was; what fails at once is done alone, and only the culprit fails.

        Args:
            kind: of all items: two of a kind have tensors of the same shapes.
        """
        if len(items) > 1 and self._is_exact.get((len(items), kind), True):
            try:
                made = self._work(items)
            except Exception:
                return self.one_by_one(items)
            if (len(items), kind) in self._is_exact:
                return list(made)
            alone = self.one_by_one(items)
            if not any(isinstance(each, Exception) or not self._is_finite(each) for each in (*alone, *made)):
                self._is_exact[len(items), kind] = all(map(self._is_same, made, alone))
            return alone
        return self.one_by_one(items)

    def one_by_one(self, items: Sequence[Item]) -> list[Made | Exception]:
        """The same, without asking whether more at once would be as good."""
        return [self._alone(item) for item in items]

    def _alone(self, item: Item) -> Made | Exception:
        try:
            return self._work([item])[0]
        except Exception as problem:
            return problem

    def _is_finite(self, made: Any) -> bool:
        return all(bool(torch.isfinite(tensor).all()) for tensor in self._bits(made))

    def _is_same(self, made: Made, alone: Any) -> bool:
        return all(torch.equal(one, other) for one, other in zip(self._bits(made), self._bits(alone), strict=True))


def is_moderate(x: Tensor) -> bool:
    """Whether its numbers are finite, and far from those whose products are not."""
    return bool(x.abs().amax() < _MODERATE)


def by_chance(like: Tensor, chance: torch.Generator) -> Tensor:
    """A normal draw of the shape and strides of `like`: what it says of rounding is said of `like`."""
    num = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
    return like.new_empty(num).normal_(generator=chance).as_strided(like.shape, like.stride())
