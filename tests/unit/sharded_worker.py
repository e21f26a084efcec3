"""One of several processes that share a base: `python -m tests.unit.sharded_worker FAMILY RANK NUM FOLDER`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch

from onbrand.training import samples
from onbrand.training.data.dataset import Picture
from onbrand.training.data.encoding import encode
from onbrand.training.export import export, proof_picture
from onbrand.training.memory.savings import savings_levels
from onbrand.training.ray.collectives import Collectives, ProcessGroup
from onbrand.training.trainer import Trainer
from tests.unit.training_bases import SIDE, base_of, drawn, fresh_family, held_out_examples, small_plan

NUM_STEPS = 3


def trainer_of(name: str, collectives: Collectives | None = None, sharded: bool = False) -> Trainer:
    """A trainer on pictures of two sizes, so that workers differ in their number of passes; three are held out."""
    family, plan = fresh_family(name), small_plan(name, prior_rows=0, steps=NUM_STEPS, validate_every=1)
    wide = [Picture(drawn(n).image.resize((160, 80)), f"photo of acme bag {n}", f"wide-{n}") for n in (7, 8)]
    examples = encode(family, [*(drawn(n) for n in range(3)), *wide], SIDE, collectives=collectives)
    savings = replace(next(savings_levels(plan, large=False)), sharded=sharded)
    return Trainer(family, plan, examples, collectives, held_out_examples(family, 3), savings)


def results_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The results of a run: weights, losses on held-out pictures, samples."""
    while not trainer.done:
        trainer.train_step()
    tensors = {f"weight{n}": weight.detach().clone() for n, weight in enumerate(trainer.weights)}
    tensors["validation"] = torch.tensor([loss for _, loss in trainer.validations.history], dtype=torch.float64)
    return tensors | {"samples": samples.draw_samples(trainer, ["photo of acme logo", "a cat", "a dog"])}


def own_numbers(trainer: Trainer) -> int:
    """The number of the base's weights in this process."""
    frozen = [weight for weight in trainer.family.denoiser.parameters() if not weight.requires_grad]
    return sum(weight.to_local().numel() if hasattr(weight, "to_local") else weight.numel() for weight in frozen)


def main(name: str, rank: int, num_workers: int, folder: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=num_workers
    )
    trainer = trainer_of(name, ProcessGroup(torch.device("cpu")), sharded=True)
    tensors = results_of(trainer)
    tensors["own_numbers"] = torch.tensor(own_numbers(trainer))
    with trainer.published():
        if rank:
            proof_picture(trainer.family, trainer.plan, "photo of acme logo")
        else:
            export(trainer.family, base_of(name), trainer.plan, trainer.adapter(), "photo of acme logo", "a title")
    safetensors.torch.save_file(tensors, folder / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
