"""Sends the cases that schemathesis generates from the app's OpenAPI description, as members of one brand.

No case may give a 5xx, and no response may contain the other brand's canaries, ids, addresses or keys.
`ONBRAND_TEST_FUZZ_CASES=5000` sets the number of cases; the default is smaller. `ONBRAND_TEST_FUZZ_SEED` sets the
random seed.
"""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import psycopg
import pytest
import requests
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st
from psycopg import sql
from schemathesis import GenerationMode

from tests.conftest import MakeBrand, MakeUser
from tests.isolation.fixtures import Draw, Fixtures, build_fixtures
from tests.isolation.many_brands import furnish
from tools.harness.in_process_platform import Platform, served

NUM_CASES = int(os.environ.get("ONBRAND_TEST_FUZZ_CASES", "250"))
SEED = int(os.environ.get("ONBRAND_TEST_FUZZ_SEED", "1"))
_TABLES = """
select c.oid::regclass::text, exists (select from pg_attribute s where s.attrelid = c.oid and s.attname = 'status')
from pg_class c join pg_attribute b on b.attrelid = c.oid and b.attname = 'brand_id' and not b.attisdropped
join pg_attribute i on i.attrelid = c.oid and i.attname = 'id' and i.atttypid = 'uuid'::regtype
where c.relkind in ('r', 'p') order by 1"""
_OPEN = ("pending", "training", "running")
"""Events of unfinished objects do not end, so such objects are not requested by their id."""
_TAKES_ITS_CALLER_OUT = ("DELETE /v1/brands/{brand_id}/members/me",)
"""Afterwards every case would be a stranger's."""


@dataclass
class Findings:
    """Counts of the outcomes of all cases."""

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)

    @property
    def num_cases(self) -> int:
        return self.statuses.total()


