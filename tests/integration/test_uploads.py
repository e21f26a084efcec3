"""Uploads straight to the store, on a directory and on a real S3: announced, sent, checked, re-encoded, cleaned up."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import sys
import uuid
import zipfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import pytest_asyncio
from PIL import Image

from onbrand.background import upload_cleanup
from onbrand.db.session import Database
from onbrand.secrets_file import Secrets
from onbrand.storage.layout import Key, incoming_file
from tests.conftest import BrandOfPeople, MakeBrand
from tests.stores import settings_of
from tools.harness.in_process_platform import Platform, serving

Draw = Callable[..., bytes]
A_PAGE = {"kind": "document", "content_type": "text/markdown", "filename": "a.md"}


@dataclass
class House:
    """A platform on one of the two stores, a brand, and a stranger who sends to links."""

    platform: Platform
    brand: BrandOfPeople
    member: httpx.AsyncClient
    stranger: httpx.AsyncClient
    place: str

    @property
    def is_local(self) -> bool:
        return self.place == "local"

    @property
    def path(self) -> str:
        return f"/v1/brands/{self.brand.id}/uploads"

    async def announce(self, data: bytes, **fields: Any) -> dict[str, Any]:
        """An announced upload of `data`."""
        body = {"kind": "image", "filename": "logo.png", "content_type": "image/png", "bytes": len(data), **fields}
        answer = await self.member.post(self.path, json=body)
        assert answer.status_code == 201, answer.text
        upload: dict[str, Any] = answer.json()
        return upload

    async def send(self, upload: dict[str, Any], data: bytes) -> httpx.Response:
        """Send to the upload's link, as it says."""
        how = upload["send"]
        if how["method"] == "PUT":
            return await self.stranger.put(how["url"], content=data, headers=how["headers"])
        return await self.stranger.post(how["url"], data=how["fields"], files={"file": ("f", data)})

    async def complete(self, upload: dict[str, Any]) -> httpx.Response:
        return await self.member.post(f"{self.path}/{upload['id']}/complete")

    async def sent(self, data: bytes, **fields: Any) -> dict[str, Any]:
        """An upload that was announced and sent."""
        upload = await self.announce(data, **fields)
        answer = await self.send(upload, data)
        assert answer.is_success, answer.text
        return upload

    async def get(self, upload: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = (await self.member.get(f"{self.path}/{upload['id']}")).json()
        return found

    def arrived(self, upload: dict[str, Any]) -> bytes | None:
        """The object in the incoming folder, or None."""
        bucket = "brand-documents" if upload["kind"] == "document" else "training-data"
        key, store = incoming_file(bucket, self.brand.id, upload["id"]), self.platform.store.brand(self.brand.id)  # type: ignore[arg-type]
        return store.read(key) if store.exists(key) else None

    async def actions(self) -> list[tuple[str, dict[str, Any]]]:
        """The brand's audit events."""
        async with self.platform.db.user_session(self.brand.admin.scope) as session:
            rows = await session.all(
                "select action, detail from audit.events where brand_id = %s order by seq", [self.brand.id]
            )
        return [(row["action"], row["detail"]) for row in rows]


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=["local", "s3", "s3-put"])
async def platform_of_store(
    request: pytest.FixtureRequest,
    secrets: Secrets,
    db: Database,
    data_folder: Callable[[], Any],
) -> AsyncIterator[Platform]:
    """The platform on each store in turn."""
    async with serving(settings_of(request, data_folder()), secrets, db) as running:
        running.store.check()
        yield running


@pytest.fixture
async def house(
    request: pytest.FixtureRequest, platform_of_store: Platform, make_brand: MakeBrand
) -> AsyncIterator[House]:
    running = platform_of_store
    place = request.node.callspec.params["platform_of_store"]
    brand = await make_brand("acme")
    async with running.client(brand.member) as member, httpx.AsyncClient(timeout=20) as stranger:
        yield House(running, brand, member, stranger, place)


@pytest.fixture
def picture(pictures: Draw) -> bytes:
    return pictures(uuid.uuid4().int % 10**9)


def exif(data: bytes) -> bytes:
    """The picture with a comment that must be removed."""
    from PIL.PngImagePlugin import PngInfo

    notes, out = PngInfo(), io.BytesIO()
    notes.add_text("Comment", "canary-comment")
    Image.open(io.BytesIO(data)).save(out, "PNG", pnginfo=notes)
    return out.getvalue()


