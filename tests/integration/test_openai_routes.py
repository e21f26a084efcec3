"""OpenAI's optional fields, with its own client and the app behind uvicorn."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from PIL import Image

from tests.conftest import BrandOfPeople, MakeBrand
from tools.harness.in_process_platform import Platform

ASKED = {"model": "sd15", "prompt": "a logo", "size": "64x64"}


@pytest.fixture(scope="module")
async def acme(make_brand: MakeBrand) -> BrandOfPeople:
    return await make_brand("acme")


@pytest.fixture
async def client(platform: Platform, acme: BrandOfPeople) -> AsyncIterator[openai.AsyncOpenAI]:
    token = platform.token(acme.member, acme.id)
    async with openai.AsyncOpenAI(base_url=f"{platform.url}/v1", api_key=token, max_retries=0) as client:
        yield client


async def drawn(platform: Platform, client: openai.AsyncOpenAI, **fields: Any) -> tuple[bytes, Any]:
    """The picture, and the request that the engine got."""
    answer = await client.images.generate(**ASKED, response_format="b64_json", **fields)
    return base64.b64decode(answer.data[0].b64_json), platform.generator.seen[-1]


@pytest.mark.parametrize(
    ("quality", "factor"), [("low", 0.5), ("medium", 1), ("high", 1.5), ("auto", 1), ("standard", 1)]
)
async def test_quality_is_steps(platform: Platform, client: openai.AsyncOpenAI, quality: Any, factor: float) -> None:
    _, plain = await drawn(platform, client)
    _, asked = await drawn(platform, client, quality=quality)
    assert asked.parameters.num_inference_steps == -(-plain.parameters.num_inference_steps * factor // 1)


async def test_compression_reaches_the_engine_and_the_row(
    platform: Platform, acme: BrandOfPeople, client: openai.AsyncOpenAI
) -> None:
    data, asked = await drawn(platform, client, output_format="jpeg", output_compression=40)
    assert asked.parameters.output_compression == 40
    assert Image.open(io.BytesIO(data)).format == "JPEG"
    async with platform.client(acme.member) as member:
        newest = (await member.get(f"/v1/brands/{acme.id}/generations")).json()["data"][0]
    assert newest["output_compression"] == 40


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"), ({"n": 99}, "n"), ({"n": "many"}, "n"), ({"size": "1x1"}, "size"), ({"size": "65x64"}, "size"),
        ({"size": "64x9992"}, "size"), ({"size": "big"}, "size"), ({"quality": "best"}, "quality"),
        ({"quality": "low", "num_inference_steps": 3}, "quality"), ({"output_compression": 50}, "output_compression"),
        ({"output_compression": 101, "output_format": "webp"}, "output_compression"),
        ({"output_format": "gif"}, "output_format"), ({"style": "vivid"}, "style"),
        ({"partial_images": 2}, "partial_images"), ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"stream": True, "n": 2}, "n"), ({"stream": True, "response_format": "url"}, "response_format"),
        ({"stream": "yes please"}, "stream"), ({"background": "transparent"}, "background"),
        ({"response_format": "svg"}, "response_format"), ({"model": "nobody/sd15x"}, None),
    ],
    ids=str,
)  # fmt: skip
async def test_an_error_names_openais_field(
    client: openai.AsyncOpenAI, fields: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        await client.post("/images/generations", body=ASKED | fields, cast_to=object)
    assert refused.value.status_code == (422 if param else 404)
    assert refused.value.param == param
    assert not param or param in str(refused.value.body)


async def test_a_stream_shows_previews_and_then_the_picture(platform: Platform, client: openai.AsyncOpenAI) -> None:
    stream = await client.images.generate(**ASKED, stream=True, partial_images=2, quality="high", output_format="webp")
    events = [event async for event in stream]
    *partial, last = events
    assert last.type == "image_generation.completed"
    assert (last.size, last.quality, last.output_format, last.usage.total_tokens) == ("64x64", "high", "webp", 0)
    assert Image.open(io.BytesIO(base64.b64decode(last.b64_json))).format == "WEBP"
    assert [event.type for event in partial] == ["image_generation.partial_image"] * len(partial)
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    asked = platform.generator.seen[-1]
    assert asked.parameters.preview_every == asked.parameters.num_inference_steps // 3


async def test_a_stream_that_fails_says_so(client: openai.AsyncOpenAI) -> None:
    stream = await client.images.generate(**ASKED | {"prompt": "[break]"}, stream=True)
    with pytest.raises(openai.APIError, match="no pictures"):
        _ = [event async for event in stream]


async def test_who_leaves_a_stream_cancels_its_picture(platform: Platform, acme: BrandOfPeople, client) -> None:
    stream = await client.images.generate(**ASKED | {"prompt": "[hang]"}, stream=True, partial_images=1)
    async for event in stream:
        assert event.type == "image_generation.partial_image"
        break
    await stream.close()
    async with platform.client(acme.member) as member:
        for _ in range(200):
            newest = (await member.get(f"/v1/brands/{acme.id}/generations")).json()["data"][0]
            if newest["status"] == "canceled":
                return
    raise AssertionError(f"the generation is {newest['status']}")
