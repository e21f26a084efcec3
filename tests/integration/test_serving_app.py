"""The real Serve applications on a private Ray: a generation over HTTP, through handles, to stored pictures.

The engine has two replicas that draw two rows at a time, so that routing has an effect.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, suppress

import httpx
import pytest
import pytest_asyncio

from onbrand.adapter import routing_id
from onbrand.config import Settings
from onbrand.errors import ConfigurationError, NotFound
from onbrand.internal.generation import RenderEvent
from onbrand.serving.serve_generator import ServeGenerator
from tests.conftest import PASSWORD
from tests.integration.serving_fixtures import ServingFixtures
from tools.harness.tiny_families import adapter_bytes, base_of, family_of

pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]  # Ray's and its libraries' own warnings

START_SECONDS = 300


@pytest.fixture(scope="module")
def served(settings, secrets, database) -> Settings:
    """The test database's platform, with sd15 alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return settings.model_copy(
        update={
            "families": ("sd15",),
            "bases": {"sd15": str(base_of("sd15"))},
            "port": port,
            "internal_port": port,
            "device": "cpu",
        }
    )


@pytest.fixture(scope="module")
def url(served, repository) -> Iterator[str]:
    """Where the platform answers."""
    ray = pytest.importorskip("ray")
    from ray import serve
    from ray.serve.config import HTTPOptions

    from onbrand.serving.build import applications
    from onbrand.serving.router import IngressRouter

    engines = {"num_replicas": 2, "max_batch": 2}
    served = served.model_copy(update={"dev": True, "engine": engines})  # this Ray has no tokens
    folder = tempfile.mkdtemp(prefix="onbrand-test-", dir="/tmp")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(repository / "platform"))
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.delenv("RAY_ADDRESS", raising=False)
        ray.init(
            num_cpus=4,
            namespace="onbrand-test",
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=128 * 2**20,
            _temp_dir=folder,
        )
        try:
            serve.start(http_options=HTTPOptions(host=served.host, port=served.port))
            targets = {name: serve.RunTarget(app, name, prefix) for name, prefix, app in applications(served)}
            for name, router in (("deaf", IngressRouter), ("plain", None)):
                targets[name] = serve.RunTarget(echo(router), name, f"/{name}")
            serve.run_many(list(targets.values()))
            yield served.url
        finally:
            serve.shutdown()
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def echo(router):
    """An application that answers with the adapter's id that Serve heard."""
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    def answer(self, request):
        return f"heard {serve.get_multiplexed_model_id()!r}"

    how = {"request_router_config": RequestRouterConfig(request_router_class=router)} if router else {}
    return serve.deployment(type("Echo", (), {"__call__": answer}), name="Echo", **how).bind()


@pytest_asyncio.fixture(loop_scope="session")
async def http(url) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        yield client


@pytest.fixture
def fixtures(db, store, secrets, pictures) -> ServingFixtures:
    return ServingFixtures(db, store, secrets, pictures)


@pytest.fixture(scope="module")
def adapter() -> bytes:
    return adapter_bytes(family_of("sd15"), rank=4, seed=1, preset="attention", strength=2.0)


async def member_of(http: httpx.AsyncClient, brand) -> dict[str, str]:
    """Headers of a logged-in member."""
    answer = await http.post("/v1/tokens", json={"email": brand.member.email, "password": PASSWORD})
    return {"Authorization": f"Bearer {answer.raise_for_status().json()['access_token']}"}


async def generate(http: httpx.AsyncClient, brand, headers: dict[str, str], wait: int = 60, **options) -> dict:
    asked = {"prompt": "photo of [brand] logo", "seed": 7, "width": 64, "height": 64, "num_inference_steps": 3}
    answer = await http.post(
        f"/v1/brands/{brand.id}/generations", json=asked | options, headers=headers | {"Prefer": f"wait={wait}"}
    )
    return answer.raise_for_status().json()


