"""Batch items only where the batched result was verified bit-identical.

On a CPU a small text or image leaves most of the processor idle: eight in one batch take half the time of eight in
turn. But a brand's result must not depend on other requests of the same step, and no library promises that a batch of
eight rounds as single items do. So the first items of every number and kind are computed both ways. Later items of that
number and kind are batched only if all results were equal, bit for bit. Rounding depends on shapes, not on data.
Non-finite values prove nothing, so such results are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

_MODERATE = 1e6
Item = TypeVar("Item")
Made = TypeVar("Made")


class ExactBatcher(Generic[Item, Made]):
    """Computes items in one batch or one by one. Thread-safe.

    Args:
        work: computes the results of items, in order.
        bits: the tensors of a result, in a stable order.
    """

    def __init__(self, work: Callable[[Sequence[Item]], list[Made]], bits: Callable[[Made], Iterable[Tensor]]) -> None:
        self._work, self._bits = work, bits
        self._is_exact: dict[tuple[int, Hashable], bool] = {}

    def __call__(self, items: Sequence[Item], kind: Hashable) -> list[Made | Exception]:
        """The result of each item, or its exception. Items of a failed batch are computed alone; only the faulty one
        fails.

        Args:
            kind: of all items; items of one kind have tensors of the same shapes.
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
        """The same, without trying a batch."""
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
    """Whether all values are finite and below 1e6, far from values whose products overflow."""
    return bool(x.abs().amax() < _MODERATE)


def random_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """A normal random tensor of the shape and strides of `like`, so that it rounds as `like` does."""
    num = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
    return like.new_empty(num).normal_(generator=generator).as_strided(like.shape, like.stride())
