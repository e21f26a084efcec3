"""The frozen base in parts on all workers (FSDP2), for one that fits no worker's device whole.

The adapter stays whole on every worker, and its gradients go their usual way (`exchange`). A pass through such a base
gathers each block from all workers, so all must do the same number of passes at the same time.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def share_out(denoiser: nn.Module, device: torch.device) -> int:
    """Leave each worker its part of the frozen weights, block by block; returns how many blocks.

    After the LoRA is attached. Blocks move to `device` one at a time: the whole base is never there.

    Raises:
        RuntimeError: there is no process group.
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
    """What is gathered as one: the blocks that diffusers never splits, the innermost of those within others."""
    names = set(getattr(denoiser, "_no_split_modules", None) or ())
    found = [module for module in denoiser.modules() if type(module).__name__ in names]
    return [each for each in found if not any(inner is not each and inner in found for inner in each.modules())]
