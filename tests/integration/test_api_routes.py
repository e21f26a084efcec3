"""The five steps and the routes around them, over HTTP on the real database and store."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Any

import httpx
import pytest

from onbrand import errors
from tests.conftest import PASSWORD, BrandOfPeople, MakeBrand, MakeUser, join
from tools.harness.in_process_platform import Platform, upload, weights


@pytest.fixture(scope="module")
async def acme(make_brand: MakeBrand) -> BrandOfPeople:
    return await make_brand("acme")


def problem_of(answer: httpx.Response) -> tuple[int, str, str | None]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    return answer.status_code, body["code"], body["param"]


# users and brands


async def test_sign_up_log_in_make_a_brand(platform: Platform) -> None:
    email = f"ada-{uuid.uuid4().hex[:8]}@example.com"
    async with platform.client() as client:
        made = await client.post("/v1/users", json={"email": email, "password": PASSWORD})
        assert (made.status_code, made.json()["email"]) == (201, email)
        token = await client.post("/v1/tokens", json={"email": email, "password": PASSWORD})
        assert token.status_code == 201
        client.headers["authorization"] = f"Bearer {token.json()['access_token']}"
        brand_id = f"brand-{uuid.uuid4().hex[:8]}"
        brand = await client.post("/v1/brands", json={"id": brand_id, "name": "Brand"})
        assert (brand.status_code, brand.json()["role"]) == (201, "admin")
        me = (await client.get("/v1/me")).json()
        assert (me["email"], [b["id"] for b in me["brands"]]) == (email, [brand_id])


async def test_a_wrong_password_is_401_and_says_no_more(platform: Platform, acme: BrandOfPeople) -> None:
    async with platform.client() as client:
        known = await client.post("/v1/tokens", json={"email": acme.admin.email, "password": "wrong password"})
        unknown = await client.post("/v1/tokens", json={"email": "nobody@example.com", "password": "wrong password"})
    assert problem_of(known) == (401, "unauthenticated", None)
    assert known.json()["detail"] == unknown.json()["detail"]
    assert known.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("header", [None, "Bearer", "Basic abc", "Bearer a.b.c"])
async def test_no_or_a_malformed_token_is_401(platform: Platform, header: str | None) -> None:
    async with platform.client() as client:
        answer = await client.get("/v1/brands", headers={"authorization": header} if header else {})
    assert problem_of(answer) == (401, "unauthenticated", None)


async def test_a_brand_bound_token_reaches_one_brand(
    platform: Platform, make_brand: MakeBrand, acme: BrandOfPeople
) -> None:
    other = await make_brand("other")
    await join(platform.db, acme.id, acme.admin, other.admin)
    async with platform.client(other.admin, brand_id=other.id) as client:
        assert (await client.get(f"/v1/brands/{other.id}")).status_code == 200
        assert problem_of(await client.get(f"/v1/brands/{acme.id}")) == (404, "not_found", None)
        answer = await client.post("/v1/brands", json={"id": "third", "name": "Third"})
        assert problem_of(answer) == (403, "forbidden", None)


async def test_another_region_is_refused_before_anything_is_written(platform: Platform, acme: BrandOfPeople) -> None:
    async with platform.client(acme.admin) as client:
        answer = await client.post("/v1/brands", json={"id": "far", "name": "Far", "home_region": "eu-west-1"})
    assert problem_of(answer) == (422, "invalid_input", "home_region")


async def test_a_removed_member_is_out_at_once(platform: Platform, make_brand: MakeBrand) -> None:
    brand = await make_brand("leaving")
    async with platform.client(brand.member) as member, platform.client(brand.admin) as admin:
        assert (await member.get(f"/v1/brands/{brand.id}/assets")).status_code == 200
        gone = await admin.delete(f"/v1/brands/{brand.id}/members/{brand.member.user_id}")
        assert gone.status_code == 204
        assert (await member.get(f"/v1/brands/{brand.id}/assets")).status_code == 404


# assets


async def test_upload_list_recaption_fetch_delete(platform: Platform, acme: BrandOfPeople, pictures: Any) -> None:
    async with platform.client(acme.member) as client:
        files = [("files", (f"{i}.png", pictures(i), "image/png")) for i in (1, 2)]
        captions = json.dumps(["photo of [brand] logo", None])
        answer = await client.post(
            f"/v1/brands/{acme.id}/assets", files=files, data={"captions": captions, "object": "logo"}
        )
        assert answer.status_code == 201, answer.text
        first = answer.json()["data"][0]
        assert (first["caption"], first["object"], first["width"]) == ("photo of [brand] logo", "logo", 64)
        at = f"/v1/brands/{acme.id}/assets/{first['id']}"
        changed = await client.patch(at, json={"caption": "[brand] in the rain"})
        assert (changed.json()["caption"], changed.json()["caption_version"]) == ("[brand] in the rain", 2)
        link = (await client.get(f"{at}/content")).json()
        async with platform.client() as nobody:
            picture = await nobody.get(link["url"])
        assert (picture.status_code, picture.headers["content-type"]) == (200, "image/png")
        assert picture.content.startswith(b"\x89PNG")
        assert problem_of(await client.delete(at)) == (403, "forbidden", None)
    async with platform.client(acme.admin) as admin:
        assert (await admin.delete(at)).status_code == 204
        assert problem_of(await admin.get(at)) == (404, "not_found", None)


@pytest.mark.parametrize(
    ("fields", "files", "expected"),
    [
        ({}, [], (422, "invalid_input", "files")),
        ({"colour": "red"}, [("files", b"png")], (422, "invalid_input", "colour")),
        ({"captions": '["a", "b"]'}, [("files", b"png")], (422, "invalid_input", "captions")),
        ({"metadata": "[1]"}, [("files", b"png")], (422, "invalid_input", "metadata")),
        ({"metadata": '{"a": "\\u0000"}'}, [("files", b"png")], (422, "invalid_input", "metadata.a")),
        ({"object": "dragon"}, [("files", b"png")], (422, "invalid_input", "object")),
        ({"captions": "x" * 501}, [("files", b"png")], (422, "invalid_input", "captions")),
        ({}, [("files", b"not a picture")], (415, "unsupported_media", "files")),
    ],
)
async def test_a_bad_upload_is_refused_whole_and_names_the_field(
    platform: Platform, make_brand: MakeBrand, pictures: Any, fields: Any, files: Any, expected: Any
) -> None:
    brand = await make_brand("strict")
    parts = [(name, ("f.png", pictures(5) if data == b"png" else data)) for name, data in files]
    async with platform.client(brand.member) as client:
        if files:
            answer = await client.post(f"/v1/brands/{brand.id}/assets", data=fields, files=parts)
        else:
            empty = {"content": b"--x--\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}}
            answer = await client.post(f"/v1/brands/{brand.id}/assets", **empty)
        assert problem_of(answer) == expected
        assert (await client.get(f"/v1/brands/{brand.id}/assets")).json()["data"] == []


@pytest.mark.parametrize("num", [51, 60])
async def test_too_many_files_are_refused_with_the_limit(platform: Platform, acme: BrandOfPeople, num: int) -> None:
    files = [("files", (f"{i}.png", b"x", "image/png")) for i in range(num)]
    async with platform.client(acme.member) as client:
        answer = await client.post(f"/v1/brands/{acme.id}/assets", files=files)
    assert problem_of(answer) == (413, "too_large", "files")
    assert "50" in answer.json()["detail"]


async def test_a_body_that_is_no_form_is_415(platform: Platform, acme: BrandOfPeople) -> None:
    async with platform.client(acme.member) as client:
        answer = await client.post(f"/v1/brands/{acme.id}/assets", json={})
    assert problem_of(answer) == (415, "unsupported_media", "files")


async def test_lists_go_page_by_page(platform: Platform, make_brand: MakeBrand, pictures: Any) -> None:
    brand = await make_brand("pages")
    async with platform.client(brand.member) as client:
        files = [("files", (f"{i}.png", pictures(100 + i), "image/png")) for i in range(3)]
        await client.post(f"/v1/brands/{brand.id}/assets", files=files)
        first = (await client.get(f"/v1/brands/{brand.id}/assets", params={"limit": 2})).json()
        assert (first["object"], len(first["data"]), first["has_more"]) == ("list", 2, True)
        rest = (await client.get(f"/v1/brands/{brand.id}/assets", params={"cursor": first["next_cursor"]})).json()
        assert (len(rest["data"]), rest["has_more"]) == (1, False)
        bad = await client.get(f"/v1/brands/{brand.id}/assets", params={"limit": 0})
        assert problem_of(bad) == (422, "invalid_input", "limit")
        odd = await client.get(f"/v1/brands/{brand.id}/assets", params={"cursor": "odd"})
        assert problem_of(odd) == (422, "invalid_input", "cursor")


# training


async def test_a_job_from_pending_to_its_model(platform: Platform, make_brand: MakeBrand, pictures: Any) -> None:
    brand = await make_brand("train")
    async with platform.client(brand.member) as client:
        asset = await upload(client, brand.id, pictures(1), captions="photo of [brand] logo")
        body = {
            "name": "first",
            "model_type": "sd15",
            "training_config": {"steps": 20, "trigger_word": "zilgo"},
            "training_asset_ids": [asset["id"]],
        }
        job = (await client.post(f"/v1/brands/{brand.id}/training-jobs", json=body)).json()
        assert (job["status"], job["progress"], job["training_asset_ids"]) == ("pending", 0, [asset["id"]])
        assert set(job["urls"]) == {"get", "cancel", "events"}
        async with platform.system(brand.ticket(job["id"])) as worker:
            spec = await worker.spec()
            assert [a.caption for a in spec.assets] == ["photo of zilgo logo"]
            assert (await worker.read_asset(asset["id"])).startswith(b"\x89PNG")
            assert not (await worker.report(10, {"step": 2, "loss": 0.5})).cancel_requested
            await worker.add_sample(10, 0, pictures(7))
            model = await worker.publish(
                weights("a"), {"rank": 4, "trigger_word": "zilgo", "base_revision": "r", "metrics": {"loss": 0.1}}
            )
            again = await worker.publish(weights("a"), {"rank": 4, "trigger_word": "zilgo", "base_revision": "r"})
        assert (model.name, again.id) == ("sd15-lora-v1", model.id)
        at = f"/v1/brands/{brand.id}/training-jobs/{job['id']}"
        done = (await client.get(at)).json()
        assert (done["status"], done["progress"]) == ("completed", 100)
        assert done["model_url"].endswith("sd15-lora-v1.safetensors")
        sample = await client.get(done["sample_images_urls"][0])
        assert sample.content == pictures(7)
        assert len((await client.get(f"{at}/metrics")).json()["data"]) == 1
        events = (await client.get(f"{at}/events")).text
        assert events.count("event: ") == 4
        assert "completed" in events.rsplit("event: ", 1)[1]
        rest = (await client.get(f"{at}/events", headers={"last-event-id": "3"})).text
        assert rest.count("event: ") == 1
        found = (await client.get(f"/v1/brands/{brand.id}/models/sd15-lora-v1")).json()
        assert (found["id"], found["sha256"]) == (model.id, model.sha256)
        link = (await client.get(f"/v1/brands/{brand.id}/models/{model.id}/download")).json()["url"]
        file = await client.get(link)
        assert file.content == weights("a")
        assert file.headers["content-disposition"] == 'attachment; filename="sd15-lora-v1.safetensors"'


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model_type": "dalle"}, (422, "invalid_input", "model_type")),
        ({"training_config": {"rank": 1000}}, (422, "invalid_input", "training_config.rank")),
        ({"training_config": {"colour": 1}}, (422, "invalid_input", "training_config.colour")),
        ({"training_asset_ids": []}, (422, "invalid_input", "training_asset_ids")),
        ({"training_asset_ids": [str(uuid.uuid4())]}, (404, "not_found", "training_asset_ids")),
        ({"status": "completed"}, (422, "invalid_input", "status")),
        ({"model_url": "models/x"}, (422, "invalid_input", "model_url")),
        ({"name": 5}, (422, "invalid_input", "name")),
        ({"name": "a\x00"}, (422, "invalid_input", "name")),
    ],
)
async def test_a_bad_job_names_the_field(
    platform: Platform, acme: BrandOfPeople, change: dict[str, Any], expected: Any
) -> None:
    body = {"name": "n", "model_type": "sd15", "training_asset_ids": [str(uuid.uuid4())]} | change
    async with platform.client(acme.member) as client:
        answer = await client.post(f"/v1/brands/{acme.id}/training-jobs", json=body)
    assert problem_of(answer) == expected


async def test_cancel_then_retry(platform: Platform, make_brand: MakeBrand, pictures: Any) -> None:
    brand = await make_brand("cancel")
    async with platform.client(brand.member) as client:
        asset = await upload(client, brand.id, pictures(1))
        body = {"name": "n", "model_type": "sd15", "training_asset_ids": [asset["id"]]}
        job = (await client.post(f"/v1/brands/{brand.id}/training-jobs", json=body)).json()
        at = f"/v1/brands/{brand.id}/training-jobs/{job['id']}"
        assert problem_of(await client.post(f"{at}/retry")) == (409, "conflict", None)
        assert (await client.post(f"{at}/cancel")).status_code == 200
        async with platform.client(brand.member2) as other:
            assert problem_of(await other.patch(at, json={"name": "mine"})) == (403, "forbidden", None)
        async with platform.system(brand.ticket(job["id"])) as worker:
            assert (await worker.report(5)).cancel_requested
            await worker.canceled()
        assert (await client.get(at)).json()["status"] == "canceled"
        again = await client.post(f"{at}/retry")
        assert (again.status_code, again.json()["status"]) == (201, "pending")
        assert (await client.patch(at, json={"name": "old"})).json()["name"] == "old"


# generations


async def test_a_waited_for_generation_is_201_with_its_pictures(
    platform: Platform, make_brand: MakeBrand, pictures: Any
) -> None:
    brand = await make_brand("draw")
    _, model = await platform.train(brand, pictures(1))
    async with platform.client(brand.member) as client:
        body = {"prompt": "photo of [brand] logo", "model": model.name, "num_images": 2, "seed": 7}
        answer = await client.post(
            f"/v1/brands/{brand.id}/generations", json=body, headers={"prefer": "respond-async, wait=20"}
        )
        assert (answer.status_code, answer.headers["preference-applied"]) == (201, "wait=20")
        generation = answer.json()
        assert (generation["status"], generation["model"]) == ("completed", model.name)
        assert [(image["index"], image["seed"]) for image in generation["images"]] == [(0, 7), (1, 8)]
        assert platform.generator.seen[-1].parameters.prompt == f"photo of {brand.id} mark logo"
        assert (await client.get(answer.headers["location"])).json()["id"] == generation["id"]
        image = generation["images"][0]
        link = (await client.get(f"/v1/brands/{brand.id}/images/{image['id']}/content")).json()["url"]
        assert (await client.get(link)).status_code == 200
        async with platform.client(brand.admin) as admin:
            refused = await admin.delete(f"/v1/brands/{brand.id}/images/{image['id']}")
            assert problem_of(refused) == (403, "forbidden", None)
        assert (await client.delete(f"/v1/brands/{brand.id}/images/{image['id']}")).status_code == 204
        assert problem_of(await client.get(link)) == (404, "not_found", None)


async def test_without_waiting_it_is_202_and_its_events_tell_the_rest(platform: Platform, acme: BrandOfPeople) -> None:
    async with platform.client(acme.member) as client:
        answer = await client.post(
            f"/v1/brands/{acme.id}/generations", json={"prompt": "canary-prompt", "model_type": "sd15"}
        )
        assert (answer.status_code, answer.json()["completed_at"]) == (202, None)
        events = (await client.get(f"{answer.headers['location']}/events")).text
    assert next(line for line in events.splitlines() if line.startswith("event")) == "event: status"
    assert '"status":"completed"' in events.rsplit("event: ", 1)[1]
    assert "canary-prompt" not in events


@pytest.mark.parametrize(("prompt", "code"), [("[break]", "engine_failed"), ("[away]", "unavailable")])
async def test_an_engine_that_fails_leaves_a_reason(
    platform: Platform, acme: BrandOfPeople, prompt: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onbrand.background.generations.AWAY_SECONDS", 0)
    async with platform.client(acme.member) as client:
        answer = await client.post(
            f"/v1/brands/{acme.id}/generations",
            json={"prompt": prompt, "model_type": "sd15"},
            headers={"prefer": "wait=20"},
        )
    assert (answer.status_code, answer.json()["status"], answer.json()["error"]["code"]) == (201, "failed", code)
    assert "drawing" not in answer.json()["error"]["message"]


async def test_canceling_frees_the_engine_and_ends_the_row(platform: Platform, acme: BrandOfPeople) -> None:
    async with platform.client(acme.member) as client:
        begun = await client.post(f"/v1/brands/{acme.id}/generations", json={"prompt": "[hang]", "model_type": "sd15"})
        at = begun.headers["location"]
        async with platform.client(acme.member2) as other:
            assert problem_of(await other.post(f"{at}/cancel")) == (403, "forbidden", None)
        assert (await client.post(f"{at}/cancel")).status_code == 200
        assert (await ended(client, at))["status"] == "canceled"
        assert (await client.post(f"{at}/cancel")).status_code == 200


async def test_a_client_that_goes_away_while_waiting_cancels(platform: Platform, acme: BrandOfPeople) -> None:
    token = platform.token(acme.member)
    async with httpx.AsyncClient(base_url=platform.url, headers={"authorization": f"Bearer {token}"}) as client:
        path = f"/v1/brands/{acme.id}/generations"
        with pytest.raises(httpx.ReadTimeout):
            await client.post(
                path,
                json={"prompt": "[hang] up", "model_type": "sd15"},
                headers={"prefer": "wait=20"},
                timeout=httpx.Timeout(5, read=0.8),
            )
        newest = (await client.get(path)).json()["data"][0]
        assert newest["prompt"] == "[hang] up"
        assert (await ended(client, f"{path}/{newest['id']}"))["status"] == "canceled"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"prompt": ""}, (422, "invalid_input", "prompt")),
        ({"prompt": "x" * 2001}, (422, "invalid_input", "prompt")),
        ({"num_images": 100}, (422, "invalid_input", "num_images")),
        ({"width": 63}, (422, "invalid_input", "width")),
        ({"num_inference_steps": 0}, (422, "invalid_input", "num_inference_steps")),
        ({"model": "sd15-lora-v9"}, (404, "not_found", None)),
        ({"model": "../globex"}, (404, "not_found", None)),
        ({"output_format": "gif"}, (422, "invalid_input", "output_format")),
        ({"user_id": "x"}, (422, "invalid_input", "user_id")),
    ],
)
async def test_a_bad_generation_names_the_field(
    platform: Platform, acme: BrandOfPeople, change: dict[str, Any], expected: Any
) -> None:
    body = {"prompt": "p", "model": "sd15"} | change
    async with platform.client(acme.member) as client:
        answer = await client.post(f"/v1/brands/{acme.id}/generations", json=body)
    assert problem_of(answer) == expected


async def test_a_full_ingress_says_when_to_come_back_and_writes_nothing(
    platform: Platform, make_brand: MakeBrand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A brand with some under way is refused; a brand with none is accepted, however busy others are."""
    brand, other = await make_brand("full"), await make_brand("fresh")
    monkeypatch.setattr("onbrand.background.generations.RUNNING_MAX", 1)
    hangs = {"prompt": "[hang] up", "model_type": "sd15"}
    async with platform.client(brand.member) as client, platform.client(other.member) as theirs:
        path = f"/v1/brands/{brand.id}/generations"
        first = await client.post(path, json=hangs)
        answer = await client.post(path, json=hangs)
        assert problem_of(answer) == (429, "too_many_requests", None)
        assert int(answer.headers["retry-after"]) > 0
        assert [each["id"] for each in (await client.get(path)).json()["data"]] == [first.json()["id"]]
        asked = await theirs.post(f"/v1/brands/{other.id}/generations", json=hangs)
        assert asked.status_code == 202
        await theirs.post(f"/v1/brands/{other.id}/generations/{asked.json()['id']}/cancel")
        await client.post(f"{path}/{first.json()['id']}/cancel")


