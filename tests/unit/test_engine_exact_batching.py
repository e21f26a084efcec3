"""The check for exact batching compares numbers, and ignores those that are not finite."""

from __future__ import annotations

import pytest
import torch

from onbrand.engine.cpu.exact_batching import ExactBatcher


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("together_only", [False, True])
def test_what_is_not_finite_is_no_verdict(bad: float, together_only: bool) -> None:
    sizes: list[int] = []

    def work(items: list[float]) -> list[torch.Tensor]:
        sizes.append(len(items))
        spoil = together_only and len(items) > 1 and bad in items
        return [torch.tensor([bad if spoil else item]) for item in items]

    at_once: ExactBatcher[float, torch.Tensor] = ExactBatcher(work, lambda made: [made])  # type: ignore[arg-type]
    at_once([1.0, bad], "kind")
    assert sizes == [2, 1, 1]
    assert [float(made) for made in at_once([1.0, 2.0], "kind")] == [1.0, 2.0]
    assert sizes == [2, 1, 1, 2, 1, 1]
    at_once([3.0, 4.0], "kind")
    assert sizes[6:] == [2]
