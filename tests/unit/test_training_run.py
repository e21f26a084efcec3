"""A whole run of one worker without a cluster: what it fetches, reports, leaves out of training, and publishes."""

from __future__ import annotations

import io
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray.train
import ray.train.torch
import torch
from PIL import Image
from ray.train import PreemptionInfo

from onbrand.errors import AdapterRefused, Canceled, InvalidInput
from onbrand.families.family import draw
from onbrand.internal.log_lines import Line
from onbrand.internal.training import StartModel, TrainingAsset, TrainingSpec
from onbrand.safetensors_header import must_be_plain_safetensors
from onbrand.training import samples
from onbrand.training.data import dataset, encoding
from onbrand.training.ray.preemption import PreemptionWatcher
from onbrand.training.recipes import Plan
from onbrand.training.run import Run
from onbrand.training.step_results import StepFacts
from tests.unit.training_bases import base_of, drawn, fresh_family, small_plan

NUM_PICTURES = 8


class Platform:
    """The internal routes and the heartbeat that a run calls."""

    stop, gone, finish_requested = False, False, False

    def __init__(self) -> None:
        self.read: list[str] = []
        self.samples: list[tuple[int, int]] = []
        self.base_samples: list[bytes] = []
        self.lines: list[Line] = []
        self.told: list[dict[str, Any]] = []
        self.published: list[tuple[bytes, dict[str, Any]]] = []

    def read_asset(self, asset_id: str) -> bytes:
        self.read.append(asset_id)
        return _png(drawn(int(asset_id.removeprefix("id-"))).image)

    def add_sample(self, step: int, number: int, data: bytes, drawn_by: str = "adapter") -> None:
        if drawn_by == "base":
            assert (step, number) == (0, len(self.base_samples))
            self.base_samples.append(data)
        else:
            self.samples.append((step, number))

    def say(self, code: str, **facts: Any) -> None:
        known = {"asset_id": str(uuid.uuid4())} if "asset_id" in facts else {}
        self.lines.append(Line(code=code, facts=facts | known))

    def tell(self, progress: int, metrics: dict[str, Any]) -> None:
        self.told.append(metrics)

    def read_start(self) -> bytes:
        return self.published[-1][0]

    def publish(self, data: bytes, facts: dict[str, Any]) -> None:
        self.published.append((data, facts))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: None)
    monkeypatch.setattr(ray.train, "report", lambda *_, **__: None)
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)


def run_of(platform: Platform, cache: Path, start: StartModel | None = None, **options: Any) -> Run:
    assets = tuple(
        TrainingAsset(id=f"id-{number}", caption="photo of acme logo", width=80, height=72)
        for number in range(NUM_PICTURES)
    )
    spec = TrainingSpec(
        brand_id="acme",
        job_id="j",
        user_id="u",
        name="n",
        model_type="sd15",
        training_config={},
        assets=assets,
        start=start,
    )
    plan: Plan = small_plan(prior_rows=0, steps=3, validate_every=1, sample_every=3, **options)
    plan = replace(plan, start_sha256=start.sha256 if start else None)
    torch.set_num_threads(1)
    return Run(platform, spec, plan, base_of("sd15"), cache, 1, platform)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run_is_judged_by_a_picture_that_it_never_trains_on_and_publishes_the_best_step(tmp_path):
    platform = Platform()
    run = run_of(platform, tmp_path)
    assert sorted(platform.read) == sorted(f"id-{number}" for number in range(NUM_PICTURES))
    assert run.trainer.examples.num_own == NUM_PICTURES - 1
    run.train()
    last = platform.told[-1]
    losses = [told["validation_loss"] for told in platform.told]
    assert last["best_validation_loss"] == min(losses)
    assert last["best_step"] == losses.index(min(losses)) + 1
    run.publish(run.verify_export())
    [(data, facts)] = platform.published
    assert facts["metrics"]["published_step"] == last["best_step"]
    tensors = must_be_plain_safetensors(data).tensors
    assert set(tensors) == {f"unet.{key}" for key in run.trainer.adapter()}
    assert "logo" not in str(platform.told) + str(facts)


@pytest.mark.slow
def test_a_run_says_line_by_line_what_it_does(tmp_path):
    platform = Platform()
    run = run_of(platform, tmp_path)
    run.train()
    run.verify_export()
    said = [line.code for line in platform.lines]
    assert said[:2] == ["pictures", "began"]
    assert said[-3:] == ["kept", "trained", "proved"]
    judged = [line for line in platform.lines if line.code.startswith("judged")]
    assert [line.facts["step"] for line in judged] == [1, 2, 3]
    best = [line.facts["step"] for line in judged if line.code == "judged_best"]
    assert best[-1] == run.trainer.published_step


@pytest.mark.slow
def test_the_base_draws_each_prompt_once_before_the_adapter_changes_anything(tmp_path, monkeypatch):
    platform = Platform()
    run = run_of(platform, tmp_path, learning_rate=0.05)
    run.train()
    side = run.plan.resolution
    [alone] = draw(fresh_family("sd15"), run.prompts, [run.plan.seed], height=side, width=side)
    assert platform.base_samples == [samples.png(alone)]
    [again] = samples.draw_base(run.trainer, run.prompts)
    [adapted] = samples.draw_samples(run.trainer, run.prompts)
    assert torch.equal(again, alone)
    assert (adapted - alone).abs().max() > 0.05
    monkeypatch.setattr(run, "_resume", lambda: None)
    run.trainer.step = 2
    run.train()
    assert len(platform.base_samples) == 1


