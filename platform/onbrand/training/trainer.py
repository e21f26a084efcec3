"""The training loop. Its result is bit-identical after restarts and for any number of workers.

Every random draw is a function of (seed, step) (`data.sampling`), so no random state is kept. A step's rows are cut
into shards; every worker gathers all gradients and adds them in the order of the shards. The published weights are the
average (EMA) at the step with the best validation loss (`validation`), not at the last step.
Shapes: B rows of a step, S shards, R = B / S rows of a shard, K numbers of a shard's packet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from onbrand.errors import AdapterRefused, RanOutOfMemory, TrainingFailed
from onbrand.families import lora
from onbrand.families.family import Family
from onbrand.safetensors_header import must_be_plain_safetensors
from onbrand.training import optimizers
from onbrand.training.data.dataset import Examples
from onbrand.training.data.sampling import Batch, draw_batch
from onbrand.training.kernels.flux_attention import fuse_attention
from onbrand.training.kernels.flux_blocks import fuse_blocks
from onbrand.training.kernels.lora_layers import fuse, fuse_gelu
from onbrand.training.memory.savings import MemorySavings, is_out_of_memory, savings_levels
from onbrand.training.memory.sharding import share_out
from onbrand.training.ray.collectives import Collectives
from onbrand.training.recipes import Plan
from onbrand.training.step_results import StepFacts, _distance_to_base, _sum_in_order
from onbrand.training.validation import ValidationHistory, Validator

_TENSORS, _FACTS = "state.safetensors", "state.json"
_GO_ON, _CHECK_PREEMPTION, _STOP, _NO_MEMORY = 0.0, 0.5, 1.0, 2.0
"""Signals at the end of a worker's packet."""
_LEAST_NORM = 1e-6