async def test_a_content_type_is_compared_without_case_and_parameters(house: House, picture: bytes) -> None:
    upload = await house.announce(picture, content_type="Image/PNG; charset=binary")
    how = upload["send"]
    assert upload["content_type"] == "image/png"
    if how["method"] == "PUT" and house.place == "local":  # an S3 takes the type that was signed, and no other form
        headers = how["headers"] | {"Content-Type": "IMAGE/png ;x=y"}
        answer = await house.stranger.put(how["url"], content=picture, headers=headers)
    else:
        answer = await house.send(upload, picture)
    assert answer.is_success, answer.text
    assert (await house.complete(upload)).status_code == 200


async def test_a_picture_goes_straight_to_the_store_and_becomes_an_asset(house: House, picture: bytes) -> None:
    data = exif(picture)
    upload = await house.sent(data, object="logo", caption="photo of [brand] logo", metadata={"a": 1})
    answer = await house.complete(upload)
    assert answer.status_code == 200, answer.text
    done = answer.json()
    assert (done["status"], len(done["asset_ids"]), done["document_ids"]) == ("completed", 1, [])
    asset = (await house.member.get(f"/v1/brands/{house.brand.id}/assets/{done['asset_ids'][0]}")).json()
    assert (asset["name"], asset["object"], asset["caption"]) == ("logo.png", "logo", "photo of [brand] logo")
    assert (asset["metadata"], asset["user_id"]) == ({"a": 1}, house.brand.member.user_id)
    link = (await house.member.get(f"/v1/brands/{house.brand.id}/assets/{asset['id']}/content")).json()["url"]
    kept = (await house.stranger.get(link)).content
    assert hashlib.sha256(kept).hexdigest() == asset["sha256"]
    assert b"canary-comment" in data
    assert b"canary-comment" not in kept


async def test_the_link_says_how_and_is_in_the_first_answer_only(house: House, picture: bytes) -> None:
    upload = await house.announce(picture)
    assert upload["send"]["method"] == ("POST" if house.place == "s3" else "PUT")
    assert "send" not in await house.get(upload)
    listed = (await house.member.get(house.path)).json()["data"]
    assert [each["id"] for each in listed] == [upload["id"]]
    assert "send" not in listed[0]


async def test_what_was_sent_is_gone_once_it_is_completed(house: House, picture: bytes) -> None:
    upload = await house.sent(picture)
    assert house.arrived(upload) == picture
    await house.complete(upload)
    assert house.arrived(upload) == b""


async def test_an_upload_is_completed_once_and_asked_again_answers_the_same(house: House, picture: bytes) -> None:
    upload = await house.sent(picture)
    first, second = await asyncio.gather(house.complete(upload), house.complete(upload))
    third = await house.complete(upload)
    assert [answer.status_code for answer in (first, second, third)] == [200, 200, 200]
    assert first.json() == second.json() == third.json()
    assets = (await house.member.get(f"/v1/brands/{house.brand.id}/assets")).json()["data"]
    assert [asset["id"] for asset in assets] == first.json()["asset_ids"]


async def test_a_link_used_after_the_end_changes_nothing(house: House, picture: bytes, pictures: Draw) -> None:
    upload = await house.sent(picture)
    done = (await house.complete(upload)).json()
    before = await kept_of(house, done)
    other = (pictures(7) + b"\0" * len(picture))[: len(picture)]
    answer = await house.send(upload, other)
    if house.is_local:
        assert answer.status_code == 409
    assert (await house.complete(upload)).json() == done
    assert await kept_of(house, done) == before


async def kept_of(house: House, upload: dict[str, Any]) -> bytes:
    asset = (await house.member.get(f"/v1/brands/{house.brand.id}/assets/{upload['asset_ids'][0]}")).json()
    return house.platform.store.brand(house.brand.id).read(Key("training-data", asset["object_name"]))


async def test_before_anything_has_arrived_it_stays_open(house: House, picture: bytes) -> None:
    upload = await house.announce(picture)
    answer = await house.complete(upload)
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert (await house.send(upload, picture)).is_success
    assert (await house.complete(upload)).status_code == 200


