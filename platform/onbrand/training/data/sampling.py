"""Random draws of a step: pictures, captions, timesteps and noise. All are functions of (seed, step).

Shapes: B rows of a step, S shards, R = B / S rows of a shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onbrand.training.data.dataset import Examples
from onbrand.training.recipes import Plan


@dataclass(frozen=True)
class Batch:
    """The rows of one step, cut into shards.

    Args:
        rows_SR: rows of the examples.
        text_SR: their rows in the examples' text.
        class_SR: the same without the trigger word; the row for no caption if the examples have no such text.
        u_SR: uniform draws, which are mapped to timesteps.
        noise: [S][R] tensors [C, H, W]; a step's rows may be of several shapes.
    """

    rows_SR: Tensor
    text_SR: Tensor
    class_SR: Tensor
    u_SR: Tensor
    noise: tuple[tuple[Tensor, ...], ...]

    def parts(self, shard: int, most: int | None = None) -> Iterator[list[int]]:
        """Places of a shard's rows, grouped for one forward pass each: of one shape, and at most `most`."""
        shapes: dict[torch.Size, list[int]] = {}
        for place, noise_CHW in enumerate(self.noise[shard]):
            shapes.setdefault(noise_CHW.shape, []).append(place)
        for places in shapes.values():
            size = most or len(places)
            yield from (places[start : start + size] for start in range(0, len(places), size))


def generator_for(seed: int, step: int, purpose: str) -> torch.Generator:
    """A CPU generator whose seed depends on the arguments only."""
    digest = hashlib.sha256(f"{seed}/{step}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def own_rows(seed: int, step: int, batch_size: int, shapes: Sequence[torch.Size | int]) -> Tensor:
    """[batch_size] rows of the brand's pictures. Each epoch shows every picture once, in a new order.

    Pictures of one shape are batched together where possible, so that few steps need more than one forward pass. The
    shape does not change how often a picture is shown.
    """
    num_own = len(shapes)
    places = range(step * batch_size, (step + 1) * batch_size)
    orders = {place // num_own: [] for place in places}  # type: dict[int, list[int]]
    for epoch in orders:
        orders[epoch] = _order(seed, epoch, batch_size, shapes)
    return torch.tensor([orders[place // num_own][place % num_own] for place in places])


def _order(seed: int, epoch: int, batch_size: int, shapes: Sequence[torch.Size | int]) -> list[int]:
    """One epoch's order: shuffled, sorted by shape in a shuffled order of shapes, whole batches shuffled."""
    random = generator_for(seed, epoch, "order")
    order: list[int] = torch.randperm(len(shapes), generator=random).tolist()
    kinds = sorted(set(shapes), key=str)
    if len(kinds) == 1:
        return order
    rank = dict(zip(kinds, torch.randperm(len(kinds), generator=random).tolist(), strict=True))
    order.sort(key=lambda row: rank[shapes[row]])
    first = min(-epoch * len(shapes) % batch_size, len(order))  # completes the last batch of the epoch before
    cuts = [order[start : start + batch_size] for start in range(first, len(order), batch_size)]
    rest = cuts.pop() if cuts and len(cuts[-1]) < batch_size else []
    shuffled = [cuts[place] for place in torch.randperm(len(cuts), generator=random).tolist()]
    return order[:first] + [row for cut in shuffled for row in cut] + rest


def stratified(num_rows: int, generator: torch.Generator) -> Tensor:
    """[num_rows] uniform draws, one from each of `num_rows` equal parts of 0..1, in random order."""
    parts = torch.randperm(num_rows, generator=generator)
    return (parts + torch.rand(num_rows, generator=generator)) / num_rows


def draw_batch(plan: Plan, examples: Examples, step: int) -> Batch:
    """The rows of `step`. Each shard holds its share of the brand's rows first, then of the prior rows."""
    num_own, num_prior, shards = plan.batch_size, plan.prior_rows, plan.num_shards
    random = generator_for(plan.seed, step, "batch")
    own = own_rows(plan.seed, step, num_own, examples.own_shapes)
    prior = examples.num_own + torch.randint(max(1, examples.num_prior), (num_prior,), generator=random)
    u = torch.cat([stratified(num_own, random), stratified(num_prior, random)])
    dropped = torch.rand(plan.num_rows, generator=random) < plan.caption_dropout
    rows = torch.cat([own, prior])
    noise = [torch.randn(examples.latents[row].shape, generator=random) for row in rows.tolist()]
    wording = torch.randint(examples.text_rows_NV.shape[1], (plan.num_rows,), generator=random)
    text = torch.where(dropped, examples.no_caption, examples.text_rows_NV[rows, wording])

    def cut(values: Tensor) -> Tensor:
        mine, others = values[:num_own], values[num_own:]
        halves = (mine.unflatten(0, (shards, -1)), others.unflatten(0, (shards, num_prior // shards)))
        return torch.cat(halves, dim=1)

    places_SR = cut(torch.arange(plan.num_rows)).tolist()
    return Batch(
        cut(rows),
        cut(text),
        cut(examples.class_rows_N[rows]),
        cut(u),
        tuple(tuple(noise[place] for place in places_R) for places_R in places_SR),
    )
