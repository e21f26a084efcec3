"""The limits of a generation's parameters and their errors, over HTTP on a platform of its own."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psycopg
import pytest
import pytest_asyncio

import onbrand.client as sdk
from onbrand.cli import main
from onbrand.db.limits import set_limits
from onbrand.errors import InvalidInput, NotFound, TooManyRequests, Unavailable
from onbrand.internal import generation
from onbrand.services import models
from tests.conftest import BrandOfPeople, MakeBrand
from tools.harness.in_process_platform import Platform, serving
from tools.harness.receipts import CUT

BASE = {"prompt": "photo of [brand] logo", "model_type": "sd15", "width": 64, "height": 64}
DRAWN = {"prefer": "wait=20"}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def platform(settings, secrets, db) -> AsyncIterator[Platform]:
    """A platform of this module, whose engine can be made full or absent."""
    async with serving(settings, secrets, db) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def acme(platform: Platform, make_brand: MakeBrand, pictures: Any) -> BrandOfPeople:
    """A brand with three models of sd15 and one of flux."""
    brand = await make_brand("acme")
    for number, family in enumerate(("sd15", "sd15", "sd15", "flux")):
        await platform.train(brand, pictures(number), family)
    return brand


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def globex(platform: Platform, make_brand: MakeBrand, pictures: Any) -> BrandOfPeople:
    brand = await make_brand("globex")
    await platform.train(brand, pictures(7))
    return brand


def at(brand: BrandOfPeople) -> str:
    return f"/v1/brands/{brand.id}/generations"


async def ask(platform: Platform, brand: BrandOfPeople, headers: dict[str, str] | None = None, **options: Any) -> Any:
    """The response to a member's request for pictures."""
    async with platform.client(brand.member) as client:
        return await client.post(at(brand), json=BASE | options, headers=headers or {})


def problem_of(answer: httpx.Response) -> tuple[int, str | None]:
    body = answer.json()
    assert body["error"]["param"] == body["param"]
    return answer.status_code, body["param"]


# several adapters


async def test_several_models_are_drawn_together_each_with_its_scale(platform, acme):
    uses = [{"model": "sd15-lora-v2", "scale": 0.25}, {"model": "sd15-lora-v1"}]
    answer = await ask(platform, acme, DRAWN, models=uses, sampler="dpm++2m", exclusive=True)
    made = answer.json()
    assert (answer.status_code, made["status"]) == (201, "completed")
    assert [(use["model"], use["scale"]) for use in made["models"]] == [("sd15-lora-v2", 0.25), ("sd15-lora-v1", 1.0)]
    assert (made["model"], made["model_id"], made["lora_scale"]) == (
        "sd15-lora-v2",
        made["models"][0]["model_id"],
        0.25,
    )
    assert (made["sampler"], made["exclusive"]) == ("dpm++2m", True)
    request = platform.generator.seen[-1]
    assert [(ref.name, ref.model_id, ref.sha256, scale) for ref, scale in request.adapters] == [
        (use["model"], use["model_id"], use["sha256"], use["scale"]) for use in made["models"]
    ]
    assert (request.parameters.sampler, request.parameters.exclusive, request.weight, request.slot_quota) == (
        "dpm++2m",
        True,
        1.0,
        None,
    )


async def test_a_body_of_before_draws_as_before(platform, acme):
    made = (await ask(platform, acme, DRAWN, model="sd15-lora-v3", lora_scale=0.5)).json()
    assert [(use["model"], use["scale"]) for use in made["models"]] == [("sd15-lora-v3", 0.5)]
    assert (made["status"], made["model"], made["lora_scale"], made["sampler"]) == (
        "completed",
        "sd15-lora-v3",
        0.5,
        None,
    )
    base = (await ask(platform, acme, DRAWN)).json()
    assert (base["status"], base["model"], base["model_id"], base["models"]) == ("completed", "sd15", None, [])


async def test_a_deleted_model_stays_named_where_it_was_used(platform, make_brand, pictures):
    brand = await make_brand("gone")
    _, model = await platform.train(brand, pictures(1))
    made = (await ask(platform, brand, DRAWN, model=model.name)).json()
    async with platform.client(brand.admin) as admin:
        assert (await admin.delete(f"/v1/brands/{brand.id}/models/{model.name}")).status_code == 204
        after = (await admin.get(f"{at(brand)}/{made['id']}")).json()
    (use,) = after["models"]
    assert (use["model"], use["model_id"], use["sha256"]) == (model.name, None, made["models"][0]["sha256"])
    assert after["images"][0]["model_id"] is None