async def test_a_bad_file_is_refused_with_its_reason_and_removed(house: House) -> None:
    data = b"MZ this is no picture" * 9
    upload = await house.sent(data)
    first, second = await house.complete(upload), await house.complete(upload)
    for answer in (first, second):
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media")
    assert first.json()["detail"] == second.json()["detail"]
    found = await house.get(upload)
    assert (found["status"], found["error"]["code"]) == ("refused", "unsupported_media")
    assert house.arrived(upload) == b""


async def test_a_file_of_another_type_than_announced_is_refused(house: House, pictures: Draw) -> None:
    jpeg, page = pictures(uuid.uuid4().int % 10**9, kind="JPEG"), zipped({"a.png": pictures(1)})
    for data, param in ((jpeg, "content_type"), (page, "kind")):
        answer = await house.complete(await house.sent(data))
        assert (answer.status_code, answer.json()["param"]) == (415, param)
    no_zip = await house.sent(jpeg, kind="zip", content_type="application/zip", filename="a.zip")
    assert (await house.complete(no_zip)).status_code == 415
    assert (await house.member.get(f"/v1/brands/{house.brand.id}/assets")).json()["data"] == []


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


async def test_a_zip_becomes_its_pictures_with_their_captions(house: House, pictures: Draw) -> None:
    first, second = (pictures(uuid.uuid4().int % 10**9) for _ in range(2))
    data = zipped({"a.png": first, "b.png": second, "a.txt": b"photo of [brand] a"})
    upload = await house.sent(data, kind="zip", content_type="application/zip", filename="z.zip", caption="[brand] b")
    answer = await house.complete(upload)
    assert answer.status_code == 200, answer.text
    found = [
        (await house.member.get(f"/v1/brands/{house.brand.id}/assets/{asset_id}")).json()
        for asset_id in answer.json()["asset_ids"]
    ]
    assert {(asset["name"], asset["caption"]) for asset in found} == {
        ("a.png", "photo of [brand] a"),
        ("b.png", "[brand] b"),
    }


async def test_a_zip_with_one_bad_picture_becomes_nothing(house: House, picture: bytes) -> None:
    data = zipped({"a.png": picture, "b.png": b"no picture"})
    upload = await house.sent(data, kind="zip", content_type="application/zip", filename="all.zip")
    assert (await house.complete(upload)).status_code == 415
    assert (await house.member.get(f"/v1/brands/{house.brand.id}/assets")).json()["data"] == []


async def test_a_document_becomes_its_next_version(house: House) -> None:
    for number in (1, 2):
        data = f"# Voice\n\nVersion {number}: warm and plain.\n".encode()
        upload = await house.sent(data, kind="document", content_type="text/markdown", filename="Voice.md")
        done = (await house.complete(upload)).json()
        assert (done["asset_ids"], len(done["document_ids"])) == ([], 1), done
        path = f"/v1/brands/{house.brand.id}/documents/{done['document_ids'][0]}"
        document = (await house.member.get(path)).json()
        assert (document["name"], document["version"]) == ("voice", number)


async def test_a_picture_that_is_there_already_is_refused(house: House, picture: bytes) -> None:
    assert (await house.complete(await house.sent(picture))).status_code == 200
    again = await house.sent(picture)
    assert (await house.complete(again)).status_code == 409
    assert (await house.get(again))["status"] == "refused"


async def test_other_bytes_than_those_of_the_hash_are_refused(house: House, picture: bytes, pictures: Draw) -> None:
    upload = await house.announce(picture, sha256=hashlib.sha256(b"other").hexdigest())
    sent = await house.send(upload, picture)
    if house.is_local:
        assert sent.status_code == 422
    else:  # a gateway may leave it to us
        answer = await house.complete(upload)
        assert (answer.status_code, answer.json()["param"]) == (422, "sha256")
    assert (await house.member.get(f"/v1/brands/{house.brand.id}/assets")).json()["data"] == []


async def test_bytes_that_were_put_there_otherwise_are_measured_again(house: House, picture: bytes) -> None:
    """By whoever has the store's own key: nothing of what a link promised is taken for granted."""
    upload = await house.announce(picture)
    key = incoming_file("training-data", house.brand.id, upload["id"])
    house.platform.store.brand(house.brand.id).write(key, picture + b"more")
    answer = await house.complete(upload)
    assert (answer.status_code, answer.json()["param"]) == (422, "bytes")


