"""`training-jobs:check` over HTTP and by the SDK: its findings, its permissions, and that it changes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from PIL import ImageFilter

import onbrand.client as sdk
from onbrand.storage.layout import Key
from tests.conftest import BrandOfPeople, MakeBrand
from tests.unit.test_sandbox_image_features import file_of, scene
from tools.harness.in_process_platform import Platform, upload


@pytest.fixture(scope="module")
async def acme(make_brand: MakeBrand) -> BrandOfPeople:
    return await make_brand("checked")


async def check(platform: Platform, brand: BrandOfPeople, asset_ids: list[str], **config: Any) -> Any:
    async with platform.client(brand.member) as client:
        body = {"model_type": "sd15", "training_config": config, "training_asset_ids": asset_ids}
        return await client.post(f"/v1/brands/{brand.id}/training-jobs:check", json=body)


async def test_pictures_are_examined_and_nothing_is_created(platform: Platform, acme: BrandOfPeople) -> None:
    soft = scene(2, (128, 128)).filter(ImageFilter.GaussianBlur(5))
    async with platform.client(acme.member) as client:
        made = [
            await upload(client, acme.id, file_of(scene(1, (128, 128))), object="logo"),
            await upload(client, acme.id, file_of(soft), object="logo"),
            await upload(client, acme.id, file_of(scene(3, (100, 128))), captions="a wall", object="logo"),
        ]
        answer = await check(platform, acme, [each["id"] for each in made], resolution=128, trigger_word="zilgo")
        jobs = (await client.get(f"/v1/brands/{acme.id}/training-jobs")).json()["data"]
    assert answer.status_code == 200, answer.text
    said = answer.json()
    found = {(each["level"], each["code"], each["file"], each["asset_id"]) for each in said["findings"]}
    third = ("logo-003.png", made[2]["id"])
    assert found == {
        ("warning", "blurred", "logo-002.png", made[1]["id"]),
        ("warning", "small", *third),
        ("error", "no_trigger", *third),
        ("warning", "few_images", None, None),
    }
    assert (said["ok"], said["num_errors"], said["num_warnings"], said["resolution"]) == (False, 1, 3, 128)
    assert all(each["remedy"] and each["name"] in ("logo.png", None) for each in said["findings"])
    assert jobs == []


async def test_a_caption_that_the_base_does_not_read_to_its_end_is_found(
    platform: Platform, make_brand: MakeBrand
) -> None:
    brand = await make_brand("wordy")
    async with platform.client(brand.member) as client:
        captions = "photo of [brand] logo " + "on a white wall " * 12
        made = [await upload(client, brand.id, file_of(scene(4, (128, 128))), captions=captions, object="logo")]
    said = (await check(platform, brand, [each["id"] for each in made], resolution=128)).json()
    [found] = [each for each in said["findings"] if each["code"] == "caption_cut"]
    assert (found["level"], found["asset_id"], said["ok"]) == ("warning", made[0]["id"], True)
    assert "of which the base reads 32" in found["message"]


async def test_a_check_reads_no_stored_bytes(platform: Platform, make_brand: MakeBrand) -> None:
    """Pictures were measured when they were uploaded."""
    brand = await make_brand("measured")
    async with platform.client(brand.member) as client:
        made = [await upload(client, brand.id, file_of(scene(seed, (64, 64)))) for seed in (5, 7)]
    store = platform.store.brand(brand.id)
    for each in made:
        await asyncio.to_thread(store.delete, Key("training-data", each["object_name"]))
    said = (await check(platform, brand, [each["id"] for each in made])).json()
    assert [each["code"] for each in said["findings"]] == ["few_images"]


@pytest.mark.parametrize(
    ("config", "param"),
    [({"rank": 0}, "training_config.rank"), ({"resolution": 65}, "training_config.resolution")],
)
async def test_a_config_out_of_bounds_is_refused_as_by_create(
    platform: Platform, acme: BrandOfPeople, config: dict[str, Any], param: str
) -> None:
    answer = await check(platform, acme, ["0" * 32], **config)
    assert (answer.status_code, answer.json()["param"]) == (422, param)


async def test_a_foreign_asset_is_answered_as_one_that_never_was(
    platform: Platform, acme: BrandOfPeople, make_brand: MakeBrand, pictures: Any
) -> None:
    other = await make_brand("other")
    async with platform.client(other.member) as client:
        foreign = await upload(client, other.id, pictures(9))
    one = await check(platform, acme, [foreign["id"]])
    two = await check(platform, acme, ["00000000-0000-4000-8000-000000000000"])
    assert one.status_code == two.status_code == 404
    assert one.json()["detail"] == two.json()["detail"]


async def test_the_sdk_checks_all_pictures_of_the_brand(
    platform: Platform, make_brand: MakeBrand, pictures: Any
) -> None:
    brand = await make_brand("bysdk")
    async with platform.client(brand.member) as client:
        await upload(client, brand.id, pictures(1))
    with sdk.Onbrand(platform.url, platform.token(brand.member), max_retries=0) as person:
        said = await asyncio.to_thread(person.check_training_data, brand.id, "sd15")
    assert (said.ok, said.num_images, said.trigger_word) == (True, 1, brand.id)
    assert [each.code for each in said.findings] == ["few_images"]