# prompts that are cut


async def test_what_was_cut_of_a_prompt_is_in_every_answer(platform, acme):
    answer = await ask(platform, acme, DRAWN, prompt="photo of [brand] [long]")
    whole = await ask(platform, acme, DRAWN)
    pending = await ask(platform, acme)
    body = {"model": f"{acme.id}/sd15", "prompt": "[long]"}
    async with platform.client(acme.member) as client:
        again = (await client.get(f"{at(acme)}/{answer.json()['id']}")).json()
        listed = (await client.get(at(acme))).json()["data"]
        face = await client.post("/v1/images/generations", json=body)
        short = await client.post("/v1/images/generations", json=body | {"prompt": "short"})
    assert answer.json()["cut"] == again["cut"] == again["images"][0]["receipt"]["cut"] == [CUT]
    assert [CUT] in [each["cut"] for each in listed]
    assert (whole.json()["cut"], pending.json()["cut"]) == ([], None)
    assert (face.json()["cut"], "cut" in short.json()) == ([CUT], False)


def code_of(line: list[str]) -> object:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        main(line)
    return ended.value.code


async def test_the_command_says_what_was_cut_of_a_prompt(platform, acme, tmp_path, monkeypatch, capsys):
    with sdk.Onbrand(platform.url, platform.token(acme.member), max_retries=0) as person:
        monkeypatch.setattr("onbrand.cli.generate.connect", lambda: person)
        line = ["generate", "[long]", "--model-type", "sd15", "--out", str(tmp_path), "--brand", acme.id]
        assert await asyncio.to_thread(code_of, line) in (None, 0)
    assert "prompt has 91 tokens, of which tokenizer reads 77" in capsys.readouterr().err


async def test_openais_client_may_add_models_too(platform, acme):
    body = {
        "model": f"{acme.id}/sd15-lora-v1",
        "prompt": "photo of [brand] logo",
        "more_models": [{"model": "sd15-lora-v2", "scale": 0.5}],
        "sampler": "euler",
        "exclusive": True,
    }
    async with platform.client(acme.member) as client:
        assert (await client.post("/v1/images/generations", json=body)).status_code == 200
        request = platform.generator.seen[-1]
        refused = await client.post("/v1/images/generations", json=body | {"model": f"{acme.id}/sd15"})
    assert [(ref.name, scale) for ref, scale in request.adapters] == [("sd15-lora-v1", 1.0), ("sd15-lora-v2", 0.5)]
    assert (request.parameters.sampler, request.parameters.exclusive) == ("euler", True)
    assert problem_of(refused) == (422, "more_models")


# bad input


def uses(*names: str, scale: float = 1.0) -> list[dict[str, Any]]:
    return [{"model": name, "scale": scale} for name in names]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 151}, "num_inference_steps"),
        ({"width": 72.5}, "width"),
        ({"width": 68}, "width"),
        ({"height": 4096}, "height"),
        ({"num_images": 0}, "num_images"),
        ({"num_images": 9}, "num_images"),
        ({"guidance_scale": 30.5}, "guidance_scale"),
        ({"guidance_scale": "NaN"}, "guidance_scale"),
        ({"true_cfg_scale": -1}, "true_cfg_scale"),
        ({"seed": 2**53}, "seed"),
        ({"lora_scale": 2.5}, "lora_scale"),
        ({"lora_scale": -0.5, "model": "sd15-lora-v1"}, "lora_scale"),
        ({"sampler": "ddim"}, "sampler"),
        ({"sampler": "flow-euler"}, "sampler"),
        ({"sampler": "euler", "model_type": "flux", "model": "flux-lora-v1"}, "sampler"),
        ({"preview_every": -1}, "preview_every"),
        ({"preview_every": 151}, "preview_every"),
        ({"exclusive": "perhaps"}, "exclusive"),
        ({"models": []}, "models"),
        ({"models": uses(*["sd15-lora-v1"] * 5)}, "models"),
        ({"models": uses("sd15-lora-v1", "sd15-lora-v1")}, "models.1.model"),
        ({"models": uses("sd15-lora-v1", "flux-lora-v1")}, "models.1.model"),
        ({"models": uses("sd15-lora-v1", "sd15-lora-v2", scale=2.5)}, "models.0.scale"),
        ({"models": [*uses("sd15-lora-v1"), *uses("sd15-lora-v2", scale=-0.1)]}, "models.1.scale"),
        ({"models": [{"model": "sd15-lora-v1", "path": "/etc"}]}, "models.0.path"),
        ({"models": uses("sd15-lora-v1"), "model": "sd15-lora-v2"}, "models"),
        ({"models": uses("sd15-lora-v1"), "lora_scale": 0.5}, "lora_scale"),
        ({"models": uses("flux-lora-v1")}, "model_type"),
    ],
)  # fmt: skip
async def test_what_is_out_of_bounds_is_422_with_its_field(platform, acme, options, param):
    before = len(platform.generator.seen)
    answer = await ask(platform, acme, **options)
    assert problem_of(answer) == (422, param)
    assert len(platform.generator.seen) == before


