"""A model's file over HTTP: a link to the published file, and the same adapter with kohya's names."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import safetensors.numpy
from psycopg.conninfo import conninfo_to_dict

import onbrand.client as sdk
from onbrand.api.http.bytes_in_progress import BytesInProgress
from onbrand.config import Limits
from onbrand.db.logins import DatabaseUrls
from onbrand.services import models
from onbrand.storage.layout import Key
from tests.conftest import BrandOfPeople, MakeBrand
from tools.harness.in_process_platform import Platform, weights

SECURITY = "onbrand.security"


@pytest.fixture(scope="module")
async def acme(platform: Platform, make_brand: MakeBrand, pictures: Any) -> BrandOfPeople:
    """A brand with one model, sd15-lora-v1."""
    brand = await make_brand("files")
    await platform.train(brand, pictures(1))
    return brand


def is_the_same_adapter(kohya: bytes, brand_id: str) -> bool:
    published, found = safetensors.numpy.load(weights(brand_id)), safetensors.numpy.load(kohya)
    return (
        sorted(found) == [f"lora_unet_mid.{part}" for part in ("alpha", "lora_down.weight", "lora_up.weight")]
        and np.array_equal(found["lora_unet_mid.lora_down.weight"], published["unet.mid.lora_A.weight"])
        and np.array_equal(found["lora_unet_mid.lora_up.weight"], published["unet.mid.lora_B.weight"])
        and found["lora_unet_mid.alpha"] == 4
    )


async def test_kohyas_format_comes_at_once_as_a_file_and_is_recorded(platform: Platform, acme: BrandOfPeople) -> None:
    async with platform.client(acme.member) as client:
        answer = await client.get(f"/v1/brands/{acme.id}/models/sd15-lora-v1/download?format=kohya")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream")
    assert answer.headers["content-disposition"] == 'attachment; filename="sd15-lora-v1-kohya.safetensors"'
    assert is_the_same_adapter(answer.content, acme.id)
    async with platform.client(acme.admin) as admin:
        line = (await admin.get(f"/v1/brands/{acme.id}/audit-events")).json()["data"][0]
    assert (line["action"], line["detail"]["format"], line["user_id"]) == (
        "model.download",
        "kohya",
        acme.member.user_id,
    )


async def test_answers_that_lie_in_memory_count_as_bytes_under_way(platform: Platform, acme: BrandOfPeople) -> None:
    before = platform.app.state.bodies
    bodies = platform.app.state.bodies = BytesInProgress(Limits(account_body_bytes=100_000))
    path = f"/v1/brands/{acme.id}/models/sd15-lora-v1/download"
    try:
        async with platform.client(acme.member) as client:
            with bodies.held(acme.member.user_id, 100_000 - len(weights(acme.id)) + 1):
                assert (await client.get(f"{path}?format=kohya")).status_code == 429
                assert (await client.get(path)).status_code == 200
            assert [(await client.get(f"{path}?format=kohya")).status_code for _ in range(2)] == [200, 200]
    finally:
        platform.app.state.bodies = before
    assert len(bodies) == 0


async def test_a_conversion_holds_no_transaction(
    platform: Platform, acme: BrandOfPeople, database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def converted(data: bytes, model_type: str) -> list[bytes]:
        with psycopg.connect(database.owner_url) as owner:
            row = owner.execute(
                "select count(*) from pg_stat_activity where usename = %s and datname = current_database()"
                " and xact_start is not null",
                [conninfo_to_dict(database.web_url)["user"]],
            ).fetchone()
        seen.append(row[0] if row else -1)
        return [data]

    monkeypatch.setattr(models, "kohya_file", converted)
    async with platform.client(acme.member) as client:
        answer = await client.get(f"/v1/brands/{acme.id}/models/sd15-lora-v1/download?format=kohya")
    assert (answer.status_code, answer.content, seen) == (200, weights(acme.id), [0])


async def test_a_format_that_is_none_is_refused_by_name(platform: Platform, acme: BrandOfPeople) -> None:
    async with platform.client(acme.member) as client:
        answer = await client.get(f"/v1/brands/{acme.id}/models/sd15-lora-v1/download?format=pickle")
    assert (answer.status_code, answer.json()["param"]) == (422, "format")


async def test_another_brand_hears_of_no_such_model(platform: Platform, acme: BrandOfPeople, make_brand: Any) -> None:
    other = await make_brand("other")
    async with platform.client(other.member) as client:
        answer = await client.get(f"/v1/brands/{acme.id}/models/sd15-lora-v1/download?format=kohya")
    assert answer.status_code == 404


async def test_bytes_that_were_changed_in_the_store_are_not_handed_out(
    platform: Platform, make_brand: MakeBrand, pictures: Any, caplog: pytest.LogCaptureFixture
) -> None:
    brand = await make_brand("changed")
    await platform.train(brand, pictures(1))
    key = Key("models", f"{brand.id}/sd15-lora-v1.safetensors")
    await asyncio.to_thread(platform.store.brand(brand.id).write, key, weights("other"))
    async with platform.client(brand.member) as client:
        answer = await client.get(f"/v1/brands/{brand.id}/models/sd15-lora-v1/download?format=kohya")
    assert (answer.status_code, answer.json()["code"]) == (422, "not_as_published")
    assert [line.name for line in caplog.records if "not those that were published" in line.message] == [SECURITY]


async def test_the_sdk_saves_both(platform: Platform, acme: BrandOfPeople, tmp_path: Path) -> None:
    with sdk.Onbrand(platform.url, platform.token(acme.member), max_retries=0) as person:
        model = await asyncio.to_thread(person.models.get, acme.id, "sd15-lora-v1")
        paths = [await asyncio.to_thread(model.download, tmp_path, form) for form in ("diffusers", "kohya")]
    assert [path.name for path in paths] == ["sd15-lora-v1.safetensors", "sd15-lora-v1-kohya.safetensors"]
    assert paths[0].read_bytes() == weights(acme.id)
    assert is_the_same_adapter(paths[1].read_bytes(), acme.id)