async def ended(client: httpx.AsyncClient, path: str, seconds: float = 10) -> dict[str, Any]:
    """The object at `path` when it has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        body: dict[str, Any] = (await client.get(path)).json()
        if body["status"] in ("completed", "failed", "canceled"):
            return body
        await asyncio.sleep(0.1)
    raise AssertionError(f"still {body['status']}")


# idempotency


async def test_the_same_key_and_body_is_answered_again_not_done_again(
    platform: Platform, make_brand: MakeBrand, pictures: Any
) -> None:
    brand = await make_brand("once")
    async with platform.client(brand.member) as client:
        key = {"idempotency-key": uuid.uuid4().hex}
        files = [("files", ("a.png", pictures(1), "image/png"))]
        first = await client.post(f"/v1/brands/{brand.id}/assets", files=files, headers=key)
        again = await client.post(f"/v1/brands/{brand.id}/assets", files=files, headers=key)
        assert (first.status_code, first.json()) == (again.status_code, again.json())
        assert len((await client.get(f"/v1/brands/{brand.id}/assets")).json()["data"]) == 1
        other = await client.post(
            f"/v1/brands/{brand.id}/assets", files=[("files", ("b.png", pictures(2), "image/png"))], headers=key
        )
        assert problem_of(other) == (409, "conflict", "Idempotency-Key")


async def test_a_repeated_generation_is_the_same_generation_finished(platform: Platform, acme: BrandOfPeople) -> None:
    async with platform.client(acme.member) as client:
        key = {"idempotency-key": uuid.uuid4().hex}
        path, body = f"/v1/brands/{acme.id}/generations", {"prompt": "p", "model_type": "sd15"}
        first = await client.post(path, json=body, headers=key)
        again = await client.post(path, json=body, headers=key | {"prefer": "wait=20"})
    assert (first.status_code, again.status_code) == (202, 201)
    assert first.json()["id"] == again.json()["id"]


async def test_a_repeated_call_begins_what_a_dead_ingress_did_not(platform: Platform, acme: BrandOfPeople) -> None:
    async with platform.client(acme.member) as client:
        key = {"idempotency-key": uuid.uuid4().hex}
        path, body = f"/v1/brands/{acme.id}/generations", {"prompt": "p", "model_type": "sd15"}
        generation_tasks = platform.app.state.onbrand.generation_tasks
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(generation_tasks, "start", lambda family, request: None)
            first = await client.post(path, json=body, headers=key | {"prefer": "wait=1"})
        again = await client.post(path, json=body, headers=key | {"prefer": "wait=20"})
    assert (first.json()["status"], again.json()["status"]) == ("pending", "completed")


async def test_two_at_the_same_time_are_one(platform: Platform, make_user: MakeUser) -> None:
    person = await make_user()
    brand_id = f"twin-{uuid.uuid4().hex[:8]}"
    async with platform.client(person) as client:
        body, key = {"id": brand_id, "name": "Twin"}, {"idempotency-key": "k"}
        answers = await asyncio.gather(*(client.post("/v1/brands", json=body, headers=key) for _ in range(4)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1


async def test_a_refused_call_leaves_no_key(platform: Platform, acme: BrandOfPeople) -> None:
    async with platform.client(acme.member) as client:
        key = {"idempotency-key": uuid.uuid4().hex}
        path = f"/v1/brands/{acme.id}/generations"
        bad = await client.post(path, json={"prompt": "p", "model": "sd15-lora-v9"}, headers=key)
        good = await client.post(path, json={"prompt": "p", "model": "sd15"}, headers=key)
    assert (bad.status_code, good.status_code) == (404, 202)


async def test_keys_of_two_callers_are_two_keys(platform: Platform, acme: BrandOfPeople) -> None:
    ids = []
    for person in (acme.member, acme.member2):
        async with platform.client(person) as client:
            answer = await client.post(
                f"/v1/brands/{acme.id}/generations",
                json={"prompt": "p", "model": "sd15"},
                headers={"idempotency-key": "shared"},
            )
            ids.append(answer.json()["id"])
    assert ids[0] != ids[1]


# the description and the internal routes


async def test_the_description_is_served_and_interactive_pages_are_not(platform: Platform) -> None:
    async with platform.client() as client:
        description = (await client.get("/openapi.json")).json()
        assert description["info"]["title"] == "Onbrand"
        assert "/v1/brands/{brand_id}/generations" in description["paths"]
        assert (await client.get("/docs")).status_code == 404
        assert (await client.get("/healthz")).json() == {"status": "ok"}


async def test_a_ticket_opens_only_routes_of_its_kind(platform: Platform, make_brand: MakeBrand, pictures: Any) -> None:
    brand = await make_brand("kinds")
    job_id, model = await platform.train(brand, pictures(1))
    async with platform.system(brand.ticket(job_id)) as trainer:
        for call in (trainer.start_generation(), trainer.read_model(model.id), trainer.report_generation(50)):
            with pytest.raises(errors.TicketRefused):
                await call
    async with platform.system(brand.ticket(job_id, "generation")) as drawer:
        with pytest.raises(errors.TicketRefused):
            await drawer.spec()


async def test_users_tokens_open_nothing_inside_and_tickets_nothing_outside(
    platform: Platform, acme: BrandOfPeople
) -> None:
    async with platform.system(platform.token(acme.member)) as worker:
        with pytest.raises(errors.TicketRefused):
            await worker.spec()
    ticket = acme.ticket(str(uuid.uuid4())).sign(platform.secrets.tickets)
    async with platform.client() as client:
        answer = await client.get("/v1/brands", headers={"authorization": f"Bearer {ticket}"})
    assert problem_of(answer) == (401, "unauthenticated", None)


async def test_a_renewed_ticket_has_the_same_rights(platform: Platform, make_brand: MakeBrand, pictures: Any) -> None:
    brand = await make_brand("renew")
    async with platform.client(brand.member) as client:
        asset = await upload(client, brand.id, pictures(1))
        body = {"name": "n", "model_type": "sd15", "training_asset_ids": [asset["id"]]}
        job = (await client.post(f"/v1/brands/{brand.id}/training-jobs", json=body)).json()
    async with platform.system(brand.ticket(job["id"])) as worker:
        await worker.renew()
        assert (await worker.spec()).job_id == job["id"]


@pytest.mark.parametrize(
    ("facts", "param"), [({}, "rank"), ({"rank": 4, "colour": 1}, None), ({"rank": 10**6}, "rank")]
)
async def test_bad_facts_of_a_worker_are_named(
    platform: Platform, make_brand: MakeBrand, pictures: Any, facts: Any, param: str | None
) -> None:
    brand = await make_brand("facts")
    async with platform.client(brand.member) as client:
        asset = await upload(client, brand.id, pictures(1))
        body = {"name": "n", "model_type": "sd15", "training_asset_ids": [asset["id"]]}
        job = (await client.post(f"/v1/brands/{brand.id}/training-jobs", json=body)).json()
    async with platform.system(brand.ticket(job["id"])) as worker:
        with pytest.raises(errors.InvalidInput) as caught:
            await worker.publish(weights(), facts)
    assert param is None or caught.value.param == param
