"""Canary strings in ACME's rows appear in no response to GLOBEX, and captions and prompts appear in no log."""

from __future__ import annotations

import logging

import pytest

from tests.conftest import MakeBrand, MakeUser
from tests.isolation.fixtures import Draw, Fixtures, build_fixtures
from tools.harness.in_process_platform import Platform, upload

LISTS = ("/v1/me", "/v1/brands", "/v1/models", "/v1/invitations")
BRAND_LISTS = ("", "/members", "/assets", "/training-jobs", "/models", "/generations", "/images")


@pytest.fixture(scope="module")
async def fixtures(platform: Platform, make_brand: MakeBrand, make_user: MakeUser, pictures: Draw) -> Fixtures:
    return await build_fixtures(platform, make_brand, make_user, pictures)


async def everything(fixtures: Fixtures, persona: str, brand_id: str) -> str:
    """Everything that a persona can list."""
    async with fixtures.client(persona) as client:
        paths = [*LISTS, *(f"/v1/brands/{brand_id}{path}" for path in BRAND_LISTS)]
        answers = [await client.get(path) for path in paths]
    assert {answer.status_code for answer in answers} == {200}
    return "".join(answer.text for answer in answers)


async def test_a_member_of_acme_sees_the_canaries(fixtures: Fixtures) -> None:
    """The test of the test: they are where the next one looks."""
    seen = await everything(fixtures, "member", fixtures.acme.id)
    for canary in ("canary-caption", "canary-job", "canary-word", "canary-prompt", "canary-reason", fixtures.acme.id):
        assert canary in seen, canary


@pytest.mark.parametrize("persona", ["other_member", "other_admin"])
async def test_nobody_of_globex_sees_any(fixtures: Fixtures, persona: str) -> None:
    seen = await everything(fixtures, persona, fixtures.globex.id)
    assert fixtures.globex.id in seen
    assert "canary" not in seen
    assert fixtures.acme.id not in seen
    assert not [name for name, thing in fixtures.things.items() if thing in seen]


async def test_a_bound_token_lists_its_brand_only(fixtures: Fixtures) -> None:
    async with fixtures.platform.client(fixtures.acme.member, brand_id=fixtures.acme.id) as client:
        brands = (await client.get("/v1/brands")).json()["data"]
        ids = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
    assert [brand["id"] for brand in brands] == [fixtures.acme.id]
    assert ids[0] == "sd15-lora-v1"


async def test_a_taken_brand_id_tells_nothing_of_the_brand(fixtures: Fixtures) -> None:
    async with fixtures.client("other_admin") as client:
        answer = await client.post("/v1/brands", json={"id": fixtures.acme.id, "name": "Mine"})
    assert answer.status_code == 409
    assert "canary" not in answer.text


async def test_an_upload_of_what_another_brand_has_is_like_any_upload(fixtures: Fixtures, pictures: Draw) -> None:
    """No hint that the same picture lies in another brand."""
    async with fixtures.client("member") as mine, fixtures.client("other_member") as theirs:
        await upload(mine, fixtures.acme.id, pictures(77))
        await upload(theirs, fixtures.globex.id, pictures(77))


async def test_a_renewed_ticket_names_the_same_job(fixtures: Fixtures) -> None:
    ticket = fixtures.acme.ticket(fixtures.things["job"])
    async with fixtures.platform.system(ticket) as worker:
        renewed = type(ticket).verify(await worker.renew(), fixtures.platform.secrets.tickets)
    assert (renewed.brand_id, renewed.job_id, renewed.on_behalf_of, renewed.kind) == (
        ticket.brand_id,
        ticket.job_id,
        ticket.on_behalf_of,
        ticket.kind,
    )


async def test_logs_hold_no_prompt_caption_password_token_or_signature(
    fixtures: Fixtures, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, pictures: Draw
) -> None:
    secret = "canary-secret"
    monkeypatch.setattr("onbrand.background.generations.AWAY_SECONDS", 0)
    with caplog.at_level(logging.DEBUG):
        async with fixtures.client("member") as client:
            at = f"/v1/brands/{fixtures.acme.id}"
            asset = await upload(client, fixtures.acme.id, pictures(78), captions=f"{secret} caption")
            for prompt in (secret, f"{secret} [break]", f"{secret} [away]"):
                body = {"prompt": prompt, "negative_prompt": secret, "model_type": "sd15"}
                await client.post(f"{at}/generations", json=body, headers={"prefer": "wait=20"})
            await client.post(f"{at}/generations", json={"prompt": secret, "seed": secret})
            await client.post("/v1/tokens", json={"email": "a@example.com", "password": secret})
            link = (await client.get(f"{at}/assets/{asset['id']}/content")).json()["url"]
            await client.get(link)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("onbrand")]
    assert any("/v1/files/" in line for line in ours)
    everything = "\n".join(ours)
    assert secret not in everything
    assert "signature" not in everything
    assert "eyJ" not in everything