async def test_models_that_are_too_wide_together_are_refused(platform, make_brand, pictures, database):
    brand = await make_brand("wide")
    for number in (1, 2):
        await platform.train(brand, pictures(number))
    with psycopg.connect(database.owner_url) as owner:
        owner.execute("update app.models set rank = 96 where brand_id = %s", [brand.id])
    answer = await ask(platform, brand, models=uses("sd15-lora-v1", "sd15-lora-v2"))
    assert problem_of(answer) == (422, "models")
    assert "192" in answer.json()["detail"]
    assert (await ask(platform, brand, models=uses("sd15-lora-v1"))).status_code == 202


async def test_an_unknown_a_foreign_and_a_deleted_model_are_the_same_404_and_reach_no_engine(
    platform, acme, globex, make_brand, pictures
):
    brand = await make_brand("lost")
    _, model = await platform.train(brand, pictures(1))
    _, kept = await platform.train(brand, pictures(2))
    async with platform.client(brand.admin) as admin:
        await admin.delete(f"/v1/brands/{brand.id}/models/{model.id}")
    async with platform.client(globex.member) as other:
        foreign = (await other.get(f"/v1/brands/{globex.id}/models")).json()["data"][0]["id"]
    before = len(platform.generator.seen)
    bodies = set()
    for name in (str(uuid.uuid4()), "sd15-lora-v9", "sd15", "../x", foreign, model.id, model.name):
        for wish in ({"models": uses(kept.name, name)}, {"models": uses(name, kept.name)}, {"model": name}):
            if wish == {"model": "sd15"}:  # a base's name, which is no adapter's
                continue
            answer = await ask(platform, brand, **wish)
            body = answer.json()
            assert answer.status_code == 404, (wish, body)
            body.pop("request_id")
            bodies.add(json.dumps(body, sort_keys=True))
    assert len(bodies) == 1
    assert len(platform.generator.seen) == before
    async with platform.client(brand.member) as client:
        assert (await client.get(at(brand))).json()["data"] == []


async def test_a_generation_whose_model_went_before_it_began_is_not_drawn_with_the_base(
    platform, make_brand, pictures, monkeypatch
):
    brand = await make_brand("early")
    _, model = await platform.train(brand, pictures(1))
    key = {"idempotency-key": uuid.uuid4().hex}
    with monkeypatch.context() as patch:
        patch.setattr(platform.app.state.onbrand.generation_tasks, "start", lambda family, request: None)
        assert (await ask(platform, brand, key, model=model.name)).status_code == 202
    async with platform.client(brand.admin) as admin:
        await admin.delete(f"/v1/brands/{brand.id}/models/{model.id}")
    before = len(platform.generator.seen)
    assert (await ask(platform, brand, key, model=model.name)).status_code == 404
    assert len(platform.generator.seen) == before


async def test_a_generation_cannot_be_given_another_brands_adapter(acme, globex, db):
    """Row by row, behind the services: the database refuses it to a member of both."""
    async with db.user_session(globex.member.scope) as session:
        theirs = (await models.list_models(session, globex.id)).data[0]
    async with db.user_session(acme.member.scope) as session:
        row = await session.one(
            "insert into app.generations (brand_id, user_id, model_type, model_name, prompt, num_images, width, height,"
            " seed, num_inference_steps, guidance_scale, true_cfg_scale, lora_scale, output_format)"
            " values (%s, %s, 'sd15', 'sd15', 'x', 1, 64, 64, 1, 1, 1, 1, 1, 'png') returning id",
            [acme.id, acme.member.user_id],
        )
    insert = (
        "insert into app.generation_adapters (brand_id, generation_id, index, model_id, model_name, sha256, scale)"
        " values (%s, %s, 1, %s, %s, %s, 1)"
    )
    for brand_id in (acme.id, globex.id):
        with pytest.raises(Exception, match="your role does not allow this"):
            async with db.user_session(acme.member.scope) as session:
                await session.run(insert, [brand_id, row["id"], theirs.id, theirs.name, theirs.sha256])


