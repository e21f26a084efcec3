"""Documents and archives through the HTTP API, the SDK and the store."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pikepdf
import psycopg
import pytest

import onbrand.client as sdk
from onbrand.errors import InvalidInput
from onbrand.services import documents
from onbrand.storage.layout import Key, document
from tests.conftest import BrandOfPeople, MakeBrand
from tools.harness.in_process_platform import Platform

TEXT = b"# Voice\n\nBe kind.\n"


@pytest.fixture
async def acme(make_brand: MakeBrand) -> BrandOfPeople:
    return await make_brand("acme")


@pytest.fixture
async def member(platform: Platform, acme: BrandOfPeople) -> AsyncIterator[httpx.AsyncClient]:
    async with platform.client(acme.member) as client:
        client.base_url = httpx.URL(f"http://test/v1/brands/{acme.id}")
        yield client


def pdf(num_pages: int = 1) -> bytes:
    with pikepdf.Pdf.new() as made:
        for _ in range(num_pages):
            made.add_blank_page()
        out = io.BytesIO()
        made.save(out)
    return out.getvalue()


async def sent(client: httpx.AsyncClient, filename: str, data: bytes, **fields: str) -> dict[str, Any]:
    answer = await client.post("/documents", files={"file": (filename, data)}, data=fields)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_a_document_has_versions(member: httpx.AsyncClient, acme: BrandOfPeople) -> None:
    first = await sent(member, "Brand Guidelines.pdf", pdf(2))
    second = await sent(member, "brand_guidelines.PDF", pdf(3))
    other = await sent(member, "Voice.md", TEXT)
    assert [(one["name"], one["version"], one["num_pages"]) for one in (first, second, other)] == [
        ("brand-guidelines", 1, 2),
        ("brand-guidelines", 2, 3),
        ("voice", 1, None),
    ]
    assert first["object_name"] == f"{acme.id}/brand-guidelines.pdf"
    assert second["object_name"] == f"{acme.id}/brand-guidelines/v2.pdf"
    newest = (await member.get("/documents")).json()["data"]
    assert [one["id"] for one in newest] == [other["id"], second["id"]]
    versions = (await member.get(f"/documents/{first['id']}/versions")).json()["data"]
    assert [one["id"] for one in versions] == [second["id"], first["id"]]
    assert (await member.get(f"/documents/{first['id']}")).json() == first


async def test_a_title_names_a_document(member: httpx.AsyncClient) -> None:
    made = await sent(member, "final-FINAL.md", TEXT, title="Tone of Voice: Élan!")
    assert (made["name"], made["title"]) == ("tone-of-voice-elan", "Tone of Voice: Élan!")


@pytest.mark.parametrize("title", ["", "   ", "!!!", "incoming", "x" * 201, "a\nb"])
async def test_a_title_that_cannot_name_one_is_refused(member: httpx.AsyncClient, title: str) -> None:
    answer = await member.post("/documents", files={"file": ("a.md", TEXT)}, data={"title": title})
    assert (answer.status_code, answer.json()["param"]) == (422, "title")


async def test_the_same_document_again_is_a_conflict(member: httpx.AsyncClient) -> None:
    await sent(member, "a.md", TEXT)
    again = await member.post("/documents", files={"file": ("a.md", TEXT)})
    assert again.status_code == 409
    assert (await sent(member, "a.md", TEXT + b"\nMore.\n"))["version"] == 2


async def test_a_repeated_call_makes_one_version(member: httpx.AsyncClient) -> None:
    headers = {"idempotency-key": "one"}
    answers = [await member.post("/documents", files={"file": ("a.md", TEXT)}, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json() == answers[1].json()
    assert len((await member.get("/documents")).json()["data"]) == 1


async def test_two_at_once_become_two_versions(member: httpx.AsyncClient) -> None:
    made = await asyncio.gather(*[sent(member, "a.md", TEXT + b"\n%d\n" % number) for number in range(5)])
    assert sorted(one["version"] for one in made) == [1, 2, 3, 4, 5]


async def test_a_document_is_saved_and_never_shown(member: httpx.AsyncClient, platform: Platform) -> None:
    made = await sent(member, "a.md", b"# Hello\n")
    link = (await member.get(f"/documents/{made['id']}/content")).json()
    async with platform.client() as anyone:
        answer = await anyone.get(link["url"])
    assert answer.content == b"# Hello\n"
    assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


async def test_an_admin_deletes_a_version_with_its_bytes(
    member: httpx.AsyncClient, platform: Platform, acme: BrandOfPeople
) -> None:
    made = await sent(member, "a.md", TEXT)
    path = f"/v1/brands/{acme.id}/documents/{made['id']}"
    key, store = Key("brand-documents", made["object_name"]), platform.store.brand(acme.id)
    assert store.exists(key)
    async with platform.client(acme.member) as client:
        assert (await client.delete(path)).status_code == 403
    async with platform.client(acme.admin) as client:
        assert (await client.delete(path)).status_code == 204
        assert (await client.get(path)).status_code == 404
    assert not store.exists(key)
    assert (await sent(member, "a.md", TEXT))["version"] == 2


async def test_what_happened_to_a_document_is_recorded(
    member: httpx.AsyncClient, platform: Platform, acme: BrandOfPeople, owner: psycopg.Connection
) -> None:
    made = await sent(member, "canary-name.md", b"# canary-text\n", title="canary-title")
    await member.get(f"/documents/{made['id']}/content")
    async with platform.client(acme.admin) as client:
        await client.delete(f"/v1/brands/{acme.id}/documents/{made['id']}")
    lines = owner.execute(
        "select action, detail::text from audit.events where brand_id = %s and action like 'document.%%' order by seq",
        [acme.id],
    ).fetchall()
    assert [action for action, _ in lines] == ["document.create", "document.link", "document.delete"]
    assert all(made["id"] in detail and "canary" not in detail for _, detail in lines)


async def test_a_refused_document_leaves_nothing(member: httpx.AsyncClient, platform: Platform, acme: Any) -> None:
    answer = await member.post("/documents", files={"file": ("a.md", b"<script>alert(1)</script>")})
    assert answer.status_code == 422
    assert (await member.get("/documents")).json()["data"] == []
    assert platform.store.brand(acme.id).list("brand-documents") == []


@pytest.mark.parametrize(
    ("send", "param"),
    [
        ({"files": {"file": ("a.md", TEXT)}, "data": {"more": "x"}}, "more"),
        ({"files": {"other": ("a.md", TEXT)}}, "other"),
        ({"files": [("file", ("a.md", TEXT)), ("file", ("b.md", TEXT))]}, "file"),
        ({"json": {"file": "x"}}, "file"),
    ],
)
async def test_a_form_that_is_none_is_refused_by_name(member: httpx.AsyncClient, send: Any, param: str) -> None:
    answer = await member.post("/documents", **send)
    assert answer.status_code in (413, 415, 422)
    assert answer.json()["param"] == param


async def test_the_sdk_knows_documents(platform: Platform, acme: BrandOfPeople, tmp_path: Path) -> None:
    def use() -> None:
        with sdk.Onbrand(platform.url, platform.token(acme.admin), max_retries=0) as client:
            path = tmp_path / "Brand Guidelines.md"
            path.write_bytes(TEXT)
            first = client.documents.upload(acme.id, path)
            second = client.documents.upload(acme.id, ("x.pdf", pdf()), title="Brand Guidelines")
            assert [one.id for one in first.versions()] == [second.id, first.id]
            assert [one.id for one in client.documents.list(acme.id)] == [second.id]
            assert first.read() == TEXT
            assert second.download(tmp_path).name == "brand-guidelines-v2.pdf"
            client.documents.delete(acme.id, first.id)
            with pytest.raises(sdk.NotFound):
                client.documents.get(acme.id, first.id)

    await asyncio.to_thread(use)


async def test_the_command_line_knows_documents(platform: Platform, acme: BrandOfPeople, tmp_path: Path) -> None:
    environment = os.environ | {"ONBRAND_URL": platform.url, "ONBRAND_TOKEN": platform.token(acme.admin)}
    (tmp_path / "Voice.md").write_bytes(TEXT)

    async def run(*arguments: str) -> Any:
        command = [sys.executable, "-m", "onbrand.cli", "document", *arguments, "--json"]
        done = await asyncio.to_thread(subprocess.run, command, env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout
        return json.loads(done.stdout)

    made = await run("upload", str(tmp_path / "Voice.md"), "--title", "Tone of Voice")
    assert (made["name"], made["version"]) == ("tone-of-voice", 1)
    assert [one["id"] for one in (await run("versions", made["id"]))["data"]] == [made["id"]]
    saved = await run("download", made["id"], "--out", str(tmp_path))
    assert Path(saved["path"]).read_bytes() == TEXT
    assert (await run("delete", made["id"]))["deleted"] is True
    assert (await run("list"))["data"] == []


def test_keys_of_documents_never_meet() -> None:
    assert document("acme", "guide", "pdf").name == "acme/guide.pdf"
    assert document("acme", "guide", "pdf", 2).name == "acme/guide/v2.pdf"
    assert document("acme", "guide-v2", "pdf").name == "acme/guide-v2.pdf"
    with pytest.raises(InvalidInput):
        document("acme", "incoming", "pdf", 2)


@pytest.mark.parametrize("filename", ["a.pdf", "A.PDF", "x/y\\b.md", "c.markdown"])
def test_a_file_name_promises_a_type(filename: str) -> None:
    assert documents.must_be_document_name(filename)[1] in ("pdf", "md")


# archives of pictures


def archive(*entries: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in entries:
            made.writestr(name, data)
    return out.getvalue()


async def test_an_archive_becomes_assets_with_their_captions(member: httpx.AsyncClient, pictures: Any) -> None:
    packed = archive(("kit/a.png", pictures(1)), ("kit/a.txt", b"photo of [brand] logo"), ("kit/b.png", pictures(2)))
    answer = await member.post("/assets", files={"files": ("kit.zip", packed)}, data={"object": "logo"})
    assert answer.status_code == 201, answer.text
    made = answer.json()["data"]
    assert [(one["name"], one["caption"], one["object"]) for one in made] == [
        ("a.png", "photo of [brand] logo", "logo"),
        ("b.png", "photo of [brand] logo", "logo"),
    ]


async def test_an_archive_and_a_picture_go_together(member: httpx.AsyncClient, pictures: Any) -> None:
    files = [("files", ("kit.zip", archive(("a.png", pictures(1))))), ("files", ("b.png", pictures(2)))]
    answer = await member.post("/assets", files=files, data={"captions": '["from the kit", null]'})
    assert [one["caption"] for one in answer.json()["data"]] == ["from the kit", "photo of [brand]"]


async def test_an_archive_is_taken_whole_or_not_at_all(member: httpx.AsyncClient, pictures: Any) -> None:
    packed = archive(("a.png", pictures(1)), ("b.png", b"no picture"))
    answer = await member.post("/assets", files={"files": ("kit.zip", packed)})
    assert answer.status_code == 415
    assert "b.png" in answer.json()["detail"]
    assert (await member.get("/assets")).json()["data"] == []


async def test_a_picture_twice_in_an_archive_is_a_conflict(member: httpx.AsyncClient, pictures: Any) -> None:
    packed = archive(("a.png", pictures(1)), ("b.png", pictures(1)))
    answer = await member.post("/assets", files={"files": ("kit.zip", packed)})
    assert answer.status_code == 409
    assert "b.png is the same picture as a.png" in answer.json()["detail"]
