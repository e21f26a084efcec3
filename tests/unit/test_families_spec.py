"""A family's spec, which is known before anything is loaded."""

import pytest
from pydantic import ValidationError

from onbrand.errors import BaseModelRefused, InvalidInput
from onbrand.families.bases import base_folder, recommended
from onbrand.families.spec import SPECS
from onbrand.families.training_config import TrainingConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("steps", 20_001),
        ("rank", 0),
        ("rank", 129),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("learning_rate", 0.2),
        ("optimizer", "lion"),
        ("lr_schedule", "polynomial"),
        ("accumulation", 0),
        ("prior_weight", -1),
        ("held_out", 65),
        ("patience", -1),
        ("timestep_sampling", "sigmoid"),
        ("resolution", 65),
        ("batch_size", 65),
        ("trigger_word", ""),
        ("trigger_word", "a" * 41),
        ("trigger_word", "[brand]"),
        ("sample_prompts", ["x"] * 9),
        ("sample_prompts", [""]),
        ("targets", "everything"),
        ("colour", "red"),
    ],
)
def test_a_config_out_of_bounds_is_refused_and_the_field_named(field, value):
    with pytest.raises(ValidationError) as refusal:
        TrainingConfig(**{field: value})
    assert refusal.value.errors()[0]["loc"][0] == field


@pytest.mark.parametrize("value", [0, 8, 60, 65, 4096])
def test_a_size_that_cannot_be_drawn_is_refused_and_named(value):
    with pytest.raises(InvalidInput) as refusal:
        SPECS["flux"].must_be_size(value, "width")
    assert refusal.value.param == "width"


def test_a_folder_that_is_no_pipeline_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(BaseModelRefused, match=r"no model_index\.json"):
        base_folder("sd15", str(tmp_path))


def test_a_base_of_another_family_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(BaseModelRefused, match="is a FluxPipeline, not a StableDiffusionPipeline"):
        base_folder("sd15", str(tmp_path))


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(BaseModelRefused, match="not a diffusers pipeline folder"):
        base_folder("sdxl", str(tmp_path / "absent"))


def test_a_base_without_advice_gets_the_familys_defaults(tmp_path):
    advice = recommended("sdxl", tmp_path)
    assert (advice.resolution, advice.num_inference_steps, advice.true_cfg_scale) == (1024, 30, None)


def test_an_unknown_recommendation_is_refused_and_named(tmp_path):
    (tmp_path / "onbrand.json").write_text('{"training": {"ranks": 8}}')
    with pytest.raises(BaseModelRefused, match="ranks"):
        recommended("sdxl", tmp_path)