async def test_a_ticket_opens_the_weights_of_its_generations_adapters_and_no_others(platform, acme, monkeypatch):
    monkeypatch.setattr(platform.app.state.onbrand.generation_tasks, "start", lambda family, request: None)
    made = (await ask(platform, acme, models=uses("sd15-lora-v1", "sd15-lora-v3"))).json()
    async with platform.client(acme.member) as client:
        listed = (await client.get(f"/v1/brands/{acme.id}/models")).json()["data"]
    ids = {model["name"]: model["id"] for model in listed}
    async with platform.system(acme.ticket(made["id"], "generation")) as worker:
        for name in ("sd15-lora-v1", "sd15-lora-v3"):
            assert await worker.read_model(ids[name])
        for name in ("sd15-lora-v2", "flux-lora-v1"):
            with pytest.raises(NotFound):
                await worker.read_model(ids[name])


# limits of brands


async def test_more_than_may_wait_is_429_until_there_is_room(platform, make_brand, database):
    brand, other = await make_brand("small"), await make_brand("other")
    set_limits(database.owner_url, brand.id, {"max_waiting_pictures": 4})
    hanging = (await ask(platform, brand, prompt="[hang]", num_images=3)).json()
    refused = await ask(platform, brand, {"idempotency-key": "again"}, num_images=2)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "3 pictures of this brand wait" in refused.json()["detail"]
    assert (await ask(platform, other, num_images=2)).status_code == 202
    assert (await ask(platform, brand, DRAWN, num_images=1)).status_code == 201
    async with platform.client(brand.member) as client:
        assert (await client.post(f"{at(brand)}/{hanging['id']}/cancel")).status_code == 200
        await ended(client, f"{at(brand)}/{hanging['id']}")
        assert len((await client.get(at(brand))).json()["data"]) == 2
    assert (await ask(platform, brand, {"idempotency-key": "again"} | DRAWN, num_images=2)).status_code == 201


async def test_more_at_once_than_may_ever_wait_is_422(platform, make_brand, database):
    brand = await make_brand("tiny")
    set_limits(database.owner_url, brand.id, {"max_waiting_pictures": 4})
    assert problem_of(await ask(platform, brand, num_images=5)) == (422, "num_images")


