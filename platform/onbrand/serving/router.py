"""Serve's request routers: requests go to replicas that hold their adapter; clients cannot choose a replica.

Serve takes a router's class by value and runs it wherever a handle is: in the ingress for the engine, in the HTTP proxy
for the ingress. The routing id is `AdapterRef.routing_id`, an opaque digest that `ServeGenerator` sets from the row
that the ingress authorised. It travels as Serve's multiplexed model id; the same header from a client is dropped.
"""

from __future__ import annotations

import time
from typing import Any

from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from onbrand.serving.placement import Placement, PlacementOptions

SLOTS, MEMORY, UNDER_WAY = "slots", "memory", "under_way"
"""Published by a replica: routing ids in slots, routing ids in memory, number of generations under way."""
_ADDRESS = "replica:"


def address_of(replica: str) -> str:
    """The string that replaces a routing id to reach one replica by its name."""
    return f"{_ADDRESS}{replica}"


class EngineRouter(RequestRouter):
    """Sends each generation to a replica with its adapter, or to its home (`Placement`). An address reaches that
    replica only.

    The order is a preference: Serve skips a replica at its request limit, and tries the next.
    """

    queue_len_response_deadline_s = 1.0
    max_queue_len_response_deadline_s = 5.0
    """Serve's default of 0.1 s skips a replica whose processor is busy drawing, and so the adapters that it holds."""

    def initialize_state(self, **options: Any) -> None:
        """Called by Serve with `request_router_kwargs`: `PlacementOptions` by name."""
        self._placement = Placement(PlacementOptions(**options))

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Called by Serve with all replicas and their published stats."""
        super().update_replicas(replicas)
        self._placement.keep_only({replica.replica_id.unique_id for replica in replicas})
        for replica in replicas:
            self._placement.publish(
                replica.replica_id.unique_id,
                replica.routing_stats.get(SLOTS, ()),
                replica.routing_stats.get(MEMORY, ()),
            )

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas, best first, each in a rank of its own."""
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        routing_id = pending_request.metadata.multiplexed_model_id if pending_request else ""
        if routing_id.startswith(_ADDRESS) and (named := routing_id.removeprefix(_ADDRESS)) in by_name:
            return [[by_name[named]]]
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        loads = {name: self._load(replica) for name, replica in by_name.items()}
        return [[by_name[name]] for name in self._placement.ranked(routing_id, loads, time.monotonic())]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Record that a replica took a request."""
        routing_id = pending_request.metadata.multiplexed_model_id
        if routing_id.startswith(_ADDRESS):
            return
        self._placement.sent(routing_id, replica_id.unique_id, time.monotonic())

    def _load(self, replica: RunningReplica) -> float:
        """Requests under way: Serve's last count, else the replica's last published one."""
        known = self.replica_queue_len_cache.get(replica.replica_id)
        return float(replica.routing_stats.get(UNDER_WAY, 0) if known is None else known)

    def _add_pending_request_to_indices(self, pending_request: PendingRequest) -> None:
        super()._add_pending_request_to_indices(pending_request)
        self._pending_requests_by_model_id.clear()  # Serve would keep one request per id forever, ticket included


class IngressRouter(PowerOfTwoChoicesRequestRouter):
    """Serve's own router, which ignores a client's model id: the id steers nothing, fills no table and goes no
    further."""

    async def _choose_replica_for_request(self, pending_request: PendingRequest, **how: Any) -> RunningReplica:
        pending_request.metadata.multiplexed_model_id = ""
        return await super()._choose_replica_for_request(pending_request, **how)
