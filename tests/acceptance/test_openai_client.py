"""The unchanged `openai` package with a running platform."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.acceptance.conftest import Trained
from tools.harness.platform_process import Person, pixels


@pytest.fixture
def client(acme: Trained) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{acme.person.url}/v1", api_key=acme.person.token) as client:
        yield client


def test_the_openai_client_lists_the_brands_models(client: openai.OpenAI) -> None:
    assert "acme/sd15-lora-v1" in [model.id for model in client.models.list()]


def test_the_openai_client_draws_the_picture_that_the_native_api_draws(
    client: openai.OpenAI, acme: Trained, tmp_path: Path
) -> None:
    answer = client.images.generate(
        model="acme/sd15-lora-v1",
        prompt="photo of [brand] logo",
        n=1,
        response_format="b64_json",
        extra_body={"seed": 11},
    )
    assert answer.data
    (tmp_path / "drawn.png").write_bytes(base64.b64decode(answer.data[0].b64_json or ""))
    apart = abs(pixels(tmp_path / "drawn.png") - pixels(acme.generation["paths"][0]))
    assert apart.max() <= 1  # drawn there in a batch of another size: the same but for how a value is rounded


def test_another_brands_model_is_not_found(acme: Trained, rival: Person) -> None:
    with openai.OpenAI(base_url=f"{rival.url}/v1", api_key=rival.token, max_retries=0) as client:
        with pytest.raises(openai.NotFoundError):
            client.images.generate(model="acme/sd15-lora-v1", prompt="photo of [brand] logo")
        assert [model.id for model in client.models.list() if model.id.startswith("acme/")] == []


def test_a_forged_key_is_refused(acme: Trained) -> None:
    with openai.OpenAI(base_url=f"{acme.person.url}/v1", api_key=acme.person.token[:-6] + "AAAAAA") as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
