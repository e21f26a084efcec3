"""Sharding of the frozen base over all workers (FSDP2), for a base that does not fit on one device.

The adapter is replicated on every worker, and `ray.collectives` shares its gradients as usual. A pass through a
sharded base gathers each block from all workers, so all must do the same number of passes at the same time.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def share_out(denoiser: nn.Module, device: torch.device) -> int:
    """Shard the frozen weights over the workers, block by block; returns the number of blocks.

    Call it after the LoRA is attached. Blocks move to `device` one at a time, so it never holds the whole base.

    Raises RuntimeError: there is no process group.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    trained = {weight for weight in denoiser.parameters() if weight.requires_grad}
    for weight in trained:
        weight.data = weight.data.to(device)
    blocks = _blocks(denoiser)
    for block in (*blocks, denoiser):
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    return len(blocks)


def _blocks(denoiser: nn.Module) -> list[nn.Module]:
    """The units of sharding: the modules that diffusers never splits; of nested ones, the innermost."""
    names = set(getattr(denoiser, "_no_split_modules", None) or ())
    found = [module for module in denoiser.modules() if type(module).__name__ in names]
    return [each for each in found if not any(inner is not each and inner in found for inner in each.modules())]
