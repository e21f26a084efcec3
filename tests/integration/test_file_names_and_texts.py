"""Files, names and texts of several systems: every route applies the same rule."""

from __future__ import annotations

import io
import json
import re
import uuid
import zipfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.conftest import BrandOfPeople, MakeBrand
from tools.harness.in_process_platform import Platform

Draw = Callable[..., bytes]
TAKEN = ["Screenshot 3.14.15\u202fPM.png", "a\u00a0b.png", "می\u200cخواهم.png", "👩\u200d🎨.png", "so\u00adft.png"]
REFUSED = ["lo\u202ego", "lo\u2066go", "lo\x1bgo", "lo\x9bgo"]


@dataclass
class House:
    brand: BrandOfPeople
    member: httpx.AsyncClient

    @property
    def path(self) -> str:
        return f"/v1/brands/{self.brand.id}"

    async def form(self, *files: tuple[str, bytes], **fields: str) -> httpx.Response:
        parts = [("files", (name, data, "application/octet-stream")) for name, data in files]
        return await self.member.post(f"{self.path}/assets", files=parts, data=fields)

    async def zip(self, *files: tuple[str, bytes]) -> httpx.Response:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as made:
            for name, data in files:
                made.writestr(name, data)
        return await self.form(("all.zip", out.getvalue()))

    async def announce(self, filename: str, **fields: Any) -> httpx.Response:
        body = {"kind": "image", "filename": filename, "content_type": "image/png", "bytes": 9} | fields
        return await self.member.post(f"{self.path}/uploads", json=body)


@pytest.fixture
async def house(platform: Platform, make_brand: MakeBrand) -> AsyncIterator[House]:
    brand = await make_brand("people")
    async with platform.client(brand.member) as member:
        yield House(brand, member)


@pytest.fixture
def draw(pictures: Draw) -> Callable[[], bytes]:
    return lambda: pictures(uuid.uuid4().int % 10**9)


def said(answer: httpx.Response) -> list[tuple[str, str]]:
    assert answer.status_code == 201, answer.text
    return [(asset["name"], asset["caption"]) for asset in answer.json()["data"]]


async def test_a_form_of_a_whole_folder_is_taken_as_a_zip_of_it(house: House, draw: Callable[[], bytes]) -> None:
    def folder() -> list[tuple[str, bytes]]:
        return [
            ("p/LOGO.JPG", draw()),
            ("p/logo.TXT", "photo of\u00a0[brand]\r\nat night".encode("utf-16")),
            ("p/gro\u0308ße.png", draw()),
            ("p/größe.txt", "\ufeff[brand] größe".encode()),
            ("p/._LOGO.JPG", b"\0\5\x16\7"),
            ("p/.DS_Store", b"Bud1"),
            ("p/Icon\r", b""),
            ("p/Thumbs.db", b"\xd0\xcf"),
            ("p/@eaDir/LOGO.JPG/SYNOPHOTO_THUMB_M.jpg", draw()),
            ("__MACOSX/p/._x.png", b"\0\5\x16\7"),
        ]

    expected = [("LOGO.JPG", "photo of\u00a0[brand]\nat night"), ("größe.png", "[brand] größe")]
    assert said(await house.form(*folder())) == expected
    assert said(await house.zip(*folder())) == expected


async def test_captions_and_what_is_left_out_do_not_count_as_pictures(house: House, draw: Callable[[], bytes]) -> None:
    files = [(f"{i}.png", draw()) for i in range(30)]
    texts = [(f"{i}.txt", b"[brand]") for i in range(30)]
    forks = [(f"._{name}", b"\0\5\x16\7") for name, _ in files]
    assert len(said(await house.form(*files, *texts, *forks))) == 30


async def test_a_caption_that_is_said_stays_with_its_file(house: House, draw: Callable[[], bytes]) -> None:
    files = [("._a.png", b"\0\5\x16\7"), ("a.png", draw()), ("b.png", draw()), ("b.txt", b"[brand] b")]
    captions = json.dumps(["nobody's", "[brand] a", None, None])
    assert said(await house.form(*files, captions=captions)) == [("a.png", "[brand] a"), ("b.png", "[brand] b")]


