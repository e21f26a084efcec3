"""Common parts of the training stages: a cosine schedule, averaged weights, and checkpoints to resume a stopped run."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn


def cosine(done: float, *, warmup: float, floor: float = 0.0) -> float:
    """Share of the peak learning rate at the share `done` of the run: a half cosine down to `floor`.

    `warmup` grows from 0 and scales the result until it reaches 1.
    """
    falling = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return min(1.0, warmup) * (floor + (1 - floor) * falling)


class AveragedWeights:
    """Exponential moving average of parameters (EMA), with a short memory at the start."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average in the current parameters; the decay is at most (1 + step) / (10 + step)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        """Overwrite the parameters with their averages."""
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            parameter.copy_(average)


class Checkpoint:
    """One file to resume a stopped run from: module, optimizer(s), averages, random state and step."""

    def __init__(self, path: Path, module: nn.Module, optimizers: list[torch.optim.Optimizer], ema: AveragedWeights):
        self.path, self.module, self.optimizers, self.ema = path, module, optimizers, ema

    def save(self, step: int, seconds: float) -> None:
        """Write the state after `step` steps and `seconds` of training; replaces the file atomically."""
        tensors = {f"module/{name}": value for name, value in self.module.state_dict().items()}
        tensors |= {f"average/{number}": average for number, average in enumerate(self.ema.averages)}
        tensors |= {f"optimizer/{place}/{name}": value for place, name, value in self._moments()}
        tensors["random"] = torch.get_rng_state()
        partial = self.path.with_suffix(".partial")
        whole = {name: value.contiguous() for name, value in tensors.items()}
        safetensors.torch.save_file(whole, partial, metadata={"step": str(step), "seconds": str(seconds)})
        partial.replace(self.path)

    def resume(self) -> tuple[int, float]:
        """Restore the saved state, if there is one; returns the steps and seconds already spent."""
        if not self.path.exists():
            return 0, 0.0
        with safetensors.safe_open(self.path, framework="pt") as file:
            tensors, facts = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        self.module.load_state_dict(_below("module/", tensors))
        for place, _, state in self._states():
            state.update(_below(f"optimizer/{place}/", tensors))
        self.ema.averages = _averages(tensors)
        torch.set_rng_state(tensors["random"])
        return int(facts["step"]), float(facts["seconds"])

    def _states(self) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """(key, parameter, its state) of every parameter of every optimizer, always in the same order."""
        for number, optimizer in enumerate(self.optimizers):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for index, parameter in enumerate(parameters):
                yield f"{number}/{index}", parameter, optimizer.state[parameter]

    def _moments(self) -> Iterator[tuple[str, str, Tensor]]:
        for place, _, state in self._states():
            yield from ((place, name, value) for name, value in state.items())


def averaged_weights(checkpoint: Path, module: nn.Module) -> dict[str, Tensor]:
    """The averages in a checkpoint, by parameter names of their module."""
    names = [name for name, _ in module.named_parameters()]
    return dict(zip(names, _averages(safetensors.torch.load_file(checkpoint)), strict=True))


def _averages(tensors: dict[str, Tensor]) -> list[Tensor]:
    numbered = _below("average/", tensors)
    return [numbered[number] for number in sorted(numbered, key=int)]


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def set_learning_rate(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    """Scale every group's own peak rate, which is kept as `peak`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("peak", group["lr"])
            group["lr"] = group["peak"] * share


def must_be_finite(loss: Tensor, step: int) -> None:
    """Raise FloatingPointError naming the step: further training would only spread the damage."""
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss at step {step} is {loss.item()}; lower the learning rate")
