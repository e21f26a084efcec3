"""The training loop: one step at a time, the same whatever dies in between and however many workers share it.

Every random draw (order, captions dropped, timesteps, noise) is a function of (seed, step), so no random state is kept.
A step's rows are cut into shards; gradients are gathered and added in the order of the shards on every worker.
Shapes: B rows of a step, S shards, R = B / S rows of a shard, K numbers of a shard's packet.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import safetensors.torch
import torch
from torch import Tensor, nn

from onbrand.errors import TrainingFailed
from onbrand.families import lora
from onbrand.families.family import Family
from onbrand.training.dataset import Examples
from onbrand.training.recipes import Plan

_TENSORS, _FACTS = "state.safetensors", "state.json"


class Exchange(Protocol):
    """How workers share their shards' gradients."""

    rank: int
    num_workers: int

    def gather(self, own_SK: Tensor) -> Tensor:
        """All workers' packets, in the order of ranks."""
        ...


class Alone:
    """One worker: there is nothing to exchange."""

    rank, num_workers = 0, 1

    def gather(self, own_SK: Tensor) -> Tensor:
        return own_SK


class ProcessGroup:
    """The workers of torch's default process group (gloo on CPUs, NCCL on GPUs)."""

    def __init__(self) -> None:
        self.rank, self.num_workers = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def gather(self, own_SK: Tensor) -> Tensor:
        parts = [torch.empty_like(own_SK) for _ in range(self.num_workers)]
        torch.distributed.all_gather(parts, own_SK.contiguous())
        return torch.cat(parts)


@dataclass(frozen=True)
class Batch:
    """The rows of one step, cut into shards: rows [S, R] of the examples, their text's rows, uniform draws, noise."""

    rows_SR: Tensor
    text_SR: Tensor
    u_SR: Tensor
    noise_SRCHW: Tensor


@dataclass(frozen=True)
class StepFacts:
    """What one step did.

    Args:
        step: steps done, this one included.
        loss: mean over the brand's rows.
        prior_loss: mean over the other rows; None when there are none.
        stop: some worker was asked to stop.
    """

    step: int
    loss: float
    prior_loss: float | None
    learning_rate: float
    gradient_norm: float
    stop: bool


