"""How a job's training plan is composed."""

import pytest
from pydantic import ValidationError

from onbrand.errors import InvalidInput
from onbrand.families.spec import SPECS, Recommended, with_family_defaults
from onbrand.families.training_config import TrainingConfig
from onbrand.training.recipes import Plan, make_plan

ADVICE = with_family_defaults("sd15", {"resolution": 64, "training": {"steps": 220, "rank": 8, "batch_size": 8}})


def plan(advice: Recommended = ADVICE, train_workers: int = 1, **options: object) -> Plan:
    return make_plan(SPECS["sd15"], advice, TrainingConfig(**options), "acme", train_workers)


def test_the_owners_wish_stands_over_the_bases_advice_over_the_familys_recipe():
    made = plan(steps=40)
    assert (made.steps, made.rank, made.learning_rate) == (40, 8, SPECS["sd15"].recipe.learning_rate)


def test_the_bases_own_resolution_stands_over_the_familys():
    assert plan().resolution == 64


def test_prior_pictures_are_added_only_where_the_base_wants_them():
    assert plan().prior_rows == 0
    assert plan(ADVICE.model_copy(update={"prior": True})).prior_rows == 4


def test_workers_that_cannot_share_the_batch_are_refused_by_name():
    with pytest.raises(InvalidInput) as refusal:
        plan(num_workers=3)
    assert refusal.value.param == "training_config.num_workers"


def test_the_clusters_usual_number_of_workers_is_lowered_to_what_can_share_the_batch():
    assert plan(train_workers=3).num_workers == 2


def test_one_worker_and_two_follow_the_same_plan():
    assert plan(num_workers=1).identity() == plan(num_workers=2).identity()


def test_a_resolution_that_the_family_cannot_draw_is_refused_by_name():
    with pytest.raises(InvalidInput, match="resolution"):
        plan(resolution=2048)


def test_the_learning_rate_rises_and_stays_unless_asked_to_fall():
    made = plan(learning_rate=1e-3)
    rates = [made.learning_rate_at(step) for step in range(made.steps)]
    assert rates[0] == pytest.approx(1e-3 / made.warmup_steps, rel=1e-2)
    assert set(rates[made.warmup_steps :]) == {1e-3}


def test_the_learning_rate_may_fall_to_a_tenth_in_half_a_cosine():
    made = plan(learning_rate=1e-3, lr_schedule="cosine")
    rates = [made.learning_rate_at(step) for step in range(made.steps)]
    assert rates[0] == pytest.approx(1e-3 / made.warmup_steps, rel=1e-2)
    assert max(rates) == pytest.approx(1e-3, rel=0.05)
    assert rates[-1] == pytest.approx(1e-4, rel=0.01)


@pytest.mark.parametrize(("schedule", "half_way", "last"), [("linear", 0.55, 0.1), ("constant", 1.0, 1.0)])
def test_the_learning_rate_may_fall_in_a_line_or_stay(schedule, half_way, last):
    made = plan(learning_rate=1e-3, lr_schedule=schedule)
    assert made.learning_rate_at(made.steps // 2) == pytest.approx(half_way * 1e-3, rel=0.01)
    assert made.learning_rate_at(made.steps - 1) == pytest.approx(last * 1e-3, rel=0.05)


def test_prodigys_learning_rate_is_a_factor_and_no_advice_for_others():
    assert plan(optimizer="prodigy").learning_rate == 1.0
    assert plan(optimizer="prodigy", learning_rate=0.5).learning_rate == 0.5


def test_accumulation_cuts_a_workers_share_and_must_divide_the_batch():
    assert plan(accumulation=4).num_shards == 4
    assert plan(accumulation=2, num_workers=2).num_shards == 4
    assert plan(accumulation=1).num_shards == 1
    with pytest.raises(InvalidInput) as refusal:
        plan(accumulation=3)
    assert refusal.value.param == "training_config.accumulation"


def test_flux_is_trained_at_three_resolutions_unless_owner_or_base_say_one():
    def resolutions(advice: dict[str, object], **options: object) -> tuple[int, ...]:
        made = make_plan(SPECS["flux"], with_family_defaults("flux", advice), TrainingConfig(**options), "acme")
        return made.resolutions

    assert resolutions({}) == (512, 768, 1024)
    assert resolutions({}, resolution=512) == (512,)
    assert resolutions({"resolution": 64, "training": {"resolution": 64}}) == (64,)


def test_gradient_checkpointing_is_another_memory_and_not_another_run():
    assert plan(gradient_checkpointing=True).identity() == plan().identity()
    assert plan(patience=3).identity() != plan().identity()


def test_the_placeholder_in_sample_prompts_becomes_the_trigger_word():
    made = plan(trigger_word="zorblax", sample_prompts=("photo of [brand] logo",))
    assert made.sample_prompts == ("photo of zorblax logo",)


def test_without_a_trigger_word_the_brands_id_is_it():
    assert plan().trigger_word == "acme"


def test_a_range_of_workers_cuts_a_step_for_the_most_of_them():
    elastic = plan(num_workers=(1, 4))
    assert (elastic.min_workers, elastic.num_workers, elastic.num_shards) == (1, 4, 4)
    assert plan(num_workers=(2, 4)).identity() == elastic.identity() == plan(num_workers=4).identity()


def test_the_clusters_range_is_cut_to_what_can_share_the_batch():
    some = plan(train_workers=(3, 8), batch_size=2)
    assert (some.min_workers, some.num_workers) == (2, 2)


@pytest.mark.parametrize("wish", [(4, 1), (0, 2), (1, 65), (1, 2, 3)])
def test_a_range_that_is_none_is_refused(wish):
    with pytest.raises(ValidationError, match="num_workers"):
        plan(num_workers=wish)


def test_how_memory_is_saved_is_not_part_of_what_a_checkpoint_belongs_to():
    assert plan(quantization="int8", gradient_checkpointing=True).identity() == plan().identity()
