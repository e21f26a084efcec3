"""Signed links are bearer tokens for one key and one method, with a short life. Their content is never executed."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from onbrand.storage.layout import Key, incoming_file
from onbrand.storage.links import sign_link
from tests.conftest import MakeBrand, MakeUser
from tests.isolation.fixtures import Draw, Fixtures, build_fixtures
from tools.harness.in_process_platform import Platform


@pytest.fixture(scope="module")
async def fixtures(platform: Platform, make_brand: MakeBrand, make_user: MakeUser, pictures: Draw) -> Fixtures:
    return await build_fixtures(platform, make_brand, make_user, pictures)


@pytest.fixture
async def nobody(platform: Platform) -> AsyncIterator[httpx.AsyncClient]:
    async with platform.client() as client:
        yield client


@pytest.fixture
async def link(fixtures: Fixtures) -> str:
    async with fixtures.client("member") as client:
        path = f"/v1/brands/{fixtures.acme.id}/assets/{fixtures.things['asset']}/content"
        return str((await client.get(path)).json()["url"])


async def test_a_link_opens_its_file_for_anyone(nobody: httpx.AsyncClient, link: str) -> None:
    answer = await nobody.get(link)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"].startswith("inline")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert re.fullmatch(r"private, max-age=\d+", answer.headers["cache-control"])
    assert int(answer.headers["content-length"]) == len(answer.content)


async def test_a_known_file_is_not_sent_again(nobody: httpx.AsyncClient, link: str) -> None:
    etag = (await nobody.get(link)).headers["etag"]
    answer = await nobody.get(link, headers={"if-none-match": etag})
    assert (answer.status_code, answer.content) == (304, b"")


async def test_any_change_to_a_link_is_refused(nobody: httpx.AsyncClient, fixtures: Fixtures, link: str) -> None:
    expires = parse_qs(urlsplit(link).query)["expires"][0]
    changed = {
        "another file of the brand": link.replace("other-001", "other-002"),
        "another brand": link.replace(fixtures.acme.id, fixtures.globex.id),
        "another bucket": link.replace("training-data", "models"),
        "a later end": link.replace(expires, str(int(expires) + 1000)),
        "another signature": link[:-2] + ("AA" if link[-2:] != "AA" else "BB"),
        "no signature": link.split("&signature", maxsplit=1)[0],
        "dots": link.replace("/other-001", "/x/%2e%2e/other-001"),
        "two slashes": link.replace("/other-001", "//other-001"),
    }
    answers = {name: await nobody.get(url) for name, url in changed.items()}
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(changed, 401)
    assert len({answer.json()["detail"] for answer in answers.values()}) == 1


@pytest.mark.parametrize(("method", "status"), [("HEAD", 401), ("DELETE", 405), ("PUT", 401), ("POST", 405)])
async def test_a_link_to_get_does_nothing_else(nobody: httpx.AsyncClient, link: str, method: str, status: int) -> None:
    assert (await nobody.request(method, link)).status_code == status


async def test_a_link_to_head_tells_the_size_only(nobody: httpx.AsyncClient, fixtures: Fixtures, link: str) -> None:
    platform = fixtures.platform
    bucket, name = urlsplit(link).path.removeprefix("/v1/files/").split("/", 1)
    url = sign_link(Key(bucket, name), "HEAD", 60, platform.secrets.links, platform.url)  # type: ignore[arg-type]
    answer = await nobody.head(url)
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) > 0


async def test_a_link_that_has_expired_is_refused(
    nobody: httpx.AsyncClient, link: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = time.time() + 10_000
    monkeypatch.setattr("onbrand.storage.links.time.time", lambda: later)
    assert (await nobody.get(link)).status_code == 401


async def test_a_good_link_to_what_is_gone_is_404(nobody: httpx.AsyncClient, fixtures: Fixtures) -> None:
    platform = fixtures.platform
    key = Key("training-data", f"{fixtures.acme.id}/logo-999.png")
    answer = await nobody.get(sign_link(key, "GET", 60, platform.secrets.links, platform.url))
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_what_was_sent_is_not_served_even_by_a_good_link(nobody: httpx.AsyncClient, fixtures: Fixtures) -> None:
    platform = fixtures.platform
    key = incoming_file("training-data", fixtures.acme.id, fixtures.things["upload"])
    assert platform.store.brand(fixtures.acme.id).exists(key)
    answer = await nobody.get(sign_link(key, "GET", 60, platform.secrets.links, platform.url))
    assert answer.status_code == 404


LOOKS = {
    "assets/{asset}/content": ("asset.link", "asset_id", "asset"),
    "images/{image}/content": ("image.link", "image_id", "image"),
    "models/{model}/download": ("model.download", "model_id", "model"),
    "training-jobs/{job}": ("job.link", "job_id", "job"),
}


@pytest.mark.parametrize("path", LOOKS)
async def test_each_link_that_is_made_is_one_line_of_the_record(fixtures: Fixtures, path: str) -> None:
    action, name, thing = LOOKS[path]
    if thing == "job":
        ticket = fixtures.acme.ticket(fixtures.things["job"])
        async with fixtures.platform.system(ticket) as worker:
            await worker.report(progress=1)
            await worker.add_sample(1, 0, fixtures.picture(), "image/png")
    before = await lines(fixtures)
    async with fixtures.client("member2") as client:
        answer = await client.get(f"/v1/brands/{fixtures.acme.id}/{path.format(**fixtures.things)}")
    assert answer.status_code == 200, answer.text
    (line,) = (await lines(fixtures))[len(before) :]
    assert line["action"] == action
    assert line["detail"] == {name: fixtures.things[thing], "num_links": 1}
    assert line["user_id"] == fixtures.acme.member2.user_id


async def test_a_link_that_is_refused_is_no_line(fixtures: Fixtures) -> None:
    before = await lines(fixtures)
    for persona in ("removed", "other_admin", "anonymous"):
        async with fixtures.client(persona) as client:
            await client.get(f"/v1/brands/{fixtures.acme.id}/models/{fixtures.things['model']}/download")
    assert await lines(fixtures) == before


async def lines(fixtures: Fixtures) -> list[dict[str, Any]]:
    """ACME's audit events."""
    async with fixtures.platform.db.user_session(fixtures.acme.admin.scope) as session:
        query = "select user_id, action, detail from audit.events where brand_id = %s order by seq"
        return await session.all(query, [fixtures.acme.id])


async def test_weights_are_saved_and_never_shown(nobody: httpx.AsyncClient, fixtures: Fixtures) -> None:
    async with fixtures.client("member") as client:
        path = f"/v1/brands/{fixtures.acme.id}/models/{fixtures.things['model']}/download"
        url = (await client.get(path)).json()["url"]
    answer = await nobody.get(url)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")


async def test_raw_store_keys_open_nothing(nobody: httpx.AsyncClient, fixtures: Fixtures) -> None:
    for name in (
        f"{fixtures.acme.id}/logo-001.png",
        "../secrets.json",
        "%2e%2e/secrets.json",
        "..%2f..%2fsecrets.json",
    ):
        answer = await nobody.get(f"/v1/files/training-data/{name}")
        assert answer.status_code in (401, 404), name
