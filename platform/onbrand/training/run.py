"""One worker's part of a run: fetch data, resume, train, draw samples, save checkpoints, verify, publish."""

from __future__ import annotations

import tempfile
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch import Tensor

from onbrand.errors import Canceled, NotFound, OnbrandError
from onbrand.families.family import Family
from onbrand.families.loading import load_family
from onbrand.internal.client import SystemClient
from onbrand.internal.training import TrainingSpec
from onbrand.training import memorization, samples
from onbrand.training.data import dataset
from onbrand.training.data.cache import DiskCache, prune
from onbrand.training.data.dataset import CaptionVariants, Examples, JobPictures
from onbrand.training.data.encoding import encode
from onbrand.training.export import export, proof_picture
from onbrand.training.memory.estimate import Allowance, admit_together
from onbrand.training.memory.quantization import quantize
from onbrand.training.ray.collectives import Collectives, ProcessGroup
from onbrand.training.ray.heartbeat import Heartbeat
from onbrand.training.ray.preemption import PreemptionWatcher
from onbrand.training.recipes import Plan
from onbrand.training.step_results import StepFacts, must_share
from onbrand.training.trainer import Trainer

_LOSS_WINDOW = 20
_LAST_PERCENT = 99


class Run:
    """One worker's part of one run.

    Args:
        folder: the base's.
        cache: folder of cached latents and embeddings on this node.
        heartbeat: None except on rank 0, the only worker that reports to the platform.
        allowance: limit on this worker's device memory.
    """

    def __init__(
        self,
        client: SystemClient,
        spec: TrainingSpec,
        plan: Plan,
        folder: Path,
        cache: Path,
        num_workers: int,
        heartbeat: Heartbeat | None,
        allowance: Allowance = Allowance(),
    ) -> None:
        must_share(plan, num_workers)
        self.num_workers = num_workers
        self.client, self.spec, self.plan, self.folder, self.heartbeat = client, spec, plan, folder, heartbeat
        self.allowance = allowance
        self.prompts = samples.sample_prompts(plan.sample_prompts, [asset.caption for asset in spec.assets])
        self.trainer = self._trainer(cache, num_workers)
        self.losses: deque[float] = deque(maxlen=_LOSS_WINDOW)
        self.likeness: dict[str, Any] | None = None
        self.preemption = PreemptionWatcher()
        self.began, self.began_at_step = time.monotonic(), 0

    def _trainer(self, cache: Path, num_workers: int) -> Trainer:
        device = ray.train.torch.get_device()
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        collectives = ProcessGroup(device) if num_workers > 1 else Collectives()
        self.admission = admit_together(self.plan, self.folder, dtype, self.allowance, device, collectives)
        savings = self.admission.savings
        if self.admission.steps_down:
            self._say("thrifty", steps_down=self.admission.steps_down)
        family = load_family(self.plan.family, self.folder, dtype=dtype)
        quantize(family.denoiser, savings.quantization)
        family.enable_offload(device, denoiser=not savings.sharded)
        prune(cache)
        disk = DiskCache(cache, self.spec.brand_id, family.revision, str(dtype))
        with family.text_encoders_on_device():
            examples, held_out = self._examples(family, disk, collectives)
        num_held_out = len(held_out.latents) if held_out else 0
        self._say("pictures", num_trained=len(self.spec.assets) - num_held_out, num_held_out=num_held_out)
        return Trainer(family, self.plan, examples, collectives, held_out, savings)

    def _examples(self, family: Family, cache: DiskCache, collectives: Collectives) -> tuple[Examples, Examples | None]:
        """Training examples, and held-out examples if there are enough pictures."""
        plan, assets = self.plan, self.spec.assets
        captions, names = [asset.caption for asset in assets], [asset.id for asset in assets]
        places = dataset.held_out(captions, names, plan.held_out, plan.seed)
        judging = [assets[place] for place in places]
        trained = [asset for asset in assets if asset not in judging]
        prior = dataset.prior_pictures(plan.trigger_word) if plan.prior_rows else []
        wording = CaptionVariants(plan.trigger_word, plan.shuffle_captions, plan.prior_weight > 0, plan.seed)
        read = partial(JobPictures, self.client)
        examples = encode(family, read(trained), plan.resolutions, prior, wording, cache, collectives)
        held = encode(family, read(judging), plan.resolution, cache=cache, collectives=collectives) if judging else None
        return examples, held

    def train(self) -> None:
        """Do the remaining steps. Raises Canceled (or NotFound, if the job is gone) when told to stop."""
        self._resume()
        self._show_base()
        self.began, self.began_at_step = time.monotonic(), self.trainer.step
        while not self.trainer.done:
            facts = self.trainer.train_step(stop=self._should_end(), check_preemption=self.preemption.due)
            if facts.stopped:
                if self._should_publish():
                    self._say("stopped", step=self.trainer.step, best_step=self.trainer.published_step)
                    return
                raise self._why_stopped()
            self._sample_if_due()
            self._report_step(facts)
            leaving = facts.check_preemption and self.preemption.heard()
            if leaving or self._is_due(self.plan.checkpoint_every):
                self._checkpoint()
            if leaving:
                self._say("leaving", step=self.trainer.step)
        if self.trainer.step < self.plan.steps:
            self._say("ended_early", step=self.trainer.step, best_step=self.trainer.published_step)
        else:
            self._say("trained", steps=self.trainer.step)

    def _should_end(self) -> bool:
        """True if the owner stops the job or the job is gone. An early finish is ignored before the first step."""
        line = self.heartbeat
        return line is not None and (line.stop or (line.finish_requested and self.trainer.step > 0))

    def _should_publish(self) -> bool:
        """After a stop: whether the owner asked to finish early with a result, rather than to cancel.

        Only rank 0 knows, because it alone has a heartbeat. All ranks call this after the same step and get the same
        answer, because with a sharded base rank 0 needs the others to make the result.
        """
        own = self.heartbeat is not None and not self.heartbeat.stop
        return bool(self.trainer.collectives.gather(torch.tensor([[float(own)]])).any())

    def _why_stopped(self) -> OnbrandError:
        if self.heartbeat is not None and self.heartbeat.gone:
            return NotFound("the job is not there any more, or has ended")
        return Canceled("the job was canceled")

    def _resume(self) -> None:
        if self.spec.start is not None:
            self.trainer.begin_with(self.client.read_start())
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                goes_on = self.trainer.resume(Path(folder))
            is_retry = self.spec.run != self.spec.job_id
            if is_retry and not goes_on:
                self._say("retried_anew")
        if self.trainer.step:
            self._say("resumed", step=self.trainer.step)
        self._say("began", num_workers=self.num_workers, steps=self.plan.steps, batch_size=self.plan.batch_size)

    def _show_base(self) -> None:
        """Upload samples of the base without the adapter, unless the run was resumed."""
        if not self.trainer.step:
            self._add_samples(samples.draw_base(self.trainer, self.prompts), "base")

    def _add_samples(self, pictures: Tensor, drawn_by: str = "adapter") -> None:
        if self.heartbeat is not None:
            for number, picture in enumerate(pictures):
                self.client.add_sample(self.trainer.step, number, samples.png(picture), drawn_by=drawn_by)

    def _say(self, code: str, **facts: float | str) -> None:
        if self.heartbeat is not None:
            self.heartbeat.say(code, **facts)

    def _is_due(self, every: int) -> bool:
        return self.trainer.step % every == 0 or self.trainer.done

    def _sample_if_due(self) -> None:
        if not self._is_due(self.plan.sample_every):
            return
        pictures = samples.draw_samples(self.trainer, self.prompts)
        self._add_samples(pictures)
        if self.heartbeat is not None:
            self.likeness = self._likeness(list(pictures * 2 - 1))

    def _likeness(self, pictures: list[Tensor]) -> dict[str, Any] | None:
        """The nearest training picture of each sample, nearest first, and a warning if the first sample is a copy."""
        found = memorization.nearest_of_each(pictures, self.trainer.examples.thumbs_P3SS)
        if not found:
            return None
        names = list(dict.fromkeys(self.trainer.examples.names))
        each = [
            {"sample": number, "nearest_asset": names[likeness.row], "distance": round(likeness.distance, 4)}
            for number, likeness in found.items()
        ]
        facts = {"step": self.trainer.step, **each[0], "samples": each}
        number, likeness = next(iter(found.items()))
        nearest = names[likeness.row]
        if likeness.is_copy:
            self._say("copied", step=self.trainer.step, index=number, asset_id=nearest)
            facts["warning"] = (
                f"sample {number} is nearly a copy of the picture {nearest}: the adapter learns it by heart. "
                "Give it more and more different pictures, fewer steps or a lower rank"
            )
        return facts

    def _checkpoint(self) -> None:
        """Save a checkpoint. `report` is a barrier that waits for the controller, so it is never called per step."""
        metrics = {"step": self.trainer.step}
        if self.heartbeat is None:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory(prefix="onbrand-checkpoint-") as folder:
            self.trainer.save(Path(folder))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
        self._say("kept", step=self.trainer.step)

    def _report_step(self, facts: StepFacts) -> None:
        self.losses.append(facts.loss)
        if facts.validation_loss is not None:
            is_best = self.trainer.published_step == facts.step
            self._say("judged_best" if is_best else "judged", step=facts.step, loss=round(facts.validation_loss, 6))
        if self.heartbeat is not None:
            self.heartbeat.tell(min(_LAST_PERCENT, 100 * facts.step // self.plan.steps), self.metrics(facts))

    def _mean_loss(self) -> float:
        return round(sum(self.losses) / len(self.losses), 6)

    def metrics(self, facts: StepFacts) -> dict[str, Any]:
        """Metrics for the monitor; `loss` is the mean of the last 20 steps over the brand's rows."""
        per_step = (time.monotonic() - self.began) / max(1, facts.step - self.began_at_step)
        known = {
            "step": facts.step,
            "steps": self.plan.steps,
            "loss": self._mean_loss(),
            "prior_loss": None if facts.prior_loss is None else round(facts.prior_loss, 6),
            "learning_rate": facts.learning_rate,
            "gradient_norm": round(facts.gradient_norm, 6),
            "samples_per_s": round(self.plan.batch_size / per_step, 3),
            "eta_seconds": round(per_step * (self.plan.steps - facts.step), 1),
            "resumed_at_step": self.began_at_step or None,
            "memory": self.admission.facts(),
            "kept_loss": None if facts.kept_loss is None else round(facts.kept_loss, 6),
            **self._verdict(),
        }
        return {name: value for name, value in known.items() if value is not None}

    def _verdict(self) -> dict[str, Any]:
        """Metrics of the held-out pictures and of the samples."""
        validations = self.trainer.validations
        told: dict[str, Any] = {"memorisation": self.likeness}
        if validations.best is not None:
            step, loss = validations.best
            told |= {"best_step": step, "best_validation_loss": round(loss, 6)}
            told |= {
                "validation_loss": round(validations.history[-1][1], 6),
                "validated_at_step": validations.history[-1][0],
            }
        return told

    def verify_export(self) -> bytes | None:
        """The adapter's file at the best step, verified against plain diffusers; None on ranks other than 0."""
        prompt = self.prompts[0] if self.prompts else self.plan.trigger_word
        if self.heartbeat is None:
            if self.trainer.savings.sharded:  # rank 0 needs this worker's shard of the base
                with self.trainer.published():
                    proof_picture(self.trainer.family, self.plan, prompt)
            return None
        title = f"{self.spec.brand_id} {self.plan.family} LoRA"
        with self.trainer.published():
            state, how = self.trainer.adapter(), self.trainer.savings.quantization
            made = export(self.trainer.family, self.folder, self.plan, state, prompt, title, how)
        self._say("proved", step=self.trainer.published_step, difference=made.difference)
        return made.data

    def publish(self, data: bytes) -> None:
        """Register the file as the brand's next version, which completes the job. Raises Canceled or NotFound."""
        if self.heartbeat is not None and self.heartbeat.stop:
            raise self._why_stopped()
        plan = self.plan
        metrics: dict[str, Any] = {"steps": self.trainer.step, "published_step": self.trainer.published_step}
        metrics |= {"loss": self._mean_loss()} if self.losses else {}
        metrics |= {name: value for name, value in self._verdict().items() if value is not None}
        facts = {
            "rank": plan.rank,
            "trigger_word": plan.trigger_word,
            "base_revision": self.trainer.family.revision,
            "metrics": metrics,
        }
        self.client.publish(data, facts)