@dataclass(frozen=True)
class Fuzzer:
    """Sends cases as one brand's people, and looks through each answer.

    Args:
        theirs: what must appear in no answer, but for the request's own words.
        things: values to put into paths now and then, by the path's name.
        words: values to put into bodies now and then, by the field's name.
    """

    url: str
    tokens: Sequence[str]
    theirs: Sequence[str]
    things: Callable[[str], Sequence[str]]
    words: dict[str, list[Any]]
    findings: Findings = field(default_factory=Findings)

    def run(self, num_cases: int, seed: int) -> None:
        """At least so many cases, spread over all operations; those that delete come last in each round."""
        schema = schemathesis.openapi.from_url(f"{self.url}/openapi.json")
        found = [result.ok() for result in schema.get_all_operations()]
        found = [each for each in found if f"{each.method.upper()} {each.path}" not in _TAKES_ITS_CALLER_OUT]
        ordered = sorted(found, key=lambda each: each.method.upper() == "DELETE")
        num_rounds = 0
        with requests.Session() as session:
            while self.findings.num_cases < num_cases and num_rounds < 20:
                left = num_cases - self.findings.num_cases
                for operation in ordered:
                    self._try(operation, session, max(2, -(-left // (2 * len(ordered)))), seed + num_rounds)
                num_rounds += 1

    def _try(self, operation: Any, session: requests.Session, num: int, seed: int) -> None:
        """Half of the cases obey the description, half do not."""
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            cases = self._cases(operation, mode)

            @hypothesis.seed(seed)
            @hypothesis.settings(
                max_examples=num, database=None, deadline=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(drawn=cases)
            def send(drawn: tuple[Any, dict[str, Any], dict[str, Any], str]) -> None:
                self._send(session, *drawn)

            try:
                send()
            except hypothesis.errors.Unsatisfiable:
                continue  # there is no wrong way to call this one

    def _cases(self, operation: Any, mode: GenerationMode) -> st.SearchStrategy[Any]:
        names = [parameter.name for parameter in operation.path_parameters]
        places = {name: st.sampled_from([*self.things(name), None]) for name in names}
        words = {name: st.sampled_from(values) for name, values in self.words.items()}
        return st.tuples(
            operation.as_strategy(generation_mode=mode),
            st.fixed_dictionaries(places),
            st.fixed_dictionaries({}, optional=words),
            st.sampled_from(self.tokens),
        )

    def _send(
        self, session: requests.Session, case: Any, things: dict[str, Any], words: dict[str, Any], token: str
    ) -> None:
        for name, thing in things.items():
            if thing is not None:
                case.path_parameters[name] = thing
        if isinstance(case.body, dict) and case.media_type == "application/json":
            case.body.update({name: word for name, word in words.items() if name in case.body})
        headers = {"Authorization": f"Bearer {token}"}
        answer = case.call(base_url=self.url, session=session, headers=headers, timeout=120)
        self._look(f"{case.method} {case.operation.path}", answer)

    def _look(self, what: str, answer: Any) -> None:
        self.findings.statuses[answer.status_code] += 1
        if answer.status_code >= 500:
            self.findings.faults.append(f"{what}: {answer.status_code} {answer.text[:300]} <- {_asked(answer)[:500]!r}")
        told = answer.content + repr(dict(answer.headers)).encode()
        for secret in self.theirs:
            if secret.encode() in told and secret.encode() not in _asked(answer):
                self.findings.leaks.append(f"{what}: {secret} in {answer.text[:300]}")


def _asked(answer: Any) -> bytes:
    body = answer.request.body or b""
    return f"{answer.request.method} {answer.request.url} ".encode() + (
        body.encode() if isinstance(body, str) else body
    )


@pytest.fixture(scope="module")
async def fixtures(platform: Platform, make_brand: MakeBrand, make_user: MakeUser, pictures: Draw) -> Fixtures:
    """ACME full of canaries; GLOBEX, whose people call, has things of its own."""
    fixtures = await build_fixtures(platform, make_brand, make_user, pictures)
    await platform.train(fixtures.globex, fixtures.picture())
    async with fixtures.client("other_member") as client:
        body = {"prompt": "a red circle", "model": "sd15-lora-v1", "num_images": 2}
        at = f"/v1/brands/{fixtures.globex.id}/generations"
        answer = await client.post(at, json=body, headers={"prefer": "wait=30"})
        assert answer.json()["status"] == "completed"
    for persona, brand, word in (("admin", fixtures.acme, "canary"), ("other_admin", fixtures.globex, "plain")):
        async with fixtures.client(persona) as client:
            await furnish(client, brand.id, word)
    return fixtures


def ids_of(database: psycopg.Connection, brand_id: str) -> dict[str, list[str]]:
    """Ids of a brand's things that have ended or never begin, a few from each table."""
    database.rollback()
    found = {}
    for table, has_status in database.execute(_TABLES).fetchall():
        ended = "and status <> all(%s)" if has_status else "and %s::text[] is not null"
        statement = "select id::text from {} where brand_id = %s " + ended + " order by id limit 3"
        named = sql.SQL(statement).format(sql.Identifier(*table.split(".")))  # type: ignore[arg-type]
        found[table] = [row[0] for row in database.execute(named, [brand_id, list(_OPEN)])]
    return found


def all_ids_of(database: psycopg.Connection, brand_id: str) -> list[str]:
    """Every id of a brand's things."""
    parts = [f"select id::text from {table} where brand_id = %(brand)s" for table, _ in database.execute(_TABLES)]
    return [row[0] for row in database.execute(" union all ".join(parts), {"brand": brand_id})]


async def token_of(fixtures: Fixtures, persona: str) -> str:
    async with fixtures.client(persona, "manage") as client:
        return client.headers["authorization"].removeprefix("Bearer ")


@pytest.mark.timeout(3600)
async def test_no_case_ends_in_a_fault_or_shows_another_brand(
    fixtures: Fixtures, owner: psycopg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    acme, globex = fixtures.acme, fixtures.globex
    theirs = [
        "canary", acme.id, *all_ids_of(owner, acme.id),
        *(word for person in (acme.admin, acme.member, acme.member2) for word in (person.user_id, person.email)),
    ]  # fmt: skip

    models = ["sd15-lora-v1", "sd15", f"{globex.id}/sd15-lora-v1", f"{acme.id}/sd15-lora-v1"]

    def things(name: str) -> Sequence[str]:
        """Of GLOBEX as it is now, mostly; of ACME, too; and of another kind than the name says."""
        if name == "brand_id":
            return [globex.id] * 8 + [acme.id]
        if name == "user_id":
            return [globex.member2.user_id, acme.member.user_id]
        own, others = ids_of(owner, globex.id), ids_of(owner, acme.id)
        stem = name.removesuffix("_id")
        meant = [each for table, ids in own.items() if stem in table for each in ids]
        theirs = [each for table, ids in others.items() if stem in table for each in ids]
        strange = [ids[0] for ids in own.values() if ids]
        return [*(models if name == "model" else ()), *meant * 3, *theirs, *strange]

    fuzzer = Fuzzer(
        fixtures.platform.url,
        [await token_of(fixtures, persona) for persona in ("other_member", "other_member", "other_admin", "other_key")],
        theirs,
        things,
        {
            "model_type": ["sd15", "flux"],
            "model": [*models, fixtures.things["model"]],
            "training_asset_ids": [ids_of(owner, globex.id)["app.brand_assets"], [fixtures.things["asset"]]],
            "training_config": [{}, {"steps": 10, "trigger_word": "zilgo"}],
            "provider": ["ray"],
            "email": [globex.member2.email, "nobody@example.com"],
            "num_images": [1],
            "scopes": [["read"], ["read", "upload"]],
            "role": ["member"],
            "kind": ["image", "document"],
            "content_type": ["image/png", "application/pdf"],
            "filename": ["logo.png", "guidelines.pdf"],
            "bytes": [100],
            "id": [f"own-{uuid.uuid4().hex[:8]}"],
            "prompt": ["a red circle", "photo of [brand] logo"],
        },
    )  # fmt: skip
    await asyncio.to_thread(fuzzer.run, NUM_CASES, SEED)
    found = fuzzer.findings
    with capsys.disabled():
        print(f"\n{found.num_cases} cases: {dict(sorted(found.statuses.items()))}")
    assert found.faults[:20] == []
    assert found.leaks[:20] == []
    assert found.num_cases >= NUM_CASES
    assert found.statuses[200] > NUM_CASES // 20, "most cases were refused at the door: they prove little"


async def test_a_fault_and_a_canary_are_noticed() -> None:
    """The test of the test: an app that breaks on one input and tells on another."""
    app = FastAPI()

    @app.get("/breaks/{number}")
    async def breaks(number: int) -> int:
        return 1 // number

    @app.get("/tells/{thing}")
    async def tells(thing: str) -> str:
        return "canary" if thing == "theirs" else thing

    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with served(app, listener):
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            fuzzer = Fuzzer(url, ["x"], ["canary"], lambda name: ["theirs", "0"], {})
            await asyncio.to_thread(fuzzer.run, 40, 1)
    assert fuzzer.findings.faults
    assert fuzzer.findings.leaks
    assert all("canary" in leak for leak in fuzzer.findings.leaks)
    assert 500 in fuzzer.findings.statuses