async def test_a_canceled_upload_takes_nothing_any_more(house: House, picture: bytes) -> None:
    upload = await house.announce(picture)
    assert (await house.member.delete(f"{house.path}/{upload['id']}")).status_code == 204
    sent = await house.send(upload, picture)
    if house.is_local:
        assert sent.status_code == 409
    assert (await house.complete(upload)).status_code == 409
    assert (await house.member.delete(f"{house.path}/{upload['id']}")).status_code == 409
    assert (await house.get(upload))["status"] == "canceled"


async def test_only_who_began_it_completes_or_cancels_it(house: House, picture: bytes) -> None:
    upload = await house.sent(picture)
    for person in (house.brand.member2, house.brand.admin):
        async with house.platform.client(person) as client:
            assert (await client.get(f"{house.path}/{upload['id']}")).status_code == 200
            assert (await client.post(f"{house.path}/{upload['id']}/complete")).status_code == 403
            assert (await client.delete(f"{house.path}/{upload['id']}")).status_code == 403
    assert (await house.get(upload))["status"] == "pending"


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"content_type": "text/html"}, 415, "content_type"),
        ({"content_type": "image/svg+xml"}, 415, "content_type"),
        ({"content_type": "application/pdf"}, 415, "content_type"),
        ({"kind": "zip"}, 415, "content_type"),
        ({"kind": "document", "content_type": "text/html"}, 415, "content_type"),
        ({"kind": "safetensors"}, 422, "kind"),
        ({"kind": "document", "content_type": "application/pdf"}, 415, "filename"),
        ({"kind": "document", "content_type": "application/pdf", "filename": "a.md"}, 415, "content_type"),
        ({**A_PAGE, "object": "logo"}, 422, "object"),
        ({**A_PAGE, "metadata": {"a": 1}}, 422, "metadata"),
        ({**A_PAGE, "caption": "a page"}, 422, "caption"),
        ({**A_PAGE, "bytes": 2**30}, 413, "bytes"),
        ({"bytes": 0}, 422, "bytes"),
        ({"bytes": -1}, 422, "bytes"),
        ({"bytes": 20 * 2**20 + 1}, 413, "bytes"),
        ({"kind": "zip", "content_type": "application/zip", "bytes": 2**40}, 413, "bytes"),
        ({"filename": ""}, 422, "filename"),
        ({"filename": "x" * 256}, 422, "filename"),
        ({"sha256": "zz"}, 422, "sha256"),
        ({"object": "animal"}, 422, "object"),
        ({"caption": "x" * 501}, 422, "captions"),
        ({"metadata": {"a": "x" * 10_001}}, 422, "metadata"),
        ({"key": "globex/logo-001.png"}, 422, "key"),
    ],
)
async def test_what_would_be_refused_is_refused_before_it_is_sent(
    house: House, fields: dict[str, Any], status: int, param: str
) -> None:
    body = {"kind": "image", "filename": "a.png", "content_type": "image/png", "bytes": 10} | fields
    answer = await house.member.post(house.path, json=body)
    assert (answer.status_code, answer.json()["param"]) == (status, param)
    assert (await house.member.get(house.path)).json()["data"] == []


async def test_names_of_files_are_no_keys(house: House, picture: bytes) -> None:
    upload = await house.sent(picture, filename="../../globex/logo-001.png")
    assert (await house.complete(upload)).status_code == 200
    keys = house.platform.store.brand(house.brand.id).list("training-data")
    assert {key.name.split("/")[1] for key in keys} == {"other-001.png", "incoming"}


async def test_a_repeated_announcement_is_answered_again(house: House, picture: bytes) -> None:
    body = {"kind": "image", "filename": "logo.png", "content_type": "image/png", "bytes": len(picture)}
    headers = {"idempotency-key": uuid.uuid4().hex}
    first, second = [await house.member.post(house.path, json=body, headers=headers) for _ in range(2)]
    assert first.json() == second.json()
    assert len((await house.member.get(house.path)).json()["data"]) == 1


