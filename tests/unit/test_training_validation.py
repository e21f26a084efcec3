"""Validation on held-out pictures: deterministic with any number of workers, and the best step is published."""

import math
from dataclasses import replace

import pytest
import torch

from onbrand.errors import TrainingFailed
from onbrand.training.trainer import Trainer
from onbrand.training.validation import NUM_DRAWS, SIGMAS, ValidationHistory, Validator
from tests.unit.test_training_trainer import Together, trained_together
from tests.unit.training_bases import (
    FAMILIES,
    fresh_family,
    held_out_examples,
    same_bits,
    small_examples,
    small_plan,
    small_trainer,
    trained,
)


def judged(steps: int = 6, **options: object) -> Trainer:
    plan = small_plan(steps=steps, validate_every=1, **options)
    return small_trainer(plan=plan, judged=True)


def loss_of(judge: Validator) -> float:
    return judge.loss(0, 1, lambda own: own)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_is_the_mean_error_at_four_sigmas_with_noise_that_never_changes(name):
    family = fresh_family(name)
    held = held_out_examples(family, 1)
    judge = Validator(family, held, seed=3)
    times = family.times_at(torch.tensor(SIGMAS).repeat_interleave(NUM_DRAWS))
    rows = [0] * len(times)
    with torch.no_grad():
        errors = family.errors(
            held.latents[0].expand(len(rows), -1, -1, -1), held.text.rows(rows), times, judge._noise[0]
        )
    assert loss_of(judge) == pytest.approx(float(errors.mean()), rel=1e-5)
    assert loss_of(judge) == loss_of(Validator(family, held, seed=3)) != loss_of(Validator(family, held, seed=4))


@pytest.mark.slow
def test_the_best_step_is_published_and_not_the_last(monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 2.5])
    monkeypatch.setattr(Validator, "loss", lambda *_: next(losses))
    trainer = judged(steps=4)
    second = trained(trainer, until=2).adapter()
    trained(trainer)
    assert trainer.published_step == 2
    assert all(torch.equal(trainer.adapter()[key], value) for key, value in second.items())
    with trainer.averaged():
        assert not all(torch.equal(a, b) for a, b in zip(trainer.weights, trainer.best, strict=True))


@pytest.mark.slow
def test_a_run_ends_when_patience_does(monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 1.5, 2.5])
    monkeypatch.setattr(Validator, "loss", lambda *_: next(losses))
    trainer = trained(judged(patience=2))
    assert trainer.done
    assert (trainer.step, trainer.published_step) == (4, 2)


def test_patience_counts_from_the_best_and_none_is_endless():
    validations = ValidationHistory(patience=2)
    best = [validations.add(step, loss) for step, loss in enumerate([3.0, 4.0, 2.0, 5.0])]
    assert best == [True, False, True, False]
    assert not validations.exhausted
    validations.add(4, 2.0)
    assert validations.exhausted
    assert not ValidationHistory(0, [(step, float(step)) for step in range(100)]).exhausted


def test_a_judgement_that_is_not_finite_ends_the_run_with_its_step():
    with pytest.raises(TrainingFailed, match="step 7"):
        ValidationHistory().add(7, math.nan)


@pytest.mark.slow
def test_the_last_step_is_judged_too():
    trainer = trained(small_trainer(plan=small_plan(steps=3, validate_every=2), judged=True))
    assert [step for step, _ in trainer.validations.history] == [2, 3]


def test_without_held_out_pictures_the_last_average_is_published():
    trainer = trained(small_trainer(plan=small_plan(steps=2)))
    assert (trainer.best, trainer.published_step) == (None, 2)
    assert all(torch.equal(a, b) for a, b in zip(trainer.average, _published(trainer), strict=True))


def _published(trainer: Trainer) -> list[torch.Tensor]:
    with trainer.published():
        return [weight.detach().clone() for weight in trainer.weights]


@pytest.mark.slow
def test_looking_at_the_held_out_pictures_changes_nothing_of_what_is_trained():
    plain = trained(small_trainer(plan=small_plan(steps=3)))
    looked = trained(judged(steps=3))
    assert all(torch.equal(a, b) for a, b in zip(plain.weights, looked.weights, strict=True))


@pytest.mark.slow
def test_a_run_killed_after_its_best_step_publishes_the_same_best(tmp_path):
    plan = {"steps": 5, "learning_rate": 3e-2, "patience": 3}
    unbroken = trained(judged(**plan))
    killed = trained(judged(**plan), until=3)
    killed.save(tmp_path)
    heir = judged(**plan)
    assert heir.resume(tmp_path)
    assert heir.validations.history == killed.validations.history
    assert same_bits(trained(heir), unbroken)
    assert heir.published_step == unbroken.published_step
    assert heir.validations.history == unbroken.validations.history


@pytest.mark.slow
def test_two_workers_judge_alike_and_as_one_does():
    alone = trained(judged(steps=2))
    group = Together(2)
    plan = small_plan(steps=2, validate_every=1)
    pair = [small_trainer(collectives=group.worker(rank), plan=plan, judged=True) for rank in range(2)]
    trained_together(pair)
    assert pair[0].validations.history == pair[1].validations.history == alone.validations.history
    assert same_bits(pair[1], alone)


def test_a_checkpoint_is_not_continued_when_other_pictures_judge(tmp_path):
    trained(judged(), until=1).save(tmp_path)
    family = fresh_family()
    plan = small_plan(validate_every=1)
    other = replace(held_out_examples(family), digest="another")
    heir = Trainer(family, plan, small_examples(family), held_out=other)
    assert not heir.resume(tmp_path)