async def until_ended(http: httpx.AsyncClient, brand, headers: dict[str, str], generation: dict) -> dict:
    for _ in range(600):
        answer = await http.get(f"/v1/brands/{brand.id}/generations/{generation['id']}", headers=headers)
        generation = answer.raise_for_status().json()
        if generation["status"] in ("completed", "failed", "canceled"):
            return generation
        await asyncio.sleep(0.2)
    raise AssertionError(f"the generation is still {generation['status']}")


async def test_a_member_gets_the_pictures_of_the_brands_model(http, fixtures, make_brand, adapter):
    brand = await make_brand()
    name = await fixtures.publish(brand, adapter)
    headers = await member_of(http, brand)
    drawn = await generate(http, brand, headers, model=name, num_images=2)
    assert (drawn["status"], [image["seed"] for image in drawn["images"]]) == ("completed", [7, 8])
    receipt = drawn["images"][0]["receipt"]
    assert receipt["adapters"] == [{"sha256": hashlib.sha256(adapter).hexdigest(), "scale": 1.0}]
    assert receipt["brand_id"] == brand.id


async def test_many_brands_at_once_each_get_their_own(http, fixtures, make_brand):
    """Every brand's picture is the one it gets alone, though all were asked for together."""
    brands = [await make_brand(f"brand{n}") for n in range(3)]
    everyone = [await member_of(http, brand) for brand in brands]
    names = [
        await fixtures.publish(brand, adapter_bytes(family_of("sd15"), rank=4 * n + 4, seed=n, strength=2.0))
        for n, brand in enumerate(brands)
    ]
    asks = list(zip(brands, everyone, names, strict=True))
    together = await asyncio.gather(*(generate(http, brand, who, model=name) for brand, who, name in asks))
    alone = [await generate(http, brand, who, model=name) for brand, who, name in asks]
    mixed = [await fixtures.pixels(brand, drawn["id"]) for brand, drawn in zip(brands, together, strict=True)]
    single = [await fixtures.pixels(brand, drawn["id"]) for brand, drawn in zip(brands, alone, strict=True)]
    for n in range(3):
        assert abs(mixed[n] - single[n]).max() <= 1
        assert all(abs(mixed[n] - single[m]).max() > 10 for m in range(3) if m != n)


async def test_a_family_that_is_not_served_is_refused_by_name(http, make_brand):
    brand = await make_brand()
    asked = {"prompt": "a logo", "model_type": "flux"}
    headers = await member_of(http, brand)
    answer = await http.post(f"/v1/brands/{brand.id}/generations", json=asked, headers=headers)
    assert answer.status_code == 422
    assert "flux" in answer.json()["detail"]


async def test_cancel_reaches_the_engine(http, make_brand):
    brand = await make_brand()
    headers = await member_of(http, brand)
    begun = await generate(http, brand, headers, wait=0, model_type="sd15", num_inference_steps=150, num_images=8)
    answer = await http.post(f"/v1/brands/{brand.id}/generations/{begun['id']}/cancel", headers=headers)
    answer.raise_for_status()
    assert (await until_ended(http, brand, headers, begun))["status"] == "canceled"


def standings() -> list[tuple]:
    """Each ready replica of the engine, with what it publishes."""
    import ray

    told = []
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["name"].startswith("SERVE_REPLICA::engine-sd15"):
            with suppress(ray.exceptions.RayError, ValueError):
                replica = ray.get_actor(actor["name"], namespace="serve")
                told.append((replica, ray.get(replica.record_routing_stats.remote())))
    return told


async def until_told(holds) -> list[tuple]:
    """Wait until a replica publishes what `holds` accepts; returns the replicas."""
    for _ in range(600):
        told = await asyncio.to_thread(standings)
        if any(holds(said) for _, said in told):
            return told
        await asyncio.sleep(0.1)
    raise AssertionError("no replica told so")


async def until_idle() -> None:
    """Wait until no replica draws. A canceled request is released a moment after its row changes."""
    for _ in range(600):
        if not any(said["under_way"] for _, said in await asyncio.to_thread(standings)):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("a replica still draws")


