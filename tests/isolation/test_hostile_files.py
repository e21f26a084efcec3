"""Every hostile file is refused over HTTP with the reason named, and the service answers on."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest

from tests.conftest import MakeBrand
from tests.ingress import Platform, weights
from tests.isolation.hostile import archives, papers, pictures
from tests.isolation.hostile.corpus import Hostile, corpus
from tests.isolation.hostile.sending import Database, open_doors

CORPUS = corpus()


@pytest.fixture(scope="module")
async def doors_of_files(platform: Platform, make_brand: MakeBrand) -> AsyncIterator[Database]:
    async with open_doors(platform, await make_brand("hostile")) as opened:
        yield opened


@pytest.mark.parametrize("hostile", CORPUS, ids=lambda hostile: hostile.name)
async def test_a_hostile_file_is_refused_with_its_reason(hostile: Hostile, doors_of_files: Database) -> None:
    answer = await doors_of_files.send(hostile.door, hostile.filename, hostile.make())
    said = answer.json()
    assert answer.status_code in hostile.statuses, said
    assert answer.headers["content-type"] == "application/problem+json"
    assert re.search(hostile.why, said["detail"]), said["detail"]
    assert said["detail"].isprintable()
    healthy = await doors_of_files.client(hostile.door).get("/healthz")
    assert healthy.status_code == 200


def test_the_corpus_is_large_and_has_every_kind() -> None:
    print(f"{len(CORPUS)} hostile files")
    assert len(CORPUS) >= 150
    assert len({hostile.name for hostile in CORPUS}) == len(CORPUS)
    assert {hostile.door for hostile in CORPUS} == {"assets", "documents", "publish"}


async def test_after_all_of_them_good_files_are_taken(doors_of_files: Database) -> None:
    good = [
        ("assets", "a.png", pictures.picture("PNG", 100)),
        ("assets", "a.jpg", pictures.picture("JPEG")),
        ("assets", "a.webp", pictures.picture("WEBP")),
        (
            "assets",
            "a.zip",
            archives.packed(("a/b.png", pictures.picture("PNG", 104)), ("a/b.txt", b"photo of [brand]")),
        ),
        ("documents", "Guidelines.pdf", papers.pdf()),
        ("documents", "Voice.md", b"# Voice\n\nKind, `<brief>`, 1 < 2. [More](https://acme.example/voice)\n"),
        ("documents", "Flags.md", "".join(map(papers.flag, ("gbeng", "gbsct", "gbwls"))).encode()),
        ("publish", "a.safetensors", weights("hostile")),
    ]
    for door, filename, data in good:
        answer = await doors_of_files.send(door, filename, data)
        assert answer.status_code == 201, (filename, answer.text)