@pytest.mark.slow
def test_a_run_that_is_stopped_publishes_the_best_step_that_it_has(tmp_path):
    platform = Platform()
    run = run_of(platform, tmp_path)
    platform.finish_requested = True
    run.train()
    assert (run.trainer.step, run.trainer.done) == (1, False)
    run.publish(run.verify_export())
    [(_, facts)] = platform.published
    assert facts["metrics"]["published_step"] == facts["metrics"]["steps"] == 1


class BesideRankZero:
    """The collectives of rank 1 of 2, after rank 0 has sent its part."""

    rank, num_workers = 1, 2

    def __init__(self, rank_zero_publishes: bool) -> None:
        self._said = torch.tensor([[float(rank_zero_publishes)]])

    def gather(self, own_SK: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._said, own_SK])


@pytest.mark.slow
@pytest.mark.parametrize("publishes", [True, False])
def test_other_workers_end_as_rank_zero_does_when_a_run_is_stopped(tmp_path, monkeypatch, publishes):
    run = run_of(Platform(), tmp_path)
    run.heartbeat, run.trainer.collectives = None, BesideRankZero(publishes)
    stopped = StepFacts(1, 0.0, None, 0.0, 0.0, stopped=True)
    monkeypatch.setattr(run, "_show_base", lambda: None)
    monkeypatch.setattr(run.trainer, "train_step", lambda **_: stopped)
    if publishes:
        run.train()
    else:
        with pytest.raises(Canceled):
            run.train()


@pytest.mark.slow
def test_a_run_that_is_canceled_ends_without_a_result(tmp_path):
    platform = Platform()
    run = run_of(platform, tmp_path)
    platform.stop = platform.finish_requested = True
    with pytest.raises(Canceled):
        run.train()


@pytest.mark.slow
def test_a_run_continues_from_a_published_model_and_is_another_run_than_one_from_nothing(tmp_path):
    platform = Platform()
    first = run_of(platform, tmp_path)
    first.train()
    first.publish(first.verify_export())
    start = StartModel(name="sd15-lora-v1", sha256="0" * 64, rank=first.plan.rank, base_revision="any")
    later = Platform()
    later.published = platform.published
    second = run_of(later, tmp_path, start=start)
    second.trainer.begin_with(later.read_start())
    published = first.trainer.adapter()
    assert all(torch.equal(published[key], value) for key, value in second.trainer.adapter().items())
    assert first.trainer.identity() != second.trainer.identity()
    second.train()
    assert second.trainer.step == second.plan.steps


@pytest.mark.slow
@pytest.mark.parametrize("other", [{"rank": 3}, {"targets": "strong"}])
def test_a_model_of_another_rank_or_other_targets_is_refused(tmp_path, other):
    platform = Platform()
    first = run_of(platform, tmp_path)
    first.publish(first.verify_export())
    second = run_of(platform, tmp_path, **other)
    with pytest.raises(AdapterRefused, match="rank, targets or base differ"):
        second.trainer.begin_with(platform.read_start())


@pytest.mark.slow
def test_a_second_run_of_the_same_pictures_encodes_none(tmp_path, monkeypatch):
    run_of(Platform(), tmp_path)
    encoded: list[int] = []
    real = encoding._latents
    monkeypatch.setattr(
        encoding, "_latents", lambda family, images: encoded.append(len(images)) or real(family, images)
    )
    run_of(Platform(), tmp_path)
    assert encoded == []
    run_of(Platform(), tmp_path / "elsewhere")
    assert sum(encoded) == NUM_PICTURES


@pytest.mark.slow
def test_a_sample_that_copies_a_picture_is_told_with_the_pictures_id_and_the_remedy(tmp_path, monkeypatch):
    platform = Platform()
    run = run_of(platform, tmp_path)
    two = [dataset.fitted(drawn(number).image, 64) / 2 + 0.5 for number in (3, 100)]
    monkeypatch.setattr(samples, "draw_samples", lambda *_: torch.stack(two))
    run.train()
    told = platform.told[-1]["memorisation"]
    assert (told["nearest_asset"], told["sample"], told["step"]) == ("id-3", 0, 3)
    assert told["distance"] < 1
    assert "id-3" in told["warning"]
    assert [each["sample"] for each in told["samples"]] == [0, 1]
    assert platform.samples == [(3, 0), (3, 1)]


def test_pictures_that_are_too_small_are_refused_by_their_id(tmp_path, monkeypatch):
    monkeypatch.setattr(Platform, "read_asset", lambda self, asset_id: _png(drawn(0).image.resize((12, 12))))
    with pytest.raises(InvalidInput, match="id-0 is 12 x 12 pixels"):
        run_of(Platform(), tmp_path, held_out=0)


@pytest.mark.slow
def test_a_notice_that_a_node_leaves_keeps_a_checkpoint_at_once(tmp_path, monkeypatch):
    kept: list[int] = []
    monkeypatch.setattr(ray.train, "report", lambda metrics, **_: kept.append(metrics["step"]))
    run = run_of(Platform(), tmp_path, checkpoint_every=3)
    told = iter([None, PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"node": [0]}), None])
    run.preemption = PreemptionWatcher(lambda: next(told), interval=0)
    run.train()
    assert kept == [2, 3]
