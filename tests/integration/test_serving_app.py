"""The real Serve applications on a private Ray: a brand's generation over HTTP, through handles, to stored pictures."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import pytest_asyncio

from onbrand.config import Settings
from onbrand.errors import ConfigurationError
from tests.conftest import PASSWORD
from tests.integration.serving_house import House
from tests.numerics.bases import adapter_bytes, base_of, family_of

pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]  # Ray's and its libraries' own warnings

START_SECONDS = 300


@pytest.fixture(scope="module")
def served(settings, secrets, database) -> Settings:
    """The test database's platform, with sd15 alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return settings.model_copy(
        update={"families": ("sd15",), "bases": {"sd15": str(base_of("sd15"))}, "port": port, "device": "cpu"}
    )


@pytest.fixture(scope="module")
def url(served, repository) -> Iterator[str]:
    """Where the platform answers."""
    ray = pytest.importorskip("ray")
    from ray import serve
    from ray.serve.config import HTTPOptions

    from onbrand.serving.build import applications

    served = served.model_copy(update={"dev": True})  # this Ray has no tokens
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
            serve.run_many([serve.RunTarget(app, name, prefix) for name, prefix, app in applications(served)])
            yield served.url
        finally:
            serve.shutdown()
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest_asyncio.fixture(loop_scope="session")
async def http(url) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        yield client


@pytest.fixture
def house(doors, store, secrets, pictures) -> House:
    return House(doors, store, secrets, pictures)


@pytest.fixture(scope="module")
def adapter() -> bytes:
    return adapter_bytes(family_of("sd15"), rank=4, seed=1, preset="attention", strength=2.0)


async def member_of(http: httpx.AsyncClient, brand) -> dict[str, str]:
    """Headers of a logged-in member."""
    answer = await http.post("/v1/tokens", json={"email": brand.member.email, "password": PASSWORD})
    return {"Authorization": f"Bearer {answer.raise_for_status().json()['access_token']}"}


async def generate(http: httpx.AsyncClient, brand, headers: dict[str, str], wait: int = 60, **wishes) -> dict:
    asked = {"prompt": "photo of [brand] logo", "seed": 7, "width": 64, "height": 64, "num_inference_steps": 3}
    answer = await http.post(
        f"/v1/brands/{brand.id}/generations", json=asked | wishes, headers=headers | {"Prefer": f"wait={wait}"}
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


async def test_a_member_gets_the_pictures_of_the_brands_model(http, house, make_brand, adapter):
    brand = await make_brand()
    name = await house.publish(brand, adapter)
    headers = await member_of(http, brand)
    drawn = await generate(http, brand, headers, model=name, num_images=2)
    assert (drawn["status"], [image["seed"] for image in drawn["images"]]) == ("completed", [7, 8])
    receipt = drawn["images"][0]["receipt"]
    assert receipt["adapters"] == [{"sha256": hashlib.sha256(adapter).hexdigest(), "scale": 1.0}]
    assert receipt["brand_id"] == brand.id


async def test_many_brands_at_once_each_get_their_own(http, house, make_brand):
    """Every brand's picture is the one it gets alone, though all were asked for together."""
    brands = [await make_brand(f"brand{n}") for n in range(3)]
    everyone = [await member_of(http, brand) for brand in brands]
    names = [
        await house.publish(brand, adapter_bytes(family_of("sd15"), rank=4 * n + 4, seed=n, strength=2.0))
        for n, brand in enumerate(brands)
    ]
    asks = list(zip(brands, everyone, names, strict=True))
    together = await asyncio.gather(*(generate(http, brand, who, model=name) for brand, who, name in asks))
    alone = [await generate(http, brand, who, model=name) for brand, who, name in asks]
    mixed = [await house.pixels(brand, drawn["id"]) for brand, drawn in zip(brands, together, strict=True)]
    single = [await house.pixels(brand, drawn["id"]) for brand, drawn in zip(brands, alone, strict=True)]
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


async def test_a_replica_that_dies_loses_no_generation(http, house, make_brand, adapter):
    """Drawn again by its successor: the same bytes for the same seed."""
    import ray

    brand = await make_brand()
    name = await house.publish(brand, adapter)
    headers = await member_of(http, brand)
    numbers = {"model": name, "num_inference_steps": 40}
    before = await generate(http, brand, headers, **numbers)
    begun = await generate(http, brand, headers, wait=0, **numbers)
    await asyncio.to_thread(ray.kill, _engine_replica(ray))
    ended = await until_ended(http, brand, headers, begun)
    assert (ended["status"], ended["error"]) == ("completed", None)
    assert ended["images"][0]["sha256"] == before["images"][0]["sha256"]


def _engine_replica(ray):
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    (name,) = [name for name in names if name.startswith("SERVE_REPLICA::engine-sd15")]
    return ray.get_actor(name, namespace="serve")


def test_what_serve_is_told_holds_no_secret(served):
    from onbrand.serving.build import as_args, engine

    secretive = served.model_copy(update={"s3_secret_key": "hidden", "web_database_url": "postgresql://x:hidden@y/z"})
    assert "hidden" not in str(as_args(secretive))
    with pytest.raises(ConfigurationError, match="s3_secret_key"):
        engine({"family": "sd15", "s3_secret_key": "hidden"})
    with pytest.raises(ConfigurationError, match="family"):
        engine({"family": "sd9"})