class Trainer:
    """Training state of the adapter: weights, their average, the best average, the optimizer and the steps done.

    Args:
        held_out: pictures for validation only; None: no validation, and the last step counts as the best.
        savings: memory savings; None: as the plan asks.
    """

    def __init__(
        self,
        family: Family,
        plan: Plan,
        examples: Examples,
        collectives: Collectives | None = None,
        held_out: Examples | None = None,
        savings: MemorySavings | None = None,
    ) -> None:
        self.family, self.plan, self.examples = family, plan, examples
        self.collectives = collectives or Collectives()
        self.step = 0
        lora.attach(family.denoiser, plan.rank, family.spec.targets[plan.targets], plan.seed)
        fuse(family.denoiser)
        fuse_gelu(family.denoiser)
        fuse_attention(family.denoiser)
        fuse_blocks(family.denoiser)
        self.savings = savings or next(savings_levels(plan, large=False))
        if self.savings.gradient_checkpointing:
            family.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        if self.savings.sharded:
            share_out(family.denoiser, family.device)
        self.named = {name: p for name, p in family.denoiser.named_parameters() if p.requires_grad}
        self.weights: list[nn.Parameter] = list(self.named.values())
        self.average = [weight.detach().clone() for weight in self.weights]
        self.best: list[Tensor] | None = None
        self.validator = Validator(family, held_out, plan.seed) if held_out else None
        self.validations = ValidationHistory(plan.patience)
        self.optimizer = optimizers.make_optimizer(plan, self.weights)

    def begin_with(self, data: bytes) -> None:
        """Initialize with a published adapter's weights; the optimizer's moments and the schedule begin anew.

        Raises AdapterRefused if it holds values that are not finite, or has another base, rank or targets.
        """
        must_be_plain_safetensors(data)
        prefix = f"{self.family.spec.component}."
        state = {key.removeprefix(prefix): value for key, value in safetensors.torch.load(data).items()}
        if not all(torch.isfinite(value).all() for value in state.values()):
            raise AdapterRefused("the model to continue from holds values that are not finite")
        lora.restore(self.family.denoiser, state)
        self.average = [weight.detach().clone() for weight in self.weights]

    @property
    def done(self) -> bool:
        """True after the last step, or once validation shows no progress (`patience`)."""
        return self.step >= self.plan.steps or self.validations.exhausted

    def train_step(self, stop: bool = False, check_preemption: bool = False) -> StepFacts:
        """Do one step, unless a worker wants to stop.

        Args:
            stop: this worker was asked to stop. All workers learn it in this step, which then changes nothing.
            check_preemption: this worker wants to ask Ray about preemption. All workers learn that too.

        Raises:
            TrainingFailed: a loss or a gradient is not finite; the message names the step and the pictures.
            RanOutOfMemory: a worker ran out of memory; raised on all, before any weight changes.
        """
        batch = draw_batch(self.plan, self.examples, self.step)
        said = _STOP if stop else _CHECK_PREEMPTION if check_preemption else _GO_ON
        own = [self._packet(batch, shard, said) for shard in self._own_shards(self.collectives.rank)]
        self._keep_step(batch)
        packets_SK = self._gathered(own, batch, said)
        size = self._num_gradients
        gradient, losses_SL, told_S = packets_SK[:, :size], packets_SK[:, size:-1], packets_SK[:, -1]
        if (told_S == _NO_MEMORY).any():
            raise RanOutOfMemory(f"step {self.step + 1} ran out of memory", step=self.step + 1)
        self._must_be_finite(losses_SL, gradient, batch)
        if (told_S == _STOP).any():
            return self._facts(losses_SL, 0.0, stopped=True)
        norm = self._update(_sum_in_order(gradient))
        self.step += 1
        facts = self._facts(losses_SL, norm, stopped=False, validation_loss=self._validate_if_due())
        return replace(facts, check_preemption=bool((told_S == _CHECK_PREEMPTION).any()))

    @property
    def _num_gradients(self) -> int:
        return sum(weight.numel() for weight in self.weights)

    def _own_shards(self, rank: int) -> range:
        first = rank * self._share
        return range(first, min(first + self._share, self.plan.num_shards))

    @property
    def _share(self) -> int:
        """Shards per worker; the last workers may have fewer, or none."""
        return -(-self.plan.num_shards // self.collectives.num_workers)

    def _packet(self, batch: Batch, shard: int, said: float) -> Tensor:
        """[K]: a shard's share of the gradient, two losses per row, and a signal to all workers.

        The losses are the training loss and the distance to the frozen base (0 without `prior_weight`).
        """
        try:
            return self._computed(batch, shard, said)
        except (RuntimeError, MemoryError) as problem:
            if self.savings.sharded or not is_out_of_memory(problem):
                raise  # the other workers wait in a collective; only the end of the process group frees them
        return self._word(batch, _NO_MEMORY)

    def _word(self, batch: Batch, said: float) -> Tensor:
        """[K]: a packet with zero gradient, which only carries the signal `said`."""
        packet_K = torch.zeros(self._num_gradients + 2 * batch.rows_SR.shape[1] + 1, device=self.family.device)
        packet_K[-1] = said
        return packet_K

    def _keep_step(self, batch: Batch) -> None:
        """With a sharded base, add passes until this worker has done as many as the worker with the most."""
        if not self.savings.sharded:
            return
        passes = [
            sum(len(list(batch.parts(shard, self.savings.micro_rows))) for shard in self._own_shards(rank))
            for rank in range(self.collectives.num_workers)
        ]
        spare = next(batch.parts(0, self.savings.micro_rows))
        for _ in range(max(passes) - passes[self.collectives.rank]):
            torch.autograd.grad(sum(self._losses(batch, 0, spare)).sum(), self.weights)  # type: ignore[union-attr]

    def _gathered(self, own: list[Tensor], batch: Batch, said: float) -> Tensor:
        """[S, K]: all shards' packets in order. Padding by workers with fewer shards comes last and is dropped, except
        its signal."""
        spare = [self._word(batch, said)] * (self._share - len(own))
        packets = self.collectives.gather(torch.stack([*own, *spare]))
        packets[0, -1] = packets[:, -1].max()
        return packets[: self.plan.num_shards]

    def _computed(self, batch: Batch, shard: int, said: float) -> Tensor:
        total: list[Tensor] | None = None
        num_rows = batch.rows_SR.shape[1]
        losses_2R = torch.zeros(2, num_rows, device=self.family.device)
        for places in batch.parts(shard, self.savings.micro_rows):
            own, kept = self._losses(batch, shard, places)
            aim = own.sum() / self.plan.num_rows
            if self.plan.prior_weight:
                aim = aim + self.plan.prior_weight * kept.sum() / self.plan.batch_size
            gradients = torch.autograd.grad(aim, self.weights)
            total = list(gradients) if total is None else [a + b for a, b in zip(total, gradients, strict=True)]
            losses_2R[:, places] = torch.stack([own.detach(), kept.detach()])
        flat = [gradient.flatten() for gradient in total or ()]
        return torch.cat([*flat, losses_2R.flatten(), losses_2R.new_tensor([said])])

    def _losses(self, batch: Batch, shard: int, places: list[int]) -> tuple[Tensor, Tensor]:
        """Both losses of the rows at `places` of a shard; these rows have one shape."""
        device, plan = self.family.device, self.plan
        rows = batch.rows_SR[shard, places]
        latents = torch.stack([self.examples.latents[row] for row in rows.tolist()]).to(device)
        noise = torch.stack([batch.noise[shard][place] for place in places]).to(device)
        t = self.family.training_times(batch.u_SR[shard, places], plan.timestep_sampling).to(device)
        text = self.examples.conditioning(rows, batch.text_SR[shard, places], device)
        own = self.family.loss(latents, text, t, noise, min_snr_gamma=plan.min_snr_gamma)
        if not plan.prior_weight:
            return own, torch.zeros_like(own)
        plain = self.examples.conditioning(rows, batch.class_SR[shard, places], device)
        noisy, _ = self.family.noised(latents, t, noise)
        is_own = (rows < self.examples.num_own).to(device)
        return own, _distance_to_base(self.family, noisy.to(self.family.dtype), t, plain) * is_own

    def _update(self, gradient_K: Tensor) -> float:
        """Clip the gradient, step the optimizer, update the average. Bit-identical on every worker."""
        norm = torch.linalg.vector_norm(gradient_K)
        gradient_K *= (self.plan.clip_norm / (norm + _LEAST_NORM)).clamp(max=1.0)
        pieces = gradient_K.split([weight.numel() for weight in self.weights])
        for weight, piece in zip(self.weights, pieces, strict=True):
            weight.grad = piece.view_as(weight)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate_at(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        decay = min(self.plan.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [weight.detach() for weight in self.weights], 1 - decay)
        return float(norm)

    def _validate_if_due(self) -> float | None:
        """Validate with the averaged weights every `validate_every` steps and after the last step."""
        if self.validator is None or (self.step % self.plan.validate_every and self.step < self.plan.steps):
            return None
        with self.averaged():
            loss = self.validator.loss(
                self.collectives.rank, self.collectives.num_workers, self.collectives.gather, self.savings.sharded
            )
        if self.validations.add(self.step, loss):
            self.best = [average.clone() for average in self.average]
        return loss

    def _must_be_finite(self, losses_SL: Tensor, gradient_SK: Tensor, batch: Batch) -> None:
        bad_SR = ~torch.isfinite(losses_SL.unflatten(1, (2, -1))).all(1).cpu()
        if not bad_SR.any() and all(torch.isfinite(bound) for bound in gradient_SK.aminmax()):
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

    def _facts(self, losses_SL: Tensor, norm: float, stopped: bool, validation_loss: float | None = None) -> StepFacts:
        own = self.plan.batch_size // self.plan.num_shards
        losses_SR, kept_SR = losses_SL.unflatten(1, (2, -1)).unbind(1)
        return StepFacts(
            self.step,
            float(losses_SR[:, :own].mean()),
            float(losses_SR[:, own:].mean()) if self.plan.prior_rows else None,
            self.plan.learning_rate_at(max(0, self.step - 1)),
            norm,
            stopped,
            float(kept_SR[:, :own].mean()) if self.plan.prior_weight else None,
            validation_loss,
        )

    def averaged(self) -> AbstractContextManager[None]:
        """Use the averaged weights inside the block; then restore the trained weights bit for bit."""
        return self._having(self.average)

    def published(self) -> AbstractContextManager[None]:
        """Like `averaged`, with the weights to publish: the best step's average; without validation, the last one's."""
        return self._having(self.average if self.best is None else self.best)

    @property
    def published_step(self) -> int:
        """Step of the average that is published."""
        return self.step if self.validations.best is None else self.validations.best[0]

    def adapter(self) -> dict[str, Tensor]:
        """The weights to publish, by PEFT key."""
        with self.published():
            return lora.extract(self.family.denoiser)

    @contextmanager
    def _having(self, values: Sequence[Tensor]) -> Iterator[None]:
        trained = [weight.detach().clone() for weight in self.weights]
        self._put(values)
        try:
            yield
        finally:
            self._put(trained)

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for weight, value in zip(self.weights, values, strict=True):
            weight.copy_(value)

    # checkpoints: safetensors and JSON, never a pickle

    def save(self, folder: Path) -> None:
        """Write a checkpoint for `resume`: weights, averages, optimizer, validations, step and `identity`."""
        tensors = self._labelled("weight", self.weights) | self._labelled("average", self.average)
        tensors |= self._labelled("best", self.best or ())
        kept = optimizers.saved_tensors(self.optimizer, self.named)
        tensors |= {f"optimizer/{name}": value for name, value in kept.items()}
        safetensors.torch.save_file(
            {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, folder / _TENSORS
        )
        facts = {
            "step": self.step,
            "identity": self.identity(),
            "validations": self.validations.history,
            "optimizer": optimizers.saved_numbers(self.optimizer),
        }
        (folder / _FACTS).write_text(json.dumps(facts))

    def resume(self, folder: Path) -> bool:
        """Load a checkpoint. Returns False, without changes, if its settings, pictures or base are others."""
        facts = json.loads((folder / _FACTS).read_text())
        if facts["identity"] != self.identity():
            return False
        tensors = safetensors.torch.load_file(folder / _TENSORS, device=str(self.family.device))
        self.step = int(facts["step"])
        self.validations.history = [(int(step), float(loss)) for step, loss in facts["validations"]]
        self._put(self._taken("weight", tensors))
        self.average = self._taken("average", tensors)
        self.best = self._taken("best", tensors) if self.validations.history else None
        kept = {name.removeprefix("optimizer/"): t for name, t in tensors.items() if name.startswith("optimizer/")}
        optimizers.restore(self.optimizer, self.named, kept, facts["optimizer"])
        return True

    def _labelled(self, kind: str, values: Sequence[Tensor]) -> dict[str, Tensor]:
        return {f"{kind}/{name}": value for name, value in zip(self.named, values, strict=False)}

    def _taken(self, kind: str, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        return [tensors[f"{kind}/{name}"].clone() for name in self.named]

    def identity(self) -> str:
        """A digest of everything that determines the result: plan, pictures, captions and base."""
        judged = self.validator.held_out.digest if self.validator else None
        parts = [self.plan.identity(), self.examples.digest, judged, self.family.revision, str(self.family.dtype)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