async def test_each_link_and_each_end_is_one_line_of_the_record(house: House, picture: bytes) -> None:
    upload = await house.sent(picture, filename="canary-name.png", caption="canary-caption")
    asset_id = (await house.complete(upload)).json()["asset_ids"][0]
    await house.member.get(f"/v1/brands/{house.brand.id}/assets/{asset_id}/content")
    refused = await house.sent(b"no picture")
    await house.complete(refused)
    canceled = await house.announce(picture)
    await house.member.delete(f"{house.path}/{canceled['id']}")
    said = [line for line in await house.actions() if line[0].split(".")[0] in ("upload", "asset")]
    assert " ".join(action for action, _ in said) == (
        "upload.create asset.upload asset.link upload.create upload.refuse upload.create upload.cancel"
    )
    assert said[0][1] == {"upload_id": upload["id"], "bytes": len(picture)}
    assert said[2][1] == {"asset_id": asset_id, "num_links": 1}
    assert said[4][1] == {"upload_id": refused["id"], "code": "unsupported_media"}
    assert "canary" not in str(said)


async def test_a_member_who_was_removed_completes_nothing(house: House, picture: bytes) -> None:
    upload = await house.sent(picture)
    async with house.platform.client(house.brand.admin) as admin:
        await admin.delete(f"/v1/brands/{house.brand.id}/members/{house.brand.member.user_id}")
    assert (await house.complete(upload)).status_code == 404


# Sweeping


def grow_old(owner: psycopg.Connection, upload: dict[str, Any], age: str) -> None:
    """Let the upload expire `age` ago, without the trigger that protects ended uploads."""
    owner.execute("set local session_replication_role = replica")
    owner.execute(
        "update app.uploads set expires_at = clock_timestamp() - %s::interval where id = %s", [age, upload["id"]]
    )
    owner.commit()


async def test_a_late_upload_is_not_completed_any_more(house: House, owner: psycopg.Connection, picture: bytes) -> None:
    upload = await house.sent(picture)
    grow_old(owner, upload, "1 second")
    answer = await house.complete(upload)
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert (await house.member.get(f"/v1/brands/{house.brand.id}/assets")).json()["data"] == []


async def test_an_abandoned_upload_is_swept_and_after_a_day_forgotten(
    house: House, owner: psycopg.Connection, picture: bytes
) -> None:
    old, young = await house.sent(picture), await house.sent(picture)
    grow_old(owner, old, "61 minutes")
    await upload_cleanup.sweep(house.platform.db, house.platform.store)
    assert house.arrived(old) is None
    assert house.arrived(young) == picture
    assert (await house.get(old))["status"] == "expired"
    assert ("upload.expire", {"upload_id": old["id"]}) in await house.actions()
    assert (await house.complete(old)).status_code == 409
    grow_old(owner, old, "25 hours")
    await house.send(old, picture)  # by a link that was used late
    await upload_cleanup.sweep(house.platform.db, house.platform.store)
    assert house.arrived(old) is None
    assert (await house.member.get(f"{house.path}/{old['id']}")).status_code == 404


async def test_what_a_removed_member_left_is_swept_too(house: House, owner: psycopg.Connection, picture: bytes) -> None:
    upload = await house.sent(picture)
    async with house.platform.client(house.brand.admin) as admin:
        await admin.delete(f"/v1/brands/{house.brand.id}/members/{house.brand.member.user_id}")
    grow_old(owner, upload, "61 minutes")
    await upload_cleanup.sweep(house.platform.db, house.platform.store)
    assert house.arrived(upload) is None


async def test_a_completed_upload_is_swept_and_its_asset_stays(
    house: House, owner: psycopg.Connection, picture: bytes
) -> None:
    upload = await house.sent(picture)
    done = (await house.complete(upload)).json()
    grow_old(owner, upload, "61 minutes")
    await upload_cleanup.sweep(house.platform.db, house.platform.store)
    assert house.arrived(upload) is None
    assert (await house.get(upload))["asset_ids"] == done["asset_ids"]
    assert await kept_of(house, done)


async def test_two_sweepers_do_not_get_in_each_others_way(
    house: House, owner: psycopg.Connection, picture: bytes
) -> None:
    for _ in range(3):
        grow_old(owner, await house.sent(picture), "61 minutes")
    db, store = house.platform.db, house.platform.store
    nums = await asyncio.gather(upload_cleanup.sweep(db, store), upload_cleanup.sweep(db, store))
    assert sum(nums) >= 3
    assert await upload_cleanup.sweep(db, store) == 0


