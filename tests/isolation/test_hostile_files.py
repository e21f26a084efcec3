"""Every hostile file is refused over HTTP with its reason, and the service keeps responding."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest

from tests.conftest import MakeBrand
from tools.harness.hostile_files import archives, documents, pictures
from tools.harness.hostile_files.corpus import Hostile, corpus
from tools.harness.hostile_files.sending import FileRoutes, open_file_routes
from tools.harness.in_process_platform import Platform, weights

CORPUS = corpus()


@pytest.fixture(scope="module")
async def file_routes(platform: Platform, make_brand: MakeBrand) -> AsyncIterator[FileRoutes]:
    async with open_file_routes(platform, await make_brand("hostile")) as opened:
        yield opened


@pytest.mark.parametrize("hostile", CORPUS, ids=lambda hostile: hostile.name)
async def test_a_hostile_file_is_refused_with_its_reason(hostile: Hostile, file_routes: FileRoutes) -> None:
    answer = await file_routes.send(hostile.route, hostile.filename, hostile.make())
    said = answer.json()
    assert answer.status_code in hostile.statuses, said
    assert answer.headers["content-type"] == "application/problem+json"
    assert re.search(hostile.why, said["detail"]), said["detail"]
    assert said["detail"].isprintable()
    healthy = await file_routes.client(hostile.route).get("/healthz")
    assert healthy.status_code == 200


def test_the_corpus_is_large_and_has_every_kind() -> None:
    print(f"{len(CORPUS)} hostile files")
    assert len(CORPUS) >= 150
    assert len({hostile.name for hostile in CORPUS}) == len(CORPUS)
    assert {hostile.route for hostile in CORPUS} == {"assets", "documents", "publish"}


async def test_after_all_of_them_good_files_are_taken(file_routes: FileRoutes) -> None:
    good = [
        ("assets", "a.png", pictures.picture("PNG", 100)),
        ("assets", "a.jpg", pictures.picture("JPEG")),
        ("assets", "a.webp", pictures.picture("WEBP")),
        (
            "assets",
            "a.zip",
            archives.packed(("a/b.png", pictures.picture("PNG", 104)), ("a/b.txt", b"photo of [brand]")),
        ),
        ("documents", "Guidelines.pdf", documents.pdf()),
        ("documents", "Voice.md", b"# Voice\n\nKind, `<brief>`, 1 < 2. [More](https://acme.example/voice)\n"),
        ("documents", "Flags.md", "".join(map(documents.flag, ("gbeng", "gbsct", "gbwls"))).encode()),
        ("publish", "a.safetensors", weights("hostile")),
    ]
    for route, filename, data in good:
        answer = await file_routes.send(route, filename, data)
        assert answer.status_code == 201, (filename, answer.text)
