"""Training a tiny base: an orthogonalising optimizer, runs that resume, and stages that are kept."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from onbrand.families.family import draw
from onbrand.families.loading import load_family
from tools.tiny_bases import denoiser, text_encoders, train, vae
from tools.tiny_bases.assembly import folder_bytes, new_pipeline, save_base, warm_start
from tools.tiny_bases.card import Facts, card
from tools.tiny_bases.command import app
from tools.tiny_bases.denoiser import Recipe, train_denoiser
from tools.tiny_bases.loop import AveragedWeights, cosine, must_be_finite
from tools.tiny_bases.muon import Muon, orthogonalised

MOMENT = train.Plan(vae_steps=2, clip_steps=2, t5_steps=2, num_scenes=20, recipe=Recipe(steps=2, batch=4), num_scored=2)


def test_an_orthogonalised_matrix_keeps_directions_and_levels_their_strength():
    matrix = torch.randn(24, 60, generator=torch.Generator().manual_seed(0))
    strengths = torch.linalg.svdvals(orthogonalised(matrix))
    assert strengths.min() > 0.5
    assert strengths.max() < 1.3
    assert torch.linalg.svdvals(matrix).max() > 3 * torch.linalg.svdvals(matrix).min()


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (8, 4, 3, 3)])
def test_muon_lowers_a_quadratic(shape: tuple[int, ...]):
    torch.manual_seed(0)
    weight, goal = nn.Parameter(torch.zeros(shape)), torch.randn(shape)
    optimizer = Muon([weight], lr=0.1)
    losses = []
    for _ in range(30):
        loss = (weight - goal).pow(2).mean()
        weight.grad = None
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_the_rate_rises_then_falls_to_its_floor():
    rates = [cosine(step / 10, warmup=(step + 1) / 3, floor=0.1) for step in range(11)]
    assert rates[0] < rates[1] < rates[2]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)


def test_averaged_weights_follow_slowly():
    parameter = nn.Parameter(torch.zeros(1))
    ema = AveragedWeights([parameter], decay=0.9)
    parameter.data.fill_(1)
    ema.update(step=10_000)
    assert ema.averages[0].item() == pytest.approx(0.1)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step():
    with pytest.raises(FloatingPointError, match="step 41"):
        must_be_finite(torch.tensor(float("nan")), 41)


def noisy_regression(module: nn.Module, *, fail_at: int | None = None):
    """A loss with randomness of its own; raises KeyboardInterrupt at its `fail_at`th call."""
    inputs = torch.randn(64, 24, generator=torch.Generator().manual_seed(5))
    calls = 0

    def loss(rows: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise KeyboardInterrupt
        noise = torch.randn(len(rows), 24) * 0.1
        return (module(inputs[rows] + noise) - inputs[rows].flip(1)).pow(2).mean()

    return loss


def small_module() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24))


def run(module: nn.Module, loss, checkpoint: Path) -> int:
    return train_denoiser(module, loss, 64, Recipe(steps=8, batch=4), checkpoint=checkpoint, seed=0, report=print)


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(denoiser, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    unbroken, stopped, resumed = small_module(), small_module(), small_module()
    run(unbroken, noisy_regression(unbroken), tmp_path / "unbroken.safetensors")
    with pytest.raises(KeyboardInterrupt):
        run(stopped, noisy_regression(stopped, fail_at=5), tmp_path / "stopped.safetensors")
    run(resumed, noisy_regression(resumed), tmp_path / "stopped.safetensors")
    for one, other in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_run_with_little_time_ends_early(tmp_path: Path):
    module = small_module()
    recipe = Recipe(steps=10**9, seconds=0.3, batch=4)
    steps = train_denoiser(
        module, noisy_regression(module), 64, recipe, checkpoint=tmp_path / "run.safetensors", seed=0, report=print
    )
    assert 0 < steps < 10**6


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def small_data():
    """The stages draw hundreds of pictures rather than thousands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vae, "NUM_SCENES", 50)
        patch.setattr(vae, "NUM_GENERIC", 50)
        patch.setattr(text_encoders, "NUM_CAPTIONS", 200)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux"])
@pytest.mark.usefixtures("small_data")
def test_training_leaves_a_base_that_loads_and_draws(family: str, work: Path, tmp_path: Path):
    told: list[str] = []
    out = train.train(family, tmp_path / family, work=work, progress=told.append, plan=MOMENT)
    base = load_family(family, out)
    assert draw(base, ["a photo of a red star"], [0], num_steps=2).shape == (1, 3, 64, 64)
    assert folder_bytes(out) < 12_000_000
    assert json.loads((out / "onbrand.json").read_text())["family"] == family
    assert not any(str(work) in path.read_text() for path in out.rglob("*.json"))
    assert "held out" in (out / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("small_data")
def test_stages_that_are_there_are_not_made_again(work: Path, tmp_path: Path):
    train.train("sd15", tmp_path / "first", work=work, progress=lambda line: None, plan=MOMENT)
    before = (work / "vae" / "config.json").stat().st_mtime_ns
    told: list[str] = []
    train.train("sd15", tmp_path / "second", work=work, progress=told.append, plan=MOMENT)
    assert (work / "vae" / "config.json").stat().st_mtime_ns == before
    assert not any("slots" in line or "encoding" in line for line in told)


@pytest.mark.usefixtures("small_data")
def test_a_base_is_replaced_whole(work: Path, tmp_path: Path):
    train.make_parts("sd15", work, MOMENT, 0, print)
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "leftover.txt").write_text("old")
    save_base(new_pipeline("sd15", work), "sd15", folder)
    assert not (folder / "leftover.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_warm_start_copies_what_fits_and_nothing_else():
    source = nn.ModuleDict({"same": nn.Linear(3, 3), "other": nn.Linear(3, 5)})
    target = nn.ModuleDict({"same": nn.Linear(3, 3), "other": nn.Linear(3, 4)})
    kept = target["other"].weight.detach().clone()
    assert warm_start(target, source.state_dict()) == 12
    assert torch.equal(target["same"].weight, source["same"].weight)
    assert torch.equal(target["other"].weight, kept)


def test_the_card_tells_what_was_measured():
    part = {"all3": 0.97, "colour": 1.0, "shape": 0.97, "ground": 1.0}
    scores = {"n": 100, "seen": part, "held_out": {**part, "all3": 0.83}}
    text = card("flux", Facts(1234, 56.0, 24_000, 36.7), scores, 7_400_000)
    assert "| all three | 0.97 | 0.83 |" in text
    assert "| denoiser steps | 1,234 |" in text
    assert "7.4 MB" in text


def test_a_seed_promises_no_more_than_its_card() -> None:
    help_text = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "120"}).output
    assert "same model" not in help_text
    assert "Chooses the pictures and noise" in " ".join(help_text.replace("│", " ").split())
