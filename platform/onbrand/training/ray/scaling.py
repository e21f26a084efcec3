"""Elastic number of workers on a cluster that is shared with engines and other runs.

Ray's own policy counts all resources of the nodes, used ones too: a run would stop to grow into GPUs that engines hold,
and wait for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, ScalingDecision

Resources = Mapping[str, float]


class FreeResourcesPolicy(ElasticScalingPolicy):
    """Ray's policy for a range of workers, limited to resources that others do not use."""

    _own: tuple[str, ...] = ()
    """Node of each own worker that may still hold its resources."""

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """As Ray's. Own workers that are about to stop are counted in this decision only."""
        decision = super().make_decision_for_non_running_worker_group()
        self._own = ()
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """As Ray's; also records the nodes of the current workers."""
        self._own = tuple(worker.metadata.node_id for worker in worker_group_state.workers)
        return super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        counted = super()._count_possible_workers(reserved_resources)
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        room = num_that_fit(available_resources_per_node().values(), self.scaling_config._resources_per_worker_not_none)
        return min(counted, room + sum(node in alive for node in self._own))


def num_that_fit(nodes: Iterable[Resources], worker: Resources) -> int:
    """Number of workers with needs `worker` that fit on nodes with the free resources `nodes`."""
    needed = {name: amount for name, amount in worker.items() if amount > 0}
    return sum(int(min(free.get(name, 0.0) // amount for name, amount in needed.items())) for free in nodes)


class RangeTrainer(TorchTrainer):
    """A trainer with the scaling policy `FreeResourcesPolicy`, for which Ray has no argument."""

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        return super()._initialize_and_run_controller(
            **parts | {"scaling_policy": FreeResourcesPolicy(self.scaling_config)}
        )