async def where(brand, data: bytes) -> list[bool]:
    """Which of the two replicas has the adapter in a slot."""
    ours = routing_id(brand.id, hashlib.sha256(data).hexdigest())
    told = await asyncio.to_thread(standings)
    assert len(told) == 2
    return [ours in said["slots"] for _, said in told]


async def test_an_adapters_generations_go_to_one_replica(http, fixtures, make_brand):
    """By lot, as Serve does it itself, that would happen once in 256 tries. A busy machine has three."""
    brand = await make_brand()
    headers = await member_of(http, brand)
    places: list[list[int]] = []
    for first in (40, 50, 60):
        seeds = range(first, first + 4)
        files = [adapter_bytes(family_of("sd15"), rank=4, seed=seed, preset="attention") for seed in seeds]
        for name in [await fixtures.publish(brand, data) for data in files] * 3:
            await generate(http, brand, headers, model=name, num_inference_steps=1)
        places.append([sum(await where(brand, data)) for data in files])
        if places[-1] == [1, 1, 1, 1]:
            return
    raise AssertionError(f"adapters in so many replicas each: {places}")


async def test_a_clients_word_moves_no_generation(http, fixtures, make_brand, adapter):
    """The engine is asked by the id of the row, not by a name of the client."""
    brand = await make_brand()
    name = await fixtures.publish(brand, adapter)
    headers = await member_of(http, brand)
    for n in range(4):
        named = {"serve_multiplexed_model_id": f"{n:024x}", "serve-multiplexed-model-id": f"{n:024x}"}
        await generate(http, brand, headers | named, model=name, num_inference_steps=1)
    assert sum(await where(brand, adapter)) == 1
    told = [said["slots"] + said["memory"] for _, said in await asyncio.to_thread(standings)]
    assert not any(f"{n:024x}" in said for n in range(4) for said in told)


async def test_a_clients_multiplexing_header_is_dropped(http):
    named = {"serve_multiplexed_model_id": "theirs"}
    assert (await http.get("/plain", headers=named)).text == "heard 'theirs'"  # what Serve does by itself
    assert (await http.get("/deaf", headers=named)).text == "heard ''"
    hyphens = {"Serve-Multiplexed-Model-Id": "theirs"}
    assert (await http.get("/deaf", headers=hyphens)).text == "heard ''"


async def test_a_replica_with_its_rows_taken_sends_the_adapters_next_elsewhere(http, fixtures, make_brand, adapter):
    brand = await make_brand()
    name = await fixtures.publish(brand, adapter)
    headers = await member_of(http, brand)
    begun = [
        await generate(http, brand, headers, wait=0, model=name, num_inference_steps=150, seed=n) for n in range(6)
    ]
    ended = [await until_ended(http, brand, headers, generation) for generation in begun]
    assert {generation["status"] for generation in ended} == {"completed"}
    assert await where(brand, adapter) == [True, True]


async def test_a_cancel_finds_the_replica_that_draws(http, fixtures, make_brand):
    """Two at a time on two replicas: the rows are free again long before the row's own mark is read."""
    brand = await make_brand()
    headers = await member_of(http, brand)
    long = {"wait": 0, "model_type": "sd15", "num_inference_steps": 150, "num_images": 8}
    begun = [await generate(http, brand, headers, **long) for _ in range(4)]
    for generation in begun:
        path = f"/v1/brands/{brand.id}/generations/{generation['id']}/cancel"
        (await http.post(path, headers=headers)).raise_for_status()
    ended = [await until_ended(http, brand, headers, generation) for generation in begun]
    assert {generation["status"] for generation in ended} == {"canceled"}


