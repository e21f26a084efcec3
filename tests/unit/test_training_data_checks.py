"""A job's data is checked before training: by ticket, findings are stored, and errors end the job."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import ray
import ray.train

from onbrand.config import Settings
from onbrand.errors import DataRefused, Unavailable
from onbrand.internal.training import TrainingAsset, TrainingSpec
from onbrand.training.data.checks import must_be_fit_to_train
from onbrand.training.ray import driver
from tests.unit.test_sandbox_image_features import features_of, scene
from tests.unit.training_bases import small_plan

JOB = "00000000-0000-4000-8000-000000000001"
PICTURES = {f"asset-{number}": scene(number, (80, 72)) for number in range(3)}


class Line:
    """The internal routes that the data checks use."""

    def __init__(self, captions: list[str], unmeasured: str | None = None) -> None:
        self.findings, self.failed = [], None  # type: ignore[var-annotated]
        self.assets = tuple(
            TrainingAsset(
                id=name,
                caption=caption,
                file=f"logo-{name[-1]}.png",
                features={} if name == unmeasured else asdict(features_of(picture)),
            )
            for (name, picture), caption in zip(PICTURES.items(), captions, strict=True)
        )

    def spec(self) -> TrainingSpec:
        config = {"steps": 2, "resolution": 64}
        return TrainingSpec(
            brand_id="acme", job_id=JOB, user_id="u", name="n", model_type="sd15", training_config=config,
            assets=self.assets,
        )  # fmt: skip

    def report_findings(self, findings: list[dict[str, Any]]) -> None:
        self.findings = findings

    def fail(self, code: str, message: str) -> None:
        self.failed = (code, message)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None: ...


def examine(line: Line) -> None:
    must_be_fit_to_train(line, line.spec(), small_plan(), step=8)


def test_warnings_are_kept_and_the_job_goes_on() -> None:
    line = Line(["photo of acme"] * 3)
    examine(line)
    assert [(each["level"], each["code"]) for each in line.findings] == [("warning", "few_images")]


def test_an_error_ends_it_after_all_findings_were_kept() -> None:
    line = Line(["photo of acme", "a wall", "photo of acme"], unmeasured="asset-2")
    with pytest.raises(DataRefused, match=r"logo-1\.png has a caption without the trigger word 'acme'"):
        examine(line)
    assert [(each["code"], each["file"]) for each in line.findings] == [
        ("no_trigger", "logo-1.png"),
        ("unreadable", "logo-2.png"),
        ("few_images", None),
    ]


def test_the_driver_examines_before_it_asks_ray_for_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(["a wall"] * 3)
    monkeypatch.setattr(driver, "connect", lambda *_: line)
    monkeypatch.setattr(driver, "fit", lambda *_: pytest.fail("the job began"))
    assert driver.run_job(Settings(), "acme", JOB) == "failed"
    assert line.failed is not None
    assert line.failed[0] == "data_refused"
    assert "logo-0.png" in line.failed[1]


def test_the_driver_goes_on_to_train_what_is_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(["photo of acme"] * 3)
    monkeypatch.setattr(driver, "connect", lambda *_: line)
    monkeypatch.setattr(driver, "fit", lambda *_: "completed")
    assert driver.run_job(Settings(), "acme", JOB) == "completed"
    assert line.failed is None


def test_a_job_that_brings_a_file_is_not_examined_but_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(["a wall"] * 3)
    spec = line.spec().model_copy(update={"training_config": {"import": {"bytes": 1}}, "assets": ()})
    monkeypatch.setattr(line, "spec", lambda: spec)
    monkeypatch.setattr(driver, "connect", lambda *_: line)
    monkeypatch.setattr(driver, "import_file", lambda *_: "completed")
    assert driver.run_job(Settings(), "acme", JOB) == "completed"
    assert (line.findings, line.failed) == ([], None)


@pytest.mark.parametrize(
    "ended",
    [
        ray.exceptions.ActorDiedError(),
        ray.exceptions.ActorUnavailableError("away", None),
        ray.train.ControllerError(RuntimeError("no place for the workers in time")),
    ],
)
def test_what_ends_ray_trains_controller_leaves_the_job_open_for_another_attempt(monkeypatch, ended) -> None:
    line = Line(["photo of acme"] * 3)

    def fit(*_: object) -> None:
        raise ended

    monkeypatch.setattr(driver, "connect", lambda *_: line)
    monkeypatch.setattr(driver, "fit", fit)
    with pytest.raises(Unavailable, match="submitted again"):
        driver.run_job(Settings(), "acme", JOB)
    assert line.failed is None


def test_workers_that_fail_again_and_again_fail_the_job(monkeypatch) -> None:
    line = Line(["photo of acme"] * 3)

    def fit(*_: object) -> None:
        raise ray.train.WorkerGroupError("a worker", {0: ValueError("inner")})

    monkeypatch.setattr(driver, "connect", lambda *_: line)
    monkeypatch.setattr(driver, "fit", fit)
    assert driver.run_job(Settings(), "acme", JOB) == "failed"
    assert line.failed is not None
    assert line.failed[0] == "training_failed"