async def test_bytes_that_cannot_be_removed_now_are_removed_later(
    house: House, owner: psycopg.Connection, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onbrand.errors import StorageError
    from onbrand.storage.store import BrandStore

    upload = await house.sent(picture)
    grow_old(owner, upload, "61 minutes")
    with monkeypatch.context() as broken:
        broken.setattr(BrandStore, "delete", lambda *_: (_ for _ in ()).throw(StorageError("no")))
        with pytest.raises(StorageError):
            await upload_cleanup.sweep(house.platform.db, house.platform.store)
    assert (await house.get(upload))["status"] == "pending"
    await upload_cleanup.sweep(house.platform.db, house.platform.store)
    assert house.arrived(upload) is None


# In the database


async def test_an_ended_upload_is_never_opened_again(house: House, picture: bytes) -> None:
    upload = await house.announce(picture)
    await house.member.delete(f"{house.path}/{upload['id']}")
    from onbrand.errors import Conflict

    for change in ("status = 'pending', ended_at = null", "status = 'completed'", "error = '{}'"):
        with pytest.raises(Conflict):
            async with house.platform.db.user_session(house.brand.member.scope) as session:
                await session.run(f"update app.uploads set {change} where id = %s", [upload["id"]])


async def test_an_upload_becomes_objects_of_its_own_member_only(house: House, pictures: Draw) -> None:
    mine, theirs = pictures(uuid.uuid4().int % 10**9), pictures(uuid.uuid4().int % 10**9)
    async with house.platform.client(house.brand.member2) as client:
        files = [("files", ("logo.png", theirs, "image/png"))]
        asset = (await client.post(f"/v1/brands/{house.brand.id}/assets", files=files)).json()["data"][0]
        text = {"file": ("voice.md", b"# Voice of " + uuid.uuid4().hex.encode(), "text/markdown")}
        document = (await client.post(f"/v1/brands/{house.brand.id}/documents", files=text)).json()
    done = (await house.complete(await house.sent(mine))).json()
    from onbrand.errors import Forbidden

    for column, thing in (("asset_id", asset), ("document_id", document)):
        with pytest.raises(Forbidden):
            async with house.platform.db.user_session(house.brand.member.scope) as session:
                await session.run(
                    f"insert into app.upload_objects (brand_id, upload_id, index, {column}) values (%s, %s, 9, %s)",
                    [house.brand.id, done["id"], thing["id"]],
                )


# Through the SDK


async def test_the_sdk_sends_a_file_in_one_call(house: House, picture: bytes, pictures: Draw) -> None:
    from onbrand.client import InvalidArgument, Onbrand, UnsupportedMedia

    with Onbrand(house.platform.url, house.platform.token(house.brand.member), max_retries=0) as client:

        def use() -> Any:
            upload = client.uploads.upload(house.brand.id, ("logo.png", picture), "photo of [brand]", object="logo")
            assert [each.id for each in client.uploads.list(house.brand.id)] == [upload.id]
            assert client.uploads.get(house.brand.id, upload.id) == upload
            with pytest.raises(UnsupportedMedia):
                client.uploads.upload(house.brand.id, ("x.png", b"no picture"))
            with pytest.raises(InvalidArgument):
                client.uploads.upload(house.brand.id, ("x.exe", b"MZ"))
            with pytest.raises(InvalidArgument):
                client.uploads.send(upload, b"again")
            return client.assets.get(house.brand.id, upload.asset_ids[0])

        asset = await asyncio.to_thread(use)
    assert (asset.name, asset.object, asset.caption) == ("logo.png", "logo", "photo of [brand]")


async def test_the_command_line_sends_files(house: House, pictures: Draw, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"{number}.png").write_bytes(pictures(uuid.uuid4().int % 10**9))
    token = house.platform.token(house.brand.member)
    environment = {**os.environ, "ONBRAND_URL": house.platform.url, "ONBRAND_TOKEN": token, "PYTHONPATH": "platform"}

    async def run(*words: str) -> tuple[int | None, dict[str, Any]]:
        command = [sys.executable, "-m", "onbrand.cli", "upload", *words, "--brand", house.brand.id, "--json"]
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        return process.returncode, json.loads(out)

    code, said = await run("send", str(tmp_path), "--object", "logo")
    assert (code, [each["status"] for each in said["data"]]) == (0, ["completed", "completed"])
    assert "signature" not in json.dumps(said)
    (tmp_path / "3.png").write_bytes(b"no picture")
    code, said = await run("send", str(tmp_path / "3.png"))
    assert (code, said["error"]["code"]) == (5, "unsupported_media")
    code, said = await run("list")
    assert [each["status"] for each in said["data"]] == ["refused", "completed", "completed"]