async def test_a_drawing_is_watched_on_the_replica_that_draws_it(http, fixtures, make_brand, served):
    """By whoever has read its row: here with handles of another process than the ingress that asked."""
    brand, other = await make_brand(), await make_brand()
    headers = await member_of(http, brand)
    generator = ServeGenerator(served.families)
    long = {"model_type": "sd15", "num_inference_steps": 150, "num_images": 8, "preview_every": 1}
    begun = [await generate(http, brand, headers, wait=0, **long) for _ in range(2)]
    for generation in begun:  # on both replicas
        shown = await first_preview(generator, generation["id"], brand.id, brand.member.user_id)
        assert shown.data["image"].startswith("data:image/jpeg;base64,")
        with pytest.raises(NotFound):
            await first_preview(generator, generation["id"], other.id, other.member.user_id)
        with pytest.raises(NotFound):
            await first_preview(generator, generation["id"], brand.id, brand.admin.user_id)
    for generation in begun:
        path = f"/v1/brands/{brand.id}/generations/{generation['id']}/cancel"
        assert (await http.post(path, headers=headers)).status_code in (200, 202, 409), (
            "409: on a slow machine it is through"
        )
    ended = [await until_ended(http, brand, headers, generation) for generation in begun]
    assert {generation["status"] for generation in ended} <= {"canceled", "completed"}
    assert await first_preview(generator, begun[0]["id"], brand.id, brand.member.user_id) is None


async def first_preview(generator: ServeGenerator, *asked: str) -> RenderEvent | None:
    """The first preview; None once no replica draws the generation."""
    async with asyncio.timeout(60):
        while True:
            heard = 0
            async with aclosing(generator.watch("sd15", *asked)) as events:
                async for event in events:
                    heard += 1
                    if event.kind == "preview":
                        return event
            if not heard and not any(said["under_way"] for _, said in await asyncio.to_thread(standings)):
                return None
            await asyncio.sleep(0.1)


async def test_a_client_that_goes_away_while_it_waits_frees_its_rows(http, url, make_brand):
    """Through Serve's proxy, which tells by canceling the call."""
    brand = await make_brand()
    headers = await member_of(http, brand)
    asked = {"prompt": "a logo", "model_type": "sd15", "num_inference_steps": 150, "num_images": 8}
    path = f"/v1/brands/{brand.id}/generations"
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        waiting = asyncio.create_task(client.post(path, json=asked, headers=headers | {"Prefer": "wait=60"}))
        async with asyncio.timeout(60):
            while not (rows := (await http.get(path, headers=headers)).json()["data"]):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.wait([waiting])
    assert (await until_ended(http, brand, headers, rows[0]))["status"] == "canceled"


async def test_a_replica_that_dies_loses_no_generation(http, fixtures, make_brand, adapter):
    """Drawn again by its successor: the same picture for the same seed, though its receipt may tell of another slot.

    After all others: its successor takes a while to come.
    """
    import ray

    brand = await make_brand()
    name = await fixtures.publish(brand, adapter)
    headers = await member_of(http, brand)
    numbers = {"model": name, "num_inference_steps": 40}
    before = await generate(http, brand, headers, **numbers)
    await until_idle()
    begun = await generate(http, brand, headers, wait=0, **numbers)
    (drawing,) = [replica for replica, said in await until_told(lambda told: told["under_way"]) if said["under_way"]]
    await asyncio.to_thread(ray.kill, drawing)
    ended = await until_ended(http, brand, headers, begun)
    assert (ended["status"], ended["error"]) == ("completed", None)
    again, first = [await fixtures.pixels(brand, drawn["id"]) for drawn in (ended, before)]
    assert (again == first).all()


def test_what_serve_is_told_holds_no_secret(served):
    from onbrand.serving.build import as_args, engine

    secretive = served.model_copy(update={"s3_secret_key": "hidden", "web_database_url": "postgresql://x:hidden@y/z"})
    assert "hidden" not in str(as_args(secretive))
    with pytest.raises(ConfigurationError, match="s3_secret_key"):
        engine({"family": "sd15", "s3_secret_key": "hidden"})
    with pytest.raises(ConfigurationError, match="family"):
        engine({"family": "sd9"})
