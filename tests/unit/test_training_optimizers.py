"""Optimizers equal their originals, and resume bit by bit."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from onbrand.training.optimizers import (
    AdamW8bit,
    Prodigy,
    dequantised,
    dynamic_code,
    make_optimizer,
    quantised,
    restore,
    saved_numbers,
    saved_tensors,
)
from tests.unit.training_bases import small_plan

KINDS = ("adamw", "adamw8bit", "prodigy")


def weights(seed: int = 0) -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in ((80, 64), (7,))]


def gradients_at(step: int, like: list[nn.Parameter]) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(100 + step)
    return [0.1 * weight.detach() + 0.05 * torch.randn(weight.shape, generator=random) for weight in like]


def run(optimizer: torch.optim.Optimizer, own: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        for weight, gradient in zip(own, gradients_at(step, own), strict=True):
            weight.grad = gradient
        optimizer.step()


def test_the_dynamic_code_has_256_values_denser_near_zero():
    for signed in (True, False):
        code = dynamic_code(signed)
        assert len(code) == len(code.unique()) == 256
        assert (code.diff() > 0).all()
        assert code.max() == 1
        assert (code < 0).any() == signed
    assert dynamic_code(False)[1] < 1e-6


def test_values_come_back_from_8_bits_within_a_few_percent_even_beside_an_outlier():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    values[300] = 1000.0
    back = dequantised(*quantised(values, signed=True), values.shape, signed=True)
    assert back[300] == 1000.0
    quiet = torch.cat([values[:256], values[512:]])  # blocks without the outlier
    kept = torch.cat([back[:256], back[512:]])
    assert (kept - quiet).abs().mean() < 0.02 * quiet.abs().mean()
    assert torch.equal(dequantised(*quantised(torch.zeros(300), True), torch.Size([300]), True), torch.zeros(300))


def test_8_bit_moments_lead_where_32_bit_moments_do():
    ours, theirs = weights(), weights()
    arguments = {"lr": 1e-2, "betas": (0.9, 0.999), "weight_decay": 1e-2}
    run(AdamW8bit(ours, **arguments), ours, range(40))
    run(torch.optim.AdamW(theirs, **arguments), theirs, range(40))
    moved = (theirs[0] - weights()[0]).abs().mean()
    assert (ours[0] - theirs[0]).abs().mean() < 0.05 * moved
    torch.testing.assert_close(ours[1], theirs[1])  # small tensors are kept in 32 bits


def test_8_bit_moments_take_a_quarter_of_the_memory():
    own = weights()
    optimizer = AdamW8bit(own, lr=1e-2)
    run(optimizer, own, range(2))
    state = optimizer.state[own[0]]
    num_bytes = sum(value.numel() * value.element_size() for value in state.values())
    assert num_bytes < 0.27 * 2 * 4 * own[0].numel()


def test_prodigy_follows_the_papers_algorithm():
    """Algorithm 4 of Mishchenko & Defazio 2023, written out for one weight of one number."""
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = Prodigy([weight], weight_decay=0.01)
    x, x0, m, v, s, r, d, d0 = 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1e-6, 1e-6
    for step in range(30):
        g = float(torch.sin(torch.tensor(step / 9.0))) + 2 * x
        weight.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        root = 0.999**0.5
        r = root * r + (d / d0) * d * g * (x0 - x)
        s = root * s + (d / d0) * d * g
        m, v = 0.9 * m + 0.1 * d * g, 0.999 * v + 0.001 * d * d * g * g
        after = max(d, r / abs(s))
        x = x * (1 - 0.01 * d) - d * m / (v**0.5 + after * 1e-8)
        d = after
        assert weight.item() == pytest.approx(x, rel=1e-9)
        assert optimizer.param_groups[0]["d"] == pytest.approx(d, rel=1e-9)
    assert d > 1e-4


def test_prodigy_finds_a_step_size_that_brings_a_valley_down():
    weight = nn.Parameter(torch.full((50,), 3.0))
    optimizer = Prodigy([weight])
    for _ in range(300):
        weight.grad = 2 * weight.detach()
        optimizer.step()
    assert weight.abs().max() < 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_optimizer_goes_on_with_the_same_bits(kind):
    plan = replace(small_plan(), optimizer=kind, learning_rate=1.0 if kind == "prodigy" else 1e-2)
    unbroken = weights()
    run(make_optimizer(plan, unbroken), unbroken, range(12))
    first = weights()
    killed = make_optimizer(plan, first)
    run(killed, first, range(5))
    kept = saved_tensors(killed, {"a": first[0], "b": first[1]}), saved_numbers(killed)
    kept = ({name: value.clone() for name, value in kept[0].items()}, kept[1])
    heir = [nn.Parameter(weight.detach().clone()) for weight in first]
    resumed = make_optimizer(plan, heir)
    restore(resumed, {"a": heir[0], "b": heir[1]}, *kept)
    run(resumed, heir, range(5, 12))
    assert all(torch.equal(a, b) for a, b in zip(heir, unbroken, strict=True))
