"""A range of workers uses free resources and those of its own workers, never those of other jobs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.train.v2.api import data_parallel_trainer

from onbrand.training.ray import scaling
from onbrand.training.ray.scaling import FreeResourcesPolicy, RangeTrainer, num_that_fit

CPU = {"CPU": 1.0}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two nodes with four CPUs each, of which Ray reserves all for us; `free` and `alive` are the test's to say."""
    cluster = SimpleNamespace(free={"a": 1.0, "b": 0.0}, alive={"a", "b"})
    monkeypatch.setattr(
        scaling, "available_resources_per_node", lambda: {n: {"CPU": f} for n, f in cluster.free.items()}
    )
    nodes = lambda: [{"NodeID": name, "Alive": name in cluster.alive} for name in ("a", "b")]  # noqa: E731
    monkeypatch.setattr(scaling.ray, "nodes", nodes)
    monkeypatch.setattr(
        FreeResourcesPolicy, "_get_reserved_resources", lambda _: {name: {"CPU": 4.0} for name in sorted(cluster.alive)}
    )
    monkeypatch.setattr(FreeResourcesPolicy, "_maybe_send_resource_request", lambda _: None)
    return cluster


def running_on(*nodes: str) -> SimpleNamespace:
    workers = [SimpleNamespace(metadata=SimpleNamespace(node_id=node)) for node in nodes]
    return SimpleNamespace(workers=workers, num_workers=len(nodes), start_time=0.0)


def policy() -> FreeResourcesPolicy:
    return FreeResourcesPolicy(ScalingConfig(num_workers=(1, 4), elastic_resize_monitor_interval_s=0.0))


def test_what_others_hold_is_not_counted(cluster):
    assert policy().make_decision_for_non_running_worker_group().num_workers == 1


def test_a_run_grows_by_what_is_free_beside_its_own_workers(cluster):
    decision = policy().make_decision_for_running_worker_group(
        worker_group_state=running_on("a", "b"), worker_group_status=None
    )
    assert decision.num_workers == 3


def test_a_run_stays_as_it_is_when_all_else_is_taken(cluster):
    cluster.free = {"a": 0.0, "b": 0.0}
    decision = policy().make_decision_for_running_worker_group(
        worker_group_state=running_on("a", "b"), worker_group_status=None
    )
    assert not hasattr(decision, "num_workers")


def test_the_workers_of_a_node_that_is_gone_are_not_counted(cluster):
    chosen = policy()
    cluster.free = {"a": 0.0, "b": 0.0}
    chosen.make_decision_for_running_worker_group(worker_group_state=running_on("a", "b"), worker_group_status=None)
    cluster.alive, cluster.free = {"a"}, {"a": 0.0}
    assert chosen.make_decision_for_non_running_worker_group().num_workers == 1


def test_workers_that_were_to_be_stopped_are_counted_once(cluster):
    chosen = policy()
    chosen.make_decision_for_running_worker_group(worker_group_state=running_on("a", "b"), worker_group_status=None)
    assert chosen.make_decision_for_non_running_worker_group().num_workers == 3
    assert chosen.make_decision_for_non_running_worker_group().num_workers == 1


def test_a_worker_fits_where_all_that_it_needs_is_free():
    nodes = [{"CPU": 3.0, "GPU": 1.0}, {"CPU": 1.0}, {"GPU": 8.0, "CPU": 2.5}]
    assert num_that_fit(nodes, {"CPU": 1.0, "GPU": 1.0, "memory": 0.0}) == 3


def test_ray_hands_a_trainers_policy_to_its_controller(monkeypatch):
    """The seam: Ray has no argument for the policy, so its own way of handing it on is what must stay."""
    handed = {}
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "1")
    monkeypatch.setattr(data_parallel_trainer, "ObjectRefWrapper", lambda function: function)
    monkeypatch.setattr(TorchTrainer, "_create_default_callbacks", lambda _: [])
    monkeypatch.setattr(TorchTrainer, "_initialize_and_run_controller", lambda _, **parts: handed.update(parts))
    scaling = ScalingConfig(num_workers=(1, 2))
    trainer = RangeTrainer(lambda: None, scaling_config=scaling)
    with pytest.raises(AttributeError):  # there is no result
        trainer.fit()
    assert type(handed["scaling_policy"]) is FreeResourcesPolicy
    assert isinstance(handed["scaling_policy"], ElasticScalingPolicy)
    assert {"train_fn_ref", "failure_policy", "train_run_context"} <= handed.keys()
