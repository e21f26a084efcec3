"""Importing another trainer's file: the route accepts or refuses it, a job makes it a model, and no upload remains."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import safetensors.torch
import torch

import onbrand.client as sdk
from onbrand.cli import main
from onbrand.config import Settings
from onbrand.errors import NotFound
from onbrand.families.bases import base_source
from onbrand.families.loading import load_family
from onbrand.families.lora_conversion import read_foreign
from onbrand.families.lora_kohya import kohya_file
from onbrand.internal.training import PublishedModel, ReportResponse, TrainingSpec
from onbrand.lora_names import ImportOptions
from onbrand.storage.layout import import_file
from onbrand.training import lora_import
from tests.conftest import BrandOfPeople, MakeBrand
from tools.harness.in_process_platform import Platform, weights
from tools.harness.tiny_families import adapter_bytes, family_of


@pytest.fixture(scope="module")
async def acme(make_brand: MakeBrand) -> BrandOfPeople:
    return await make_brand("importing")


@pytest.fixture(scope="module")
def kohya() -> bytes:
    return b"".join(kohya_file(adapter_bytes(family_of("sd15"), 2, 0, "attention"), "sd15"))


async def send(platform: Platform, brand: BrandOfPeople, data: bytes, **fields: str) -> httpx.Response:
    async with platform.client(brand.member) as client:
        form = {"model_type": "sd15"} | fields
        files = {"file": ("a.safetensors", data)}
        return await client.post(f"/v1/brands/{brand.id}/models:import", data=form, files=files)


async def exists(platform: Platform, brand: BrandOfPeople, job_id: str) -> bool:
    return await asyncio.to_thread(platform.store.brand(brand.id).exists, import_file(brand.id, job_id))


async def test_a_file_becomes_a_model_by_its_job_and_is_gone_then(
    platform: Platform, acme: BrandOfPeople, kohya: bytes
) -> None:
    answer = await send(platform, acme, kohya, trigger_word="zilgo")
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["status"], job["training_asset_ids"], job["training_config"]["import"]["bytes"]) == (
        "pending",
        [],
        len(kohya),
    )
    async with platform.system(acme.ticket(job["id"])) as worker:
        assert await worker.read_import() == kohya
        family = load_family("sd15", base_source("sd15", {}))
        made = lora_import.import_adapter(await worker.read_import(), family, "zilgo", "a title")
        facts = {"rank": made.rank, "trigger_word": "zilgo", "base_revision": family.revision, "metrics": {}}
        model = await worker.publish(made.data, facts)
    async with platform.client(acme.member) as client:
        done = (await client.get(f"/v1/brands/{acme.id}/training-jobs/{job['id']}")).json()
        found = (await client.get(f"/v1/brands/{acme.id}/models/{model.id}")).json()
    assert (done["status"], found["rank"], found["trigger_word"]) == ("completed", 2, "zilgo")
    assert not await exists(platform, acme, job["id"])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda tensors: tensors | {"lora_unet_x.dora_scale": torch.ones(2)}, "DoRA"),
        (lambda tensors: tensors | {"lora_te_x.lora_down.weight": torch.ones(2, 2)}, "text encoder"),
        (lambda tensors: dict(sorted(tensors.items())[2:]), "for every layer"),
        (lambda tensors: {key: value * float("inf") for key, value in tensors.items()}, "not finite"),
    ],
)
async def test_a_file_that_cannot_be_served_is_refused_at_the_door_and_nothing_is_created(
    platform: Platform, make_brand: MakeBrand, kohya: bytes, change: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    brand = await make_brand("refused")
    answer = await send(platform, brand, safetensors.torch.save(change(safetensors.torch.load(kohya))))
    assert (answer.status_code, answer.json()["code"]) == (422, "adapter_refused")
    assert why in answer.json()["detail"]
    assert [brand.id in line.message for line in caplog.records if line.name == "onbrand.security"] == [True]
    async with platform.client(brand.member) as client:
        assert (await client.get(f"/v1/brands/{brand.id}/training-jobs")).json()["data"] == []


def with_text_encoder(data: bytes, num: int = 2) -> bytes:
    layers = {
        f"lora_te_text_model_encoder_layers_{n}_mlp_fc1.lora_{side}.weight": torch.full(
            shape, 0.5, dtype=torch.bfloat16
        )
        for n in range(num)
        for side, shape in (("down", (2, 6)), ("up", (5, 2)))
    }
    return safetensors.torch.save(safetensors.torch.load(data) | layers)


async def test_text_encoders_are_left_out_on_wish_and_the_answer_says_how_much_is_lost(
    platform: Platform, acme: BrandOfPeople, kohya: bytes
) -> None:
    data = with_text_encoder(kohya)
    refused = await send(platform, acme, data)
    assert (refused.status_code, refused.json()["code"]) == (422, "adapter_refused")
    assert "2 of its" in refused.json()["detail"]
    assert "text_encoder=drop" in refused.json()["detail"]
    answer = await send(platform, acme, data, text_encoder="drop")
    assert answer.status_code == 202, answer.text
    said = answer.json()["training_config"]["import"]
    assert (said["text_encoder"], said["dropped"]["layers"]) == ("drop", 2)
    family = load_family("sd15", base_source("sd15", {}))
    by_the_job = read_foreign(data, family, ImportOptions("drop")).dropped
    assert by_the_job is not None
    assert said["dropped"] == pytest.approx(by_the_job.as_json(), rel=1e-3)
    assert 0 < said["dropped"]["norm_share"] < 1


def code_of(line: list[str]) -> object:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        main(line)
    return ended.value.code


async def test_the_sdk_and_the_command_take_the_wish_and_tell_what_is_lost(
    platform: Platform,
    acme: BrandOfPeople,
    kohya: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "with-text.safetensors"
    file.write_bytes(with_text_encoder(kohya))
    with sdk.Onbrand(platform.url, platform.token(acme.member), max_retries=0) as person:
        send_it = partial(person.models.import_file, acme.id, "sd15", file, text_encoder="drop")
        assert (await asyncio.to_thread(send_it)).training_config["import"]["dropped"]["layers"] == 2
        monkeypatch.setattr("onbrand.cli.models.connect", lambda: person)
        line = ["model", "import", str(file), "--text-encoder", "drop", "--no-wait", "--brand", acme.id]
        assert await asyncio.to_thread(code_of, line) in (None, 0)
    assert "Left out: 2 layers of text encoders, " in capsys.readouterr().err


async def test_nothing_is_said_to_be_dropped_where_nothing_is(
    platform: Platform, acme: BrandOfPeople, kohya: bytes
) -> None:
    said = (await send(platform, acme, kohya, text_encoder="drop")).json()["training_config"]["import"]
    assert "dropped" not in said


def settings_of(**said: str) -> bytes:
    """A small diffusers file with these settings in its header."""
    tensors = {f"unet.mid.to_q.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    text = "{" + ", ".join(f'"unet.{name}": {value}' for name, value in said.items()) + "}"
    return safetensors.torch.save(tensors, metadata={"lora_adapter_metadata": text})


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "1e999", "1" + "0" * 400])
@pytest.mark.parametrize("field", ["r", "lora_alpha"])
async def test_settings_that_are_no_numbers_are_refused_at_the_door(
    platform: Platform, acme: BrandOfPeople, field: str, number: str
) -> None:
    answer = await send(platform, acme, settings_of(**({"r": "2", "lora_alpha": "2"} | {field: number})))
    assert (answer.status_code, answer.json()["code"]) == (422, "adapter_refused")
    assert f"lora_adapter_metadata holds {number[:8]}" in answer.json()["detail"]


def peft_file() -> bytes:
    return safetensors.torch.save({f"base_model.model.mid.to_q.lora_{side}.weight": torch.ones(2, 2) for side in "AB"})


async def test_an_alpha_that_is_kept_in_another_file_is_asked_for(platform: Platform, acme: BrandOfPeople) -> None:
    answer = await send(platform, acme, peft_file())
    assert answer.status_code == 422
    assert "say it as lora_alpha" in answer.json()["detail"]
    answer = await send(platform, acme, peft_file(), lora_alpha="16")
    assert answer.json()["training_config"]["import"]["lora_alpha"] == 16


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda tensors: tensors | {"lora_unet_x.diff": torch.ones(2)}, "lora_unet_x.diff is not zero"),
        (lambda tensors: tensors | {"lora_unet_x.diff_b": -torch.ones(2)}, "lora_unet_x.diff_b is not zero"),
        (lambda tensors: {key: value.double() for key, value in tensors.items()}, "dtype of lora_unet"),
    ],
)
async def test_the_door_names_the_tensor_that_is_why(
    platform: Platform, acme: BrandOfPeople, kohya: bytes, change: Any, why: str
) -> None:
    answer = await send(platform, acme, safetensors.torch.save(change(safetensors.torch.load(kohya))))
    assert answer.status_code == 422
    assert why in answer.json()["detail"]


async def test_zeros_and_alphas_of_any_dtype_pass_the_door(
    platform: Platform, acme: BrandOfPeople, kohya: bytes
) -> None:
    tensors = safetensors.torch.load(kohya) | {"lora_unet_x.diff_b": -torch.zeros(5)}
    alphas = {key: value.to(torch.int64).reshape(1) for key, value in tensors.items() if key.endswith(".alpha")}
    last = next(reversed(alphas))
    data = safetensors.torch.save(tensors | alphas | {last: alphas[last].double()})
    answer = await send(platform, acme, data)
    assert answer.status_code == 202, answer.text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text_encoder": "keep"}, "text_encoder"),
        ({"lora_alpha": "nan"}, "lora_alpha"),
        ({"lora_alpha": "1e400"}, "lora_alpha"),
        ({"lora_alpha": "0"}, "lora_alpha"),
        ({"model_type": "sd99"}, "model_type"),
        ({"trigger_word": "!"}, "training_config.trigger_word"),
        ({"colour": "red"}, "colour"),
        ({"name": " "}, "name"),
    ],
)
async def test_a_field_that_is_wrong_is_named(
    platform: Platform, acme: BrandOfPeople, fields: dict[str, str], param: str
) -> None:
    answer = await send(platform, acme, weights(), **fields)
    assert (answer.status_code, answer.json()["param"]) == (422, param)


async def test_a_failed_import_keeps_nothing_and_cannot_be_retried(
    platform: Platform, acme: BrandOfPeople, kohya: bytes
) -> None:
    job_id = (await send(platform, acme, kohya)).json()["id"]
    assert await exists(platform, acme, job_id)
    async with platform.system(acme.ticket(job_id)) as worker:
        await worker.fail("adapter_refused", "made for another base")
    assert not await exists(platform, acme, job_id)
    async with platform.client(acme.member) as client:
        answer = await client.post(f"/v1/brands/{acme.id}/training-jobs/{job_id}/retry")
    assert answer.status_code == 409
    assert "import it again" in answer.json()["detail"]


async def test_no_link_opens_what_was_sent(platform: Platform, acme: BrandOfPeople, kohya: bytes) -> None:
    job_id = (await send(platform, acme, kohya)).json()["id"]
    with pytest.raises(NotFound):
        platform.store.brand(acme.id).link(import_file(acme.id, job_id), 60)


async def test_findings_of_a_job_are_kept_in_its_row(platform: Platform, acme: BrandOfPeople, kohya: bytes) -> None:
    job_id = (await send(platform, acme, kohya)).json()["id"]
    finding = {"level": "warning", "code": "blurred", "file": "logo-001.png", "message": "why", "remedy": "what"}
    async with platform.system(acme.ticket(job_id)) as worker:
        await worker.report_findings([finding])
        await worker.report(5, {"step": 1})
    async with platform.client(acme.member) as client:
        job = (await client.get(f"/v1/brands/{acme.id}/training-jobs/{job_id}")).json()
    assert [each.code for each in sdk.TrainingJob.model_validate(job).findings] == ["blurred"]
    assert job["metrics"]["step"] == 1
    assert [(each["code"], each["file"], each["remedy"]) for each in job["metrics"]["findings"]] == [
        ("blurred", "logo-001.png", "what")
    ]


# what runs on the cluster


class Worker:
    """The internal routes of one import."""

    def __init__(self, data: bytes | None, cancel: bool = False, options: dict[str, Any] | None = None) -> None:
        self.data, self.cancel, self.options = data, cancel, options or {}
        self.published: dict[str, Any] = {}
        self.ended: list[tuple[str, ...]] = []

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None: ...

    def spec(self) -> TrainingSpec:
        config = {"import": {"bytes": 1} | self.options, "trigger_word": "zilgo"}
        said = {"brand_id": "acme", "job_id": "j", "user_id": "u", "name": "n", "model_type": "sd15", "assets": ()}
        return TrainingSpec(training_config=config, **said)  # type: ignore[arg-type]

    def report(self, *_: object) -> ReportResponse:
        return ReportResponse(cancel_requested=self.cancel)

    def read_import(self) -> bytes:
        if self.data is None:
            raise NotFound("there is no such object")
        return self.data

    def publish(self, data: bytes, facts: dict[str, Any]) -> PublishedModel:
        self.published = facts | {"data": data}
        return PublishedModel(id="m", name="sd15-lora-v1", model_type="sd15", version=1, sha256="")

    def fail(self, code: str, message: str) -> None:
        self.ended.append((code, message))

    def canceled(self) -> None:
        self.ended.append(("canceled",))


class Ticket:
    def newest(self) -> str:
        return "a ticket"


def test_the_models_row_says_what_was_left_out(kohya: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(with_text_encoder(kohya), options={"text_encoder": "drop"})
    assert outcome_of(worker, monkeypatch) == "completed"
    assert worker.published["metrics"]["dropped"]["layers"] == 2


def outcome_of(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(lora_import, "SystemClient", lambda *_: worker)
    monkeypatch.setattr(lora_import, "Settings", lambda: Settings(device="cpu"))
    return lora_import.import_worker(Ticket())


def test_the_cluster_publishes_what_it_proved(kohya: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(kohya)
    assert outcome_of(worker, monkeypatch) == "completed"
    assert (worker.published["rank"], worker.published["trigger_word"]) == (2, "zilgo")
    assert worker.published["metrics"]["imported"] == "kohya"
    assert worker.published["metrics"]["difference"] <= 1e-4


@pytest.mark.parametrize(
    ("data", "told"),
    [(None, "import it again"), (weights(), "no layer 'unet.mid'")],
    ids=["gone", "of another base"],
)
def test_the_cluster_says_why_it_did_not(
    data: bytes | None, told: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(data)
    assert outcome_of(worker, monkeypatch) == "failed"
    assert worker.ended[0][0] == "adapter_refused"
    assert told in worker.ended[0][1]
    assert "onbrand.security" in [line.name for line in caplog.records]


def test_a_canceled_import_publishes_nothing(kohya: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(kohya, cancel=True)
    assert outcome_of(worker, monkeypatch) == "canceled"
    assert (worker.ended, worker.published) == ([("canceled",)], {})
