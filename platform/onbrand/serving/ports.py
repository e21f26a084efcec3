"""Where the replicas of Serve listen: on the address of their node, and not on every address it has.

Ray binds the server between deployments to `[::]`, although it is called at the node's address only. It asks for the
cluster's token there too, but a laptop's is then reached from its network.
"""

from __future__ import annotations

from typing import Any


def listen_on_the_nodes_address() -> None:
    """Call it in a replica's `__init__`: Serve opens that port after it."""
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