@pytest.mark.parametrize(
    ("files", "status", "why"),
    [
        ([("notes.txt", b"x")], 415, r"notes\.txt is neither a picture nor the caption"),
        ([("a.png", b"x"), ("a.jpg", b"y"), ("a.txt", b"z")], 415, r"a\.txt is neither .* exactly one picture"),
        ([("a.png", b"x"), ("a.txt", b"\xff")], 422, r"a\.txt is not text in UTF-8"),
        ([("a.png", b"x"), ("a.txt", b" ")], 422, r"the caption in a\.txt must have 1 to 500"),
        ([("a.png", b"x"), ("a.txt", b"x" * 9000)], 413, r"a\.txt has more than 500 characters"),
        ([("a.png", b"x"), ("a.txt", "a\u202eb".encode())], 422, r"a\.txt holds characters that cannot be seen"),
        ([("Thumbs.db", b"x")], 422, r"Thumbs\.db is no picture"),
        ([("._a.png", b"x")], 422, r"\._a\.png is no picture"),
    ],
)  # fmt: skip
async def test_what_does_not_belong_in_a_form_is_named(
    house: House, files: list[tuple[str, bytes]], status: int, why: str
) -> None:
    answer = await house.form(*files)
    assert answer.status_code == status
    assert re.search(why, answer.json()["detail"]), answer.json()["detail"]


@pytest.mark.parametrize("name", TAKEN)
async def test_a_name_that_people_have_is_kept_at_every_door(
    house: House, draw: Callable[[], bytes], name: str
) -> None:
    assert said(await house.form((name, draw())))[0][0] == name
    assert said(await house.zip((name, draw())))[0][0] == name
    answer = await house.announce(name)
    assert answer.status_code == 201, answer.text
    assert answer.json()["filename"] == name


@pytest.mark.parametrize("name", REFUSED)
async def test_a_name_that_turns_or_controls_is_refused_at_every_door(
    house: House, draw: Callable[[], bytes], name: str
) -> None:
    answers = [await house.form((f"{name}.png", draw())), await house.zip((f"{name}.png", draw()))]
    answers.append(await house.announce(f"{name}.png"))
    for answer in answers:
        assert answer.status_code == 422, answer.text
        assert "lo?go.png" in answer.json()["detail"]
        assert "cannot be seen" in answer.json()["detail"]


async def test_what_a_system_keeps_is_not_announced(house: House) -> None:
    answer = await house.announce("._a.png")
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "filename")
    assert "._a.png is kept by a system" in answer.json()["detail"]


TEXTS_TAKEN = [
    "photo of\u00a0[brand]",
    "می\u200cخواهم",
    "👩\u200d🎨 [brand]",
    "so\u00adft",
    "two\nlines\tof it",
    "\u200e[brand]",
]
TEXTS_REFUSED = ["a\u202eb", "a\u2068b", "a\x08b", "a\x9bb"]


def doors_of_texts(house: House, asset_id: str) -> dict[str, Callable[[str], Any]]:
    member, path = house.member, house.path
    return {
        "a caption": lambda text: member.patch(f"{path}/assets/{asset_id}", json={"caption": text}),
        "a caption announced": lambda text: house.announce("a.png", caption=text),
        "a prompt": lambda text: member.post(
            f"{path}/generations", json={"prompt": text, "model_type": "sd15"}, headers={"prefer": "wait=20"}
        ),
        "what is not to be drawn": lambda text: member.post(
            f"{path}/generations",
            json={"prompt": "x", "negative_prompt": text, "model_type": "sd15"},
            headers={"prefer": "wait=20"},
        ),
    }


async def test_texts_go_by_one_rule_at_every_door(house: House, draw: Callable[[], bytes]) -> None:
    asset_id = (await house.form(("a.png", draw()))).json()["data"][0]["id"]
    for door, send in doors_of_texts(house, asset_id).items():
        for text in TEXTS_TAKEN:
            answer = await send(text)
            assert answer.status_code in (200, 201), (door, text, answer.text)
        for text in TEXTS_REFUSED:
            answer = await send(text)
            assert answer.status_code == 422, (door, text)
            assert "cannot be seen" in answer.json()["detail"], (door, answer.text)
            assert text not in answer.text


async def test_names_of_jobs_and_sample_prompts_go_by_it_too(house: House, draw: Callable[[], bytes]) -> None:
    asset_id = (await house.form(("a.png", draw()))).json()["data"][0]["id"]
    body = {"name": "first", "model_type": "sd15", "training_asset_ids": [asset_id]}
    for wrong in ({"name": "a\u202eb"}, {"training_config": {"sample_prompts": ["a\x1bb"]}}):
        answer = await house.member.post(f"{house.path}/training-jobs", json=body | wrong)
        assert answer.status_code == 422
        assert "cannot be seen" in answer.json()["detail"], answer.text
