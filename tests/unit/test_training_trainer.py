"""The trainer is reproducible and resumable, gives equal bits with any number of workers, and refuses infinities."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from onbrand.errors import TrainingFailed
from onbrand.families.loading import load_family
from onbrand.training.data.dataset import CaptionVariants, Picture
from onbrand.training.data.encoding import encode
from onbrand.training.data.sampling import draw_batch, own_rows
from onbrand.training.kernels.lora_layers import frozen_base
from onbrand.training.recipes import Plan
from onbrand.training.step_results import must_share
from onbrand.training.trainer import Trainer
from tests.unit.training_bases import (
    FAMILIES,
    SIDE,
    base_of,
    drawn,
    fresh_family,
    same_bits,
    small_examples,
    small_plan,
    small_trainer,
    trained,
)


class Together:
    """Workers as threads of one process, whose packets are combined in the order of ranks."""

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


def trained_together(trainers: list[Trainer], until: int | None = None) -> None:
    threads = [threading.Thread(target=trained, args=(trainer, until)) for trainer in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)


def test_a_steps_rows_are_a_function_of_seed_and_step():
    trainer = small_trainer()
    one, other = (draw_batch(trainer.plan, trainer.examples, 3) for _ in range(2))
    assert torch.equal(one.noise[0][0], other.noise[0][0])
    assert torch.equal(one.rows_SR, other.rows_SR)
    later = draw_batch(trainer.plan, trainer.examples, 4)
    assert not torch.equal(one.noise[0][0], later.noise[0][0])


def test_every_picture_is_seen_once_before_any_is_seen_again():
    rows = torch.cat([own_rows(1, step, 4, [0] * 6) for step in range(3)]).tolist()
    assert sorted(rows[:6]) == sorted(rows[6:]) == list(range(6))


def test_each_shard_has_its_share_of_brand_and_prior_rows():
    trainer = small_trainer()
    batch = draw_batch(trainer.plan, trainer.examples, 0)
    assert (batch.rows_SR < trainer.examples.num_own).sum(1).tolist() == [2, 2]


def test_dropped_captions_become_the_row_without_a_caption():
    trainer = small_trainer(plan=small_plan(caption_dropout=1.0))
    batch = draw_batch(trainer.plan, trainer.examples, 0)
    assert (batch.text_SR == trainer.examples.no_caption).all()


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_run_killed_before_its_first_step_was_kept_starts_over(tmp_path):
    beginner = small_trainer()
    beginner.save(tmp_path)
    heir = small_trainer()
    assert heir.resume(tmp_path)
    assert same_bits(trained(heir), trained(small_trainer()))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_two_workers_end_with_the_bits_of_one(name):
    alone = trained(small_trainer(name))
    group = Together(2)
    pair = [small_trainer(name, group.worker(rank)) for rank in range(2)]
    trained_together(pair)
    assert pair[0].done
    assert same_bits(pair[0], alone)
    assert same_bits(pair[1], alone)


@pytest.mark.slow
def test_a_run_that_changes_its_number_of_workers_on_the_way_ends_with_the_bits_of_one(tmp_path):
    """Four shards by three workers (one has none), then by two, then by one, each from the checkpoint before."""
    plan = small_plan(prior_rows=4, num_workers=(1, 4))
    assert plan.num_shards == 4
    alone = trained(small_trainer(plan=plan))
    for num_workers, until in ((3, 2), (2, 4), (1, 6)):
        group = Together(num_workers)
        some = [small_trainer(collectives=group.worker(rank), plan=plan) for rank in range(num_workers)]
        for trainer in some:
            assert until == 2 or trainer.resume(tmp_path)
        trained_together(some, until)
        some[-1].save(tmp_path)
    assert some[-1].step == 6
    assert same_bits(some[-1], alone)


@pytest.mark.slow
def test_a_worker_without_a_shard_is_heard_too():
    plan = small_plan(prior_rows=4, num_workers=(1, 4))
    group = Together(3)
    some = [small_trainer(collectives=group.worker(rank), plan=plan) for rank in range(3)]
    with ThreadPoolExecutor(3) as pool:
        facts = list(pool.map(lambda each: each.train_step(check_preemption=each.collectives.rank == 2), some))
        stopped = list(pool.map(lambda each: each.train_step(stop=each.collectives.rank == 2).stopped, some))
    assert [each.check_preemption for each in facts] == stopped == [True] * 3
    assert {each.step for each in some} == {1}


@pytest.mark.slow
def test_the_number_of_shards_changes_the_weights_by_rounding_only():
    halves = trained(small_trainer(), until=4)
    whole = trained(small_trainer(plan=replace(small_plan(), num_shards=1)), until=4)
    for one, other in zip(halves.weights, whole.weights, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_picture():
    trainer = trained(small_trainer(), until=1)
    before = [weight.detach().clone() for weight in trainer.weights]
    seen = own_rows(trainer.plan.seed, 1, trainer.plan.batch_size, trainer.examples.own_shapes)
    bad = int(seen[0])
    trainer.examples.latents[bad].fill_(float("nan"))
    with pytest.raises(TrainingFailed) as stopped:
        trainer.train_step()
    assert stopped.value.fields == {"step": 2, "images": [f"asset-{bad}"]}
    assert "step 2" in stopped.value.message
    assert trainer.step == 1
    assert all(torch.equal(weight, kept) for weight, kept in zip(trainer.weights, before, strict=True))


@pytest.mark.slow
def test_a_checkpoint_of_other_pictures_is_not_continued(tmp_path):
    trained(small_trainer(), until=2).save(tmp_path)
    family = fresh_family()
    other = Trainer(family, small_plan(), small_examples(family, num_own=4))
    assert not other.resume(tmp_path)
    assert other.step == 0


@pytest.mark.slow
def test_a_checkpoint_is_continued_by_another_number_of_workers(tmp_path):
    trained(small_trainer(plan=small_plan(num_workers=2)), until=2).save(tmp_path)
    assert small_trainer(plan=small_plan(num_workers=1)).resume(tmp_path)


@pytest.mark.slow
def test_a_checkpoint_is_safetensors_and_json_and_holds_no_caption(tmp_path):
    trained(small_trainer(), until=1).save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"state.safetensors", "state.json"}
    assert set(json.loads((tmp_path / "state.json").read_text())) == {"step", "identity", "validations", "optimizer"}
    assert not any(b"acme" in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.slow
def test_drawing_with_the_average_leaves_the_trained_weights_as_they_were():
    trainer = trained(small_trainer(), until=3)
    before = [weight.detach().clone() for weight in trainer.weights]
    with trainer.averaged():
        assert all(torch.equal(a, b) for a, b in zip(trainer.weights, trainer.average, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(trainer.weights, before, strict=True))


@pytest.mark.slow
def test_a_worker_that_was_asked_to_stop_stops_all_before_anything_changes():
    group = Together(2)
    pair = [small_trainer(collectives=group.worker(rank)) for rank in range(2)]
    told: dict[int, bool] = {}

    def one_step(rank: int) -> None:
        told[rank] = pair[rank].train_step(stop=rank == 1).stopped

    threads = [threading.Thread(target=one_step, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert told == {0: True, 1: True}
    assert pair[0].step == pair[1].step == 0


@pytest.mark.parametrize("length", [0.5, 20.0])
def test_gradients_are_clipped_together_as_torch_clips_them(length):
    trainer = small_trainer()
    before = [weight.detach().clone() for weight in trainer.weights]
    flat = torch.randn(sum(weight.numel() for weight in before), generator=torch.Generator().manual_seed(3))
    flat *= length / flat.norm()
    pieces = flat.split([weight.numel() for weight in before])
    for weight, piece in zip(before, pieces, strict=True):
        weight.grad = piece.view_as(weight).clone()
    torch.nn.utils.clip_grad_norm_(before, trainer.plan.clip_norm)
    trainer.optimizer = torch.optim.SGD(trainer.weights)
    assert trainer._update(flat.clone()) == pytest.approx(length)
    rate = trainer.plan.learning_rate_at(0)
    for weight, was in zip(trainer.weights, before, strict=True):
        torch.testing.assert_close(weight.detach(), was - rate * was.grad)


@pytest.mark.slow
def test_training_lowers_the_loss_of_the_same_draws():
    trainer = small_trainer(plan=small_plan(steps=20, learning_rate=5e-3, rank=4, targets="all"))
    first = trainer.train_step().loss
    trained(trainer)
    trainer.step = 0
    assert trainer.train_step().loss < 0.8 * first


def test_workers_that_cannot_share_the_shards_are_refused():
    with pytest.raises(TrainingFailed, match="3 workers"):
        must_share(small_plan(), 3)


def of_two_shapes(plan: Plan) -> Trainer:
    family = fresh_family()
    wide = Picture(drawn(9).image.resize((160, 80)), "photo of acme bag", "wide")
    return Trainer(family, plan, encode(family, [*(drawn(n) for n in range(3)), wide], SIDE))


def test_a_step_with_pictures_of_two_shapes_has_the_gradient_of_its_rows_one_by_one():
    trainer = of_two_shapes(small_plan(prior_rows=0, accumulation=1))
    batch = draw_batch(trainer.plan, trainer.examples, 0)
    assert len(list(batch.parts(0))) == 2
    packet = trainer._packet(batch, 0, said=0.0)
    total = torch.zeros_like(packet)
    for place in range(4):
        one = trainer._losses(batch, 0, [place])[0].sum() / 4
        flat = [g.flatten() for g in torch.autograd.grad(one, trainer.weights)]
        total[: trainer._num_gradients] += torch.cat(flat)
    size = trainer._num_gradients
    torch.testing.assert_close(packet[:size], total[:size], atol=1e-6, rtol=1e-4)


def test_pictures_of_several_shapes_come_once_an_epoch_and_mostly_with_their_like():
    shapes = [0] * 9 + [1] * 8 + [2] * 6
    rows = [own_rows(5, step, 4, shapes).tolist() for step in range(23)]
    order = [row for batch in rows for row in batch]
    for epoch in range(4):
        assert sorted(order[epoch * 23 : (epoch + 1) * 23]) == list(range(23))
    mixed = sum(len({shapes[row] for row in batch}) > 1 for batch in rows)
    assert mixed <= 13  # chance alone would leave hardly one of 23 unmixed
    assert order[:23] != order[23:46]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"optimizer": "adamw8bit"}, {"optimizer": "prodigy"}, {"prior_weight": 1.0}], ids=str
)
def test_every_way_to_train_is_resumed_with_the_same_bits(options, tmp_path):
    plan = small_plan(steps=4, **options)
    unbroken = trained(small_trainer(plan=plan))
    trained(small_trainer(plan=plan), until=2).save(tmp_path)
    heir = small_trainer(plan=plan)
    assert heir.resume(tmp_path)
    assert same_bits(trained(heir), unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_gradient_checkpointing_gives_the_same_bits(name):
    plain = trained(small_trainer(name), until=2)
    thrifty = trained(small_trainer(name, plan=small_plan(name, gradient_checkpointing=True)), until=2)
    assert thrifty.family.denoiser.is_gradient_checkpointing
    assert same_bits(plain, thrifty)


@pytest.mark.slow
def test_accumulation_changes_the_weights_by_rounding_only():
    whole = trained(small_trainer(plan=small_plan(prior_rows=0, accumulation=1)), until=3)
    parts = trained(small_trainer(plan=small_plan(prior_rows=0, accumulation=4)), until=3)
    for one, other in zip(whole.weights, parts.weights, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_in_bfloat16_trains_float32_weights(name):
    family = load_family(name, base_of(name), dtype=torch.bfloat16)
    trainer = Trainer(family, small_plan(name, steps=2), small_examples(family))
    facts = trained(trainer, until=1).train_step()
    assert {weight.dtype for weight in trainer.weights} == {torch.float32}
    assert 0 < facts.loss < 10
    assert facts.gradient_norm > 0


@pytest.mark.slow
def test_prior_preservation_holds_what_the_base_draws_without_the_trigger_word():
    def drift(weight: float) -> float:
        plan = small_plan(steps=12, learning_rate=1e-2, rank=4, targets="all", prior_weight=weight, prior_rows=0)
        trainer = trained(small_trainer(plan=plan))
        latents, random = trainer.examples.latents[0][None], torch.Generator().manual_seed(5)
        noisy, t = torch.randn(latents.shape, generator=random), trainer.family.training_times(torch.tensor([0.6]))
        plain = trainer.family.encode_prompts(["photo of logo 0"])
        with torch.no_grad():
            changed = trainer.family.denoise(noisy, t, plain)
            with frozen_base(trainer.family.denoiser):
                return float((changed - trainer.family.denoise(noisy, t, plain)).pow(2).mean())

    assert drift(5.0) < 0.5 * drift(0.0)


def test_a_shuffled_caption_is_another_text_of_the_same_picture():
    family = fresh_family()
    pictures = [Picture(drawn(n).image, f"photo of acme, red, round, {n}", f"a-{n}") for n in range(4)]
    examples = encode(family, pictures, SIDE, wording=CaptionVariants("acme", shuffle=True))
    plan = small_plan(prior_rows=0, caption_dropout=0.0)
    for step in range(3):
        batch = draw_batch(plan, examples, step)
        for row, text in zip(batch.rows_SR.flatten().tolist(), batch.text_SR.flatten().tolist(), strict=True):
            assert text in examples.text_rows_NV[row]
    assert len({tuple(draw_batch(plan, examples, step).text_SR.flatten().tolist()) for step in range(6)}) > 1
