"""Binds the servers of Serve's replicas to the address of their node, instead of all its addresses.

Ray binds the server between deployments to `[::]`, although it is called at the node's address only. That server also
asks for the cluster's token, but on a laptop it could be reached from the laptop's network.
"""

from __future__ import annotations

from typing import Any


def listen_on_the_nodes_address() -> None:
    """Call it in a replica's `__init__`: Serve opens that port afterwards."""
    import ray
    from ray.serve._private import replica

    opened = replica.add_port_to_grpc_server
    node = ray.util.get_node_ip_address()

    def on_the_node(server: Any, address: str) -> Any:
        host, _, port = address.rpartition(":")
        return opened(server, f"{_in_brackets(node)}:{port}" if host == "[::]" else address)

    replica.add_port_to_grpc_server = on_the_node


def _in_brackets(host: str) -> str:
    return f"[{host}]" if ":" in host else host