def generator_for(seed: int, step: int, purpose: str) -> torch.Generator:
    """A CPU generator that is a function of its arguments, and of nothing else."""
    digest = hashlib.sha256(f"{seed}/{step}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def own_rows(seed: int, step: int, batch_size: int, num_own: int) -> Tensor:
    """[batch_size] rows of the brand's pictures: each once before any comes again, in a new order every time."""
    places = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs = {
        epoch: torch.randperm(num_own, generator=generator_for(seed, epoch, "order"))
        for epoch in torch.unique(places // num_own).tolist()
    }
    return torch.stack([epochs[int(place) // num_own][int(place) % num_own] for place in places])


def stratified(num_rows: int, generator: torch.Generator) -> Tensor:
    """[num_rows] uniform draws, one from each of `num_rows` equal parts of 0..1, in random order."""
    parts = torch.randperm(num_rows, generator=generator)
    return (parts + torch.rand(num_rows, generator=generator)) / num_rows


def draw_batch(plan: Plan, examples: Examples, step: int) -> Batch:
    """The rows of `step`: each shard has its share of the brand's rows first, then of the others."""
    num_own, num_prior, shards = plan.batch_size, plan.prior_rows, plan.num_shards
    random = generator_for(plan.seed, step, "batch")
    own = own_rows(plan.seed, step, num_own, examples.num_own)
    prior = examples.num_own + torch.randint(max(1, examples.num_prior), (num_prior,), generator=random)
    u = torch.cat([stratified(num_own, random), stratified(num_prior, random)])
    dropped = torch.rand(plan.num_rows, generator=random) < plan.caption_dropout
    noise = torch.randn(plan.num_rows, *examples.latents_NCHW.shape[1:], generator=random)
    rows = torch.cat([own, prior])
    text = torch.where(dropped, torch.tensor(examples.no_caption), rows)

    def cut(values: Tensor) -> Tensor:
        mine, others = values[:num_own], values[num_own:]
        halves = (mine.unflatten(0, (shards, -1)), others.unflatten(0, (shards, num_prior // shards)))
        return torch.cat(halves, dim=1)

    return Batch(cut(rows), cut(text), cut(u), cut(noise))


class Trainer:
    """The adapter being trained: its weights, their average, the optimizer, and the number of steps done."""

    def __init__(self, family: Family, plan: Plan, examples: Examples, exchange: Exchange | None = None) -> None:
        self.family, self.plan, self.examples = family, plan, examples
        self.exchange: Exchange = exchange or Alone()
        self.step = 0
        lora.attach(family.denoiser, plan.rank, family.spec.targets[plan.targets], plan.seed)
        named = [(name, p) for name, p in family.denoiser.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in named]
        self.weights: list[nn.Parameter] = [parameter for _, parameter in named]
        self.average = [weight.detach().clone() for weight in self.weights]
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=plan.learning_rate, betas=plan.betas, weight_decay=plan.weight_decay
        )

    @property
    def done(self) -> bool:
        return self.step >= self.plan.steps

    def train_step(self, stop: bool = False) -> StepFacts:
        """Do one step, unless a worker wants to stop.

        Args:
            stop: this worker was asked to stop; all workers learn it in the same step, which then changes nothing.

        Raises:
            TrainingFailed: the loss or a gradient is not finite; the message names the step and the pictures.
        """
        batch = draw_batch(self.plan, self.examples, self.step)
        own = [self._packet(batch, shard, stop) for shard in self._own_shards()]
        packets_SK = self.exchange.gather(torch.stack(own))
        size = self._num_gradients
        gradient, losses_SR, stops = packets_SK[:, :size], packets_SK[:, size:-1], packets_SK[:, -1]
        self._must_be_finite(losses_SR, gradient, batch)
        if stops.any():
            return self._facts(losses_SR, 0.0, stop=True)
        norm = self._update(_sum_in_order(gradient))
        self.step += 1
        return self._facts(losses_SR, norm, stop=False)

    @property
    def _num_gradients(self) -> int:
        return sum(weight.numel() for weight in self.weights)

    def _own_shards(self) -> range:
        share = self.plan.num_shards // self.exchange.num_workers
        return range(self.exchange.rank * share, (self.exchange.rank + 1) * share)

    def _packet(self, batch: Batch, shard: int, stop: bool) -> Tensor:
        """[K]: a shard's share of the gradient, the loss of each of its rows, and whether to stop."""
        device = self.family.device
        latents = self.examples.latents_NCHW[batch.rows_SR[shard]].to(device)
        text = self.examples.text.rows(batch.text_SR[shard].to(device))
        t = self.family.training_times(batch.u_SR[shard]).to(device)
        losses_R = self.family.loss(latents, text, t, batch.noise_SRCHW[shard].to(device))
        gradients = torch.autograd.grad(losses_R.sum() / self.plan.num_rows, self.weights)
        flat = [gradient.flatten() for gradient in gradients]
        return torch.cat([*flat, losses_R.detach(), losses_R.new_tensor([float(stop)])])

    def _update(self, gradient_K: Tensor) -> float:
        """Clip, step, average. The same on every worker, bit for bit."""
        pieces = gradient_K.split([weight.numel() for weight in self.weights])
        for weight, piece in zip(self.weights, pieces, strict=True):
            weight.grad = piece.view_as(weight)
        norm = nn.utils.clip_grad_norm_(self.weights, self.plan.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate_at(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        decay = min(self.plan.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [weight.detach() for weight in self.weights], 1 - decay)
        return float(norm)

    def _must_be_finite(self, losses_SR: Tensor, gradient_SK: Tensor, batch: Batch) -> None:
        bad_SR = ~torch.isfinite(losses_SR).cpu()
        if not bad_SR.any() and torch.isfinite(gradient_SK).all():
            return
        rows = batch.rows_SR[bad_SR if bad_SR.any() else torch.ones_like(bad_SR)].tolist()
        names = sorted({self.examples.names[row] for row in rows if row < self.examples.num_own})
        pictures = ", ".join(names) or "none of the brand's own"
        raise TrainingFailed(
            f"the loss is not finite at step {self.step + 1}; pictures in the batch: {pictures}. "
            "Look at them, lower the learning rate, or retry; the last good checkpoint is kept",
            step=self.step + 1,
            images=names,
        )

    def _facts(self, losses_SR: Tensor, norm: float, stop: bool) -> StepFacts:
        own = self.plan.batch_size // self.plan.num_shards
        prior = float(losses_SR[:, own:].mean()) if self.plan.prior_rows else None
        rate = self.plan.learning_rate_at(max(0, self.step - 1))
        return StepFacts(self.step, float(losses_SR[:, :own].mean()), prior, rate, norm, stop)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The denoiser draws with the averaged weights inside; the trained ones are back afterwards, bit for bit."""
        trained = [weight.detach().clone() for weight in self.weights]
        self._put(self.average)
        try:
            yield
        finally:
            self._put(trained)

    def adapter(self) -> dict[str, Tensor]:
        """The averaged weights by PEFT key: what is published."""
        with self.averaged():
            return lora.extract(self.family.denoiser)

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for weight, value in zip(self.weights, values, strict=True):
            weight.copy_(value)

    # checkpoints: safetensors and JSON, never a pickle

    def save(self, folder: Path) -> None:
        """Write all that a later `resume` needs: weights, average, both moments, step, and what they belong to."""
        moments = [self.optimizer.state.get(weight, {}) for weight in self.weights]
        tensors: dict[str, Tensor] = {}
        for name, weight, average, moment in zip(self.names, self.weights, self.average, moments, strict=True):
            tensors |= {f"weight/{name}": weight.detach(), f"average/{name}": average}
            tensors |= {f"{kind}/{name}": moment[kind] for kind in ("exp_avg", "exp_avg_sq") if kind in moment}
        safetensors.torch.save_file(
            {name: value.cpu().contiguous() for name, value in tensors.items()}, folder / _TENSORS
        )
        (folder / _FACTS).write_text(json.dumps({"step": self.step, "identity": self.identity()}))

    def resume(self, folder: Path) -> bool:
        """Go on from a checkpoint; False, and nothing is changed, if it belongs to other settings, pictures or base."""
        facts = json.loads((folder / _FACTS).read_text())
        if facts["identity"] != self.identity():
            return False
        tensors = safetensors.torch.load_file(folder / _TENSORS, device=str(self.family.device))
        self.step = int(facts["step"])
        self._put([tensors[f"weight/{name}"] for name in self.names])
        self.average = [tensors[f"average/{name}"].clone() for name in self.names]
        for name, weight in zip(self.names, self.weights, strict=True):
            if f"exp_avg/{name}" in tensors:
                moments = {kind: tensors[f"{kind}/{name}"].clone() for kind in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[weight] = {"step": torch.tensor(float(self.step)), **moments}
        return True

    def identity(self) -> str:
        """A digest of everything that decides the weights: plan, pictures and captions, base."""
        parts = [self.plan.identity(), self.examples.digest, self.family.revision, str(self.family.dtype)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _sum_in_order(packets_SK: Tensor) -> Tensor:
    """The sum over shards, always in the same order, so that it has the same bits for any number of workers."""
    total = packets_SK[0].clone()
    for packet_K in packets_SK[1:]:
        total += packet_K
    return total


def must_share(plan: Plan, num_workers: int) -> None:
    """Raise TrainingFailed unless `num_workers` can share the plan's shards equally."""
    if math.gcd(plan.num_shards, num_workers) != num_workers:
        raise TrainingFailed(f"{num_workers} workers cannot share {plan.num_shards} shards; num_workers must divide it")
