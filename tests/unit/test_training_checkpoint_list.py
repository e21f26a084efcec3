"""Reading a list of checkpoints that a killed process wrote partly."""

import json

import pytest
import safetensors.numpy
from numpy import zeros
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import _CheckpointManagerState

from onbrand.training.ray.checkpoint_manifest import LIST, _list_of, repair


def checkpoint(run, name: str, step: int):
    folder = run / name
    folder.mkdir()
    safetensors.numpy.save_file({"weight": zeros(9)}, folder / "state.safetensors")
    (folder / "state.json").write_text(json.dumps({"step": step}))
    return folder


def named(run) -> list[str]:
    """The checkpoints that Ray Train reads in the list."""
    state = _CheckpointManagerState.model_validate(json.loads((run / LIST).read_text()))
    assert state.latest_checkpoint_result is not None
    return [each.checkpoint_dir_name for each in state.checkpoint_results]


def test_a_run_without_a_list_and_one_with_a_whole_list_are_left_alone(tmp_path):
    assert not repair(tmp_path)
    checkpoint(tmp_path, "checkpoint_1", 10)
    (tmp_path / LIST).write_text(json.dumps(_list_of("checkpoint_1")))
    before = (tmp_path / LIST).read_bytes()
    assert not repair(tmp_path)
    assert (tmp_path / LIST).read_bytes() == before


@pytest.mark.parametrize("half", ["", '{"checkpoint_results": [{"checkpoint_dir_na', "[]", '{"a": 1}'])
def test_half_a_list_is_made_anew_of_the_newest_checkpoint_that_is_whole(tmp_path, half):
    checkpoint(tmp_path, "checkpoint_9", 10)
    checkpoint(tmp_path, "checkpoint_2", 20)
    torn = checkpoint(tmp_path, "checkpoint_3", 30) / "state.safetensors"
    torn.write_bytes(torn.read_bytes()[:-8])
    (tmp_path / "checkpoint_4").mkdir()
    (tmp_path / LIST).write_text(half)
    assert repair(tmp_path)
    assert named(tmp_path) == ["checkpoint_2"]


def test_a_list_that_names_what_is_not_there_is_made_anew(tmp_path):
    checkpoint(tmp_path, "checkpoint_1", 10)
    (tmp_path / LIST).write_text(json.dumps(_list_of("checkpoint_7")))
    assert repair(tmp_path)
    assert named(tmp_path) == ["checkpoint_1"]


def test_without_a_whole_checkpoint_the_run_begins_anew(tmp_path):
    (tmp_path / LIST).write_text("{")
    assert repair(tmp_path)
    assert not (tmp_path / LIST).exists()
