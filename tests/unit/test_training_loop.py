"""The loop: reproducible, resumable, shared by workers without a changed bit, and honest about what is not finite."""

import json
import threading
from dataclasses import replace

import pytest
import torch

from onbrand.errors import TrainingFailed
from onbrand.training.loop import Trainer, draw_batch, must_share, own_rows
from tests.unit.training_bases import (
    FAMILIES,
    fresh_family,
    same_bits,
    small_examples,
    small_plan,
    small_trainer,
    trained,
)


class Together:
    """Workers as threads of one process: the packets of all, in the order of ranks."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self.packets: dict[int, torch.Tensor] = {}
        self.barrier = threading.Barrier(num_workers, timeout=60)

    def worker(self, rank: int) -> "Member":
        return Member(self, rank)


class Member:
    def __init__(self, group: Together, rank: int) -> None:
        self.group, self.rank, self.num_workers = group, rank, group.num_workers

    def gather(self, own_SK: torch.Tensor) -> torch.Tensor:
        self.group.packets[self.rank] = own_SK
        self.group.barrier.wait()
        everyone = torch.cat([self.group.packets[rank] for rank in range(self.num_workers)])
        self.group.barrier.wait()
        return everyone


def trained_together(trainers: list[Trainer]) -> None:
    threads = [threading.Thread(target=trained, args=(trainer,)) for trainer in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)


def test_a_steps_rows_are_a_function_of_seed_and_step():
    trainer = small_trainer()
    one, other = (draw_batch(trainer.plan, trainer.examples, 3) for _ in range(2))
    assert torch.equal(one.noise_SRCHW, other.noise_SRCHW)
    assert torch.equal(one.rows_SR, other.rows_SR)
    later = draw_batch(trainer.plan, trainer.examples, 4)
    assert not torch.equal(one.noise_SRCHW, later.noise_SRCHW)


def test_every_picture_is_seen_once_before_any_is_seen_again():
    rows = torch.cat([own_rows(seed=1, step=step, batch_size=4, num_own=6) for step in range(3)]).tolist()
    assert sorted(rows[:6]) == sorted(rows[6:]) == list(range(6))


def test_each_shard_has_its_share_of_brand_and_prior_rows():
    trainer = small_trainer()
    batch = draw_batch(trainer.plan, trainer.examples, 0)
    assert (batch.rows_SR < trainer.examples.num_own).sum(1).tolist() == [2, 2]


def test_dropped_captions_become_the_row_without_a_caption():
    trainer = small_trainer(plan=small_plan(caption_dropout=1.0))
    batch = draw_batch(trainer.plan, trainer.examples, 0)
    assert (batch.text_SR == trainer.examples.no_caption).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_resumed_run_ends_with_the_bits_of_the_unbroken_one(name, tmp_path):
    unbroken = trained(small_trainer(name))
    killed = trained(small_trainer(name), until=2)
    killed.save(tmp_path)
    trained(killed, until=4)
    heir = small_trainer(name)
    assert heir.resume(tmp_path)
    assert heir.step == 2
    assert same_bits(trained(heir), unbroken)


def test_a_run_killed_before_its_first_step_was_kept_starts_over(tmp_path):
    beginner = small_trainer()
    beginner.save(tmp_path)
    heir = small_trainer()
    assert heir.resume(tmp_path)
    assert same_bits(trained(heir), trained(small_trainer()))


@pytest.mark.parametrize("name", FAMILIES)
def test_two_workers_end_with_the_bits_of_one(name):
    alone = trained(small_trainer(name))
    group = Together(2)
    pair = [small_trainer(name, group.worker(rank)) for rank in range(2)]
    trained_together(pair)
    assert pair[0].done
    assert same_bits(pair[0], alone)
    assert same_bits(pair[1], alone)


def test_the_number_of_shards_changes_the_weights_by_rounding_only():
    halves = trained(small_trainer(), until=4)
    whole = trained(small_trainer(plan=replace(small_plan(), num_shards=1)), until=4)
    for one, other in zip(halves.weights, whole.weights, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_picture():
    trainer = trained(small_trainer(), until=1)
    before = [weight.detach().clone() for weight in trainer.weights]
    seen = own_rows(trainer.plan.seed, 1, trainer.plan.batch_size, trainer.examples.num_own)
    bad = int(seen[0])
    trainer.examples.latents_NCHW[bad] = float("nan")
    with pytest.raises(TrainingFailed) as stopped:
        trainer.train_step()
    assert stopped.value.fields == {"step": 2, "images": [f"asset-{bad}"]}
    assert "step 2" in stopped.value.message
    assert trainer.step == 1
    assert all(torch.equal(weight, kept) for weight, kept in zip(trainer.weights, before, strict=True))


def test_a_checkpoint_of_other_pictures_is_not_continued(tmp_path):
    trained(small_trainer(), until=2).save(tmp_path)
    family = fresh_family()
    other = Trainer(family, small_plan(), small_examples(family, num_own=4))
    assert not other.resume(tmp_path)
    assert other.step == 0


def test_a_checkpoint_is_continued_by_another_number_of_workers(tmp_path):
    trained(small_trainer(plan=small_plan(num_workers=2)), until=2).save(tmp_path)
    assert small_trainer(plan=small_plan(num_workers=1)).resume(tmp_path)


def test_a_checkpoint_is_safetensors_and_json_and_holds_no_caption(tmp_path):
    trained(small_trainer(), until=1).save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"state.safetensors", "state.json"}
    assert set(json.loads((tmp_path / "state.json").read_text())) == {"step", "identity"}
    assert not any(b"acme" in file.read_bytes() for file in tmp_path.iterdir())


def test_drawing_with_the_average_leaves_the_trained_weights_as_they_were():
    trainer = trained(small_trainer(), until=3)
    before = [weight.detach().clone() for weight in trainer.weights]
    with trainer.averaged():
        assert all(torch.equal(a, b) for a, b in zip(trainer.weights, trainer.average, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(trainer.weights, before, strict=True))


def test_a_worker_that_was_asked_to_stop_stops_all_before_anything_changes():
    group = Together(2)
    pair = [small_trainer(exchange=group.worker(rank)) for rank in range(2)]
    told: dict[int, bool] = {}

    def one_step(rank: int) -> None:
        told[rank] = pair[rank].train_step(stop=rank == 1).stop

    threads = [threading.Thread(target=one_step, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert told == {0: True, 1: True}
    assert pair[0].step == pair[1].step == 0


def test_training_lowers_the_loss_of_the_same_draws():
    trainer = small_trainer(plan=small_plan(steps=20, learning_rate=5e-3, rank=4, targets="all"))
    first = trainer.train_step().loss
    trained(trainer)
    trainer.step = 0
    assert trainer.train_step().loss < 0.8 * first


def test_workers_that_cannot_share_the_shards_are_refused():
    with pytest.raises(TrainingFailed, match="3 workers"):
        must_share(small_plan(), 3)