async def test_many_who_ask_at_once_are_counted_one_by_one(platform, make_brand, database):
    brand = await make_brand("rush")
    set_limits(database.owner_url, brand.id, {"max_waiting_pictures": 3})
    answers = await asyncio.gather(*(ask(platform, brand, prompt="[hang]") for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [202] * 3 + [429] * 5
    async with platform.client(brand.member) as client:
        for answer in answers:
            if answer.status_code == 202:
                await client.post(f"{answer.headers['location']}/cancel")


async def test_weight_and_quota_go_to_the_engine_with_the_request(platform, make_brand, database):
    brand = await make_brand("heavy")
    set_limits(database.owner_url, brand.id, {"weight": 2.5, "slot_quota": 3})
    await ask(platform, brand, DRAWN)
    request = platform.generator.seen[-1]
    assert (request.weight, request.slot_quota) == (2.5, 3)


def test_an_operator_sets_limits_in_the_database_and_the_record_says_so(
    database, owner, make_brand_now, monkeypatch, capsys
):
    brand = make_brand_now("limited")
    monkeypatch.setenv("ONBRAND_DATABASE_URL", database.owner_url)

    def limits(*arguments: str) -> Any:
        with pytest.raises(SystemExit) as left:
            main(["brand", "limits", brand.id, "--json", *arguments])
        said = capsys.readouterr().out
        return left.value.code or 0, json.loads(said)

    bounds = ("max_waiting_pictures", "slot_quota", "max_running_trainings", "max_open_trainings")
    none = {"brand_id": brand.id, "weight": 1.0, **dict.fromkeys(bounds)}
    assert limits() == (0, none)
    set_to = none | {"weight": 0.5, "max_waiting_pictures": 9}
    assert limits("--weight", "0.5", "--max-waiting", "9") == (0, set_to)
    assert limits() == (0, set_to)
    assert limits("--max-waiting", "none") == (0, set_to | {"max_waiting_pictures": None})
    assert limits("--weight", "11")[0] == 5
    assert limits("--slot-quota", "many")[0] == 2
    lines = owner.execute(
        "select actor, user_id, detail from audit.events where brand_id = %s and action = 'brand.set_limits'"
        " order by seq",
        [brand.id],
    ).fetchall()
    assert lines == [
        ("system", None, {"weight": "0.5", "max_waiting_pictures": 9}),
        ("system", None, {"weight": "0.5"}),
    ]
    with pytest.raises(NotFound):
        set_limits(database.owner_url, "no-such-brand", {"weight": 1.0})
    with pytest.raises(InvalidInput) as refused:
        set_limits(database.owner_url, brand.id, {"weight": 0.05})
    assert refused.value.param == "weight"


def test_the_web_tiers_login_sets_no_limits(database, make_brand_now):
    brand = make_brand_now("eager")
    for url in (database.web_url, database.system_url):
        with pytest.raises(Exception, match="may not set limits"):
            set_limits(url, brand.id, {"weight": 10.0})


@pytest.fixture
def make_brand_now(database):
    """A brand without users, created by SQL, for tests outside of the event loop."""

    def make(word: str) -> BrandOfPeople:
        brand_id = f"{word}-{uuid.uuid4().hex[:8]}"
        with psycopg.connect(database.owner_url) as connection:
            connection.execute("set session_replication_role = replica")
            connection.execute(
                "insert into app.brands (id, name, user_id) values (%s, %s, %s)", [brand_id, word, uuid.uuid4()]
            )
        return BrandOfPeople(brand_id, None, None, None)  # type: ignore[arg-type]

    return make


# a full or an absent engine


async def ended(client: httpx.AsyncClient, path: str, seconds: float = 20) -> dict[str, Any]:
    """The object at `path` when it has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        body: dict[str, Any] = (await client.get(path)).json()
        if body["status"] in ("completed", "failed", "canceled"):
            return body
        await asyncio.sleep(0.05)
    raise AssertionError(f"still {body['status']}")


@pytest.mark.parametrize(
    ("refusal", "status"),
    [(TooManyRequests("full", retry_after=1), 429), (Unavailable("away", retry_after=1), 503)],
    ids=["full", "away"],
)
async def test_what_was_admitted_is_drawn_though_the_engine_was_full_or_away(platform, make_brand, refusal, status):
    """Meanwhile new ones are told when to come back: of the same brand if it is full, of all if it is away."""
    brand, other = await make_brand("patient"), await make_brand("bystander")
    platform.generator.refusals = [refusal, refusal]
    admitted = await ask(platform, brand)
    assert admitted.status_code == 202
    while len(platform.generator.refusals) == 2:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    refused = await ask(platform, brand, {"idempotency-key": "later"})
    assert (refused.status_code, refused.headers["retry-after"]) == (status, "1")
    assert (await ask(platform, other)).status_code == (202 if status == 429 else 503)
    async with platform.client(brand.member) as client:
        assert (await ended(client, admitted.headers["location"]))["status"] == "completed"
        assert len((await client.get(at(brand))).json()["data"]) == 1
    assert (await ask(platform, brand, {"idempotency-key": "later"} | DRAWN)).status_code == 201


async def test_a_generation_that_waits_for_the_engine_can_be_canceled(platform, make_brand):
    brand = await make_brand("hasty")
    platform.generator.refusals = [TooManyRequests("full", retry_after=20)]
    admitted = await ask(platform, brand)
    while platform.generator.refusals:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    async with platform.client(brand.member) as client:
        await client.post(f"{admitted.headers['location']}/cancel")
        assert (await ended(client, admitted.headers["location"], 10))["status"] == "canceled"


# previews


async def test_previews_are_shown_to_the_asker_alone_and_kept_nowhere(platform, make_brand, owner, caplog):
    brand = await make_brand("shy")
    caplog.set_level("DEBUG")
    made = (await ask(platform, brand, prompt="[hang]", preview_every=2)).json()
    path = f"{at(brand)}/{made['id']}"
    running = platform.app.state.onbrand.generation_tasks._running
    while not running[made["id"]].previews.after(0):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    other = asyncio.create_task(told(platform, brand.member2, path))
    asker = await told(platform, brand.member, path, until="event: preview")
    image = f"data:image/jpeg;base64,{made['id']}"
    assert f'event: preview\ndata: {{"index":0,"step":2,"image":"{image}"}}' in asker
    async with platform.client(brand.member) as client:
        await client.post(f"{path}/cancel")
        done = await ended(client, path)
        assert (done["preview_every"], done["status"]) == (2, "canceled")
        assert "event: preview" not in (await client.get(f"{path}/events")).text
    assert "event: progress" in await other
    assert "event: preview" not in await other
    assert made["id"] not in running
    stored = owner.execute("select data::text from app.job_events where brand_id = %s", [brand.id]).fetchall()
    assert "base64" not in f"{stored}{caplog.text}{generation.RenderEvent('preview', {'image': image})!r}"


async def told(platform: Platform, person: Any, path: str, until: str | None = None) -> str:
    """The text of a stream to its end, or up to a given event, over a real connection."""
    text = ""
    headers = {"authorization": f"Bearer {platform.token(person)}"}
    async with (
        asyncio.timeout(30),
        httpx.AsyncClient(base_url=platform.url, headers=headers, timeout=30) as client,
        client.stream("GET", f"{path}/events") as answer,
    ):
        async for piece in answer.aiter_text():
            text += piece
            if until is not None and until in text:
                break
    return text


# clients that go away


async def gone_while_waiting(platform: Platform, brand: BrandOfPeople, headers: dict[str, str]) -> str:
    """Request over a real connection, and cut it once the generation runs; returns the generation's address."""
    token = {"authorization": f"Bearer {platform.token(brand.member)}"}
    async with httpx.AsyncClient(base_url=platform.url, headers=token, timeout=30) as client:
        body = BASE | {"prompt": "[hang]"}
        waiting = asyncio.create_task(client.post(at(brand), json=body, headers={"prefer": "wait=60"} | headers))
        async with asyncio.timeout(20), platform.client(brand.member) as other:
            while not (rows := (await other.get(at(brand))).json()["data"]):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        waiting.cancel()
        await asyncio.wait([waiting])
    return f"{at(brand)}/{rows[0]['id']}"


async def test_a_client_that_goes_away_while_it_waits_cancels_its_generation(platform, make_brand):
    brand = await make_brand("fickle")
    path = await gone_while_waiting(platform, brand, {})
    async with platform.client(brand.member) as client:
        assert (await ended(client, path, 10))["status"] == "canceled"


async def test_a_client_with_a_key_is_expected_back(platform, make_brand):
    brand = await make_brand("loyal")
    path = await gone_while_waiting(platform, brand, {"idempotency-key": "back"})
    async with platform.client(brand.member) as client:
        await asyncio.sleep(1.5)  # three looks at the connection
        assert (await client.get(path)).json()["status"] == "running"
        await client.post(f"{path}/cancel")
        assert (await ended(client, path))["status"] == "canceled"


async def test_who_closes_a_stream_of_events_cancels_nothing(platform, make_brand):
    brand = await make_brand("glance")
    made = (await ask(platform, brand, prompt="[hang]")).json()
    path = f"{at(brand)}/{made['id']}"
    assert "event: status" in await told(platform, brand.member, path, until="event: status")
    async with platform.client(brand.member) as client:
        await asyncio.sleep(1)  # two looks of a stream
        assert (await client.get(path)).json()["status"] == "running"
        await client.post(f"{path}/cancel")
        assert (await ended(client, path))["status"] == "canceled"


@pytest.mark.parametrize(("headers", "status"), [({}, "canceled"), ({"idempotency-key": "later"}, "running")])
async def test_openais_client_that_waited_too_long_finds_its_pictures_by_its_key(
    platform, make_brand, monkeypatch, headers, status
):
    monkeypatch.setattr("onbrand.api.openai._WAIT_SECONDS", 0.5)
    brand = await make_brand("late")
    body = {"prompt": "[hang]", "model": f"{brand.id}/sd15"}
    async with platform.client(brand.member) as client:
        answer = await client.post("/v1/images/generations", json=body, headers=headers)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
        (row,) = (await client.get(at(brand))).json()["data"]
        path = f"{at(brand)}/{row['id']}"
        if status == "canceled":
            assert (await ended(client, path))["status"] == "canceled"
            return
        assert (await client.get(path)).json()["status"] == "running"
        assert (await client.post("/v1/images/generations", json=body, headers=headers)).status_code == 503
        assert len((await client.get(at(brand))).json()["data"]) == 1
        await client.post(f"{path}/cancel")
        assert (await ended(client, path))["status"] == "canceled"
