"""Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon) for matrices and, flattened, convolutions."""

import torch
from torch import Tensor

COEFFICIENTS = 3.4445, -4.7750, 2.0315


def orthogonalised(matrix_MN: Tensor, iterations: int = 5) -> Tensor:
    """Approximately the nearest semi-orthogonal matrix, by a quintic Newton-Schulz iteration in bfloat16."""
    a, b, c = COEFFICIENTS
    tall = matrix_MN.shape[0] > matrix_MN.shape[1]
    x = (matrix_MN.T if tall else matrix_MN).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix_MN.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonalised updates of AdamW's size (RMS 0.2), so that learning rates carry over."""

    def __init__(
        self, parameters: list[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0
    ):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: torch.nn.Parameter, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
        matrix_MN = parameter.grad.lerp(momentum, group["momentum"]).flatten(1)
        scale = 0.2 * max(matrix_MN.shape) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(orthogonalised(matrix_MN).view_as(parameter), alpha=-group["lr"] * scale)
