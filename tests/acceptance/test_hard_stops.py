"""SIGKILL loses no finished work, and unfinished work continues."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
import safetensors.torch
import torch

from tests.acceptance import kill_training
from tests.acceptance.conftest import Trained, draw_pictures
from tools.harness.platform_process import Person, Running, wait_for

pytestmark = pytest.mark.timeout(900)
LONG = ("train", "--model-type", "sd15", "--steps", "70", "--rank", "4", "--batch-size", "4", "--no-wait")
FIRST = "sd15-lora-v1"


def job_of(person: Person, job_id: str) -> dict[str, Any]:
    """The job, read by HTTP, as repeated starts of the command line would take the processor from it."""
    return dict(person.reads(f"/v1/brands/acme/training-jobs/{job_id}"))


def is_under_way(person: Person, job_id: str) -> bool:
    job = job_of(person, job_id)
    assert job["status"] in ("pending", "training"), job
    return bool(job["status"] == "training" and job["progress"] >= 30)


def end_of(person: Person, job_id: str, seconds: float = 400) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        try:
            job = job_of(person, job_id)
        except httpx.TransportError:  # the platform is still on its way
            return None
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 503:
                raise
            return None
        return job if job["status"] in ("completed", "failed", "canceled") else None

    return dict(wait_for(ended, seconds, f"the end of job {job_id}"))


@pytest.mark.long
def test_a_training_whose_controller_and_dispatcher_are_killed_ends_with_the_bits_of_the_unbroken_one(
    platform: Running,
) -> None:
    """`integration/test_training_jobs.py` kills workers and drivers; `acceptance.kill_training` kills all kinds."""
    controller_at_30 = kill_training.Plan(points=2, seed=10)  # past two checkpoints, of which it goes on from one
    verdict = kill_training.kill(platform, controller_at_30, ("controller", "dispatcher"))
    assert verdict.is_good, verdict.as_json()
    assert verdict.resumed_at


def test_a_platform_killed_hard_keeps_what_was_finished_and_goes_on(
    platform: Running, acme: Trained, tmp_path: Path
) -> None:
    """The interrupted job had begun with the adapter of the job before it, and trains that one further."""
    models = {model["id"] for model in acme.person.says("model", "list")["data"]}
    job = acme.person.says(*LONG, "--continue", FIRST)
    wait_for(lambda: is_under_way(acme.person, job["id"]), 240, "some progress")

    platform.send(signal.SIGKILL)
    platform.start()

    assert {model["id"] for model in acme.person.says("model", "list")["data"]} >= models
    picture = acme.generation["images"][0]["id"]
    saved = Path(acme.person.says("image", "download", picture, "--out", tmp_path)["path"])
    assert saved.read_bytes() == Path(acme.generation["paths"][0]).read_bytes()
    ended = end_of(acme.person, job["id"])
    assert ended["status"] == "completed", ended["error"]
    began, became = [directions(acme.person, name, tmp_path) for name in (FIRST, Path(ended["model_url"]).stem)]
    likeness = torch.nn.functional.cosine_similarity(began, became, dim=0)
    assert 0.5 < likeness < 0.99999, "drawn by lot anew, it would be near 0; left as it was, 1"


def directions(person: Person, model: str, folder: Path) -> torch.Tensor:
    """Every A of an adapter as one vector. A is random at first and changes little in training."""
    path = person.says("model", "download", model, "--out", folder / model)["path"]
    weights = safetensors.torch.load_file(path)
    return torch.cat([weights[key].float().flatten() for key in sorted(weights) if "lora_A" in key])


def test_a_database_that_dies_under_a_running_platform_is_started_again(platform: Running, acme: Trained) -> None:
    before = acme.person.says("model", "list")
    file = platform.data_dir / "postgres" / "postmaster.pid"
    server = int(file.read_text().split("\n", 1)[0])
    os.kill(server, signal.SIGKILL)

    def answers() -> bool:
        return acme.person.tries("model", "list", "--json").returncode == 0

    wait_for(answers, 90, "the platform to answer again")
    assert acme.person.says("model", "list") == before
    assert int(file.read_text().split("\n", 1)[0]) != server


def test_pictures_can_be_uploaded_after_a_hard_restart(platform: Running, acme: Trained, tmp_path: Path) -> None:
    before = len(acme.person.says("asset", "list")["data"])
    new = draw_pictures(tmp_path / "more", 8)[-1]
    acme.person.says("asset", "upload", new, "--caption", "photo of [brand] logo")
    assert len(acme.person.says("asset", "list")["data"]) == before + 1
