"""The web login learns no bit of another brand's rows from what PostgreSQL shows about a statement."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from tests.isolation.oracle import CHANNELS, SECRET, Probe, bits, told_by_time
from tests.signing import become, forge

CONDITIONS = yaml.safe_load((Path(__file__).parent / "oracle.yaml").read_text())
TRIES = 2000
CHANCE = 0.06
"""How far from one half the share of longer times may be: four standard deviations at 2,000 tries."""

_INSERT = """
insert into app.generations (brand_id, user_id, model_type, model_name, prompt, negative_prompt, num_images, width,
  height, seed, num_inference_steps, guidance_scale, true_cfg_scale, lora_scale, output_format, exclusive, heartbeat_at)
values (%s, %s, 'sd15', 'sd15', %s, %s, 1, 64, 64, 7, 8, 7, 1, 1, 'png', %s, %s) returning id, ctid::text, created_at"""

_LARGE = """
update pg_class set reltuples = 1000000 * greatest(relpages, 1), relpages = greatest(relpages, 1)
where relkind = 'r' and relnamespace::regnamespace::text in ('app', 'storage', 'audit')"""
"""Let the planner take the tables for large ones, so that its estimates show a share of their rows."""


@pytest.fixture(scope="module")
def planted(database, fixtures) -> Iterator[dict[str, Any]]:
    """A generation of ACME with a secret prompt, among many of GLOBEX; and the statistics that PostgreSQL keeps."""
    ids = fixtures.ids
    with psycopg.connect(database.owner_url, autocommit=True) as owner:
        for number in range(300):
            owner.execute(_INSERT, [ids["other_brand"], ids["other_member"], f"a picture {number}", "", False, None])
        row = owner.execute(_INSERT, [ids["brand"], ids["member"], SECRET, "no bottles", True, "2026-01-01"]).fetchone()
        assert row is not None
        owner.execute("analyze")
        owner.execute(_LARGE)
        yield {"id": str(row[0]), "ctid": row[1], "created_at": row[2]}
        owner.execute("delete from app.generations where prompt like 'a picture %%' or prompt = %s", [SECRET])
        owner.execute("analyze")


def enclosed(name: str, value: str) -> dict[str, str]:
    """An id, and two neighbours without another id between them."""
    return {name: value, f"{name}_lo": f"{value[:-1]}0", f"{name}_hi": f"{value[:-1]}f"}


@pytest.fixture(scope="module")
def probes(fixtures, planted) -> list[Probe]:
    """The conditions of oracle.yaml."""
    names = {
        **fixtures.ids,
        **enclosed("secret_id", planted["id"]),
        **enclosed("member", fixtures.ids["member"]),
        **enclosed("other", str(uuid.uuid4())),
        "secret": SECRET,
        "secret_20": SECRET[:20],
        "at": planted["created_at"].isoformat(),
        "ctid": planted["ctid"],
    }
    return [Probe(row["table"], row["true"].format(**names), row["false"].format(**names)) for row in CONDITIONS]


def attackers(fixtures) -> dict[str, Any]:
    """The ways to use the web login: as a member of GLOBEX, within GLOBEX or ACME, or with forged claims."""
    globex = {"sub": fixtures.ids["other_member"]}
    acme = {"sub": fixtures.ids["admin"], "brand_id": fixtures.ids["brand"]}
    return {
        "a member of another brand": lambda c: become(
            c, fixtures.signer, **globex, brand_id=fixtures.ids["other_brand"]
        ),
        "the same at ACME's door": lambda c: become(c, fixtures.signer, **globex, brand_id=fixtures.ids["brand"]),
        "ACME's admin, not signed": lambda c: forge(c, "authenticated", acme),
    }


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("number", range(len(CONDITIONS)))
def test_an_oracle_tells_no_bit(number: int, channel: str, database, fixtures, probes):
    probe = probes[number]
    told = {}
    with psycopg.connect(database.web_url) as connection:
        for name, come in attackers(fixtures).items():
            with connection.transaction(force_rollback=True):
                come(connection)
                if found := bits(connection, probe, channel):
                    told[name] = found
    assert told == {}, str(probe)


def test_the_probes_are_true_of_acmes_rows_and_their_twins_of_none(owner, probes):
    for probe in probes:
        assert owner.execute(f"select 1 from {probe.table} where {probe.true}").fetchall(), str(probe)
        assert not owner.execute(f"select 1 from {probe.table} where {probe.false}").fetchall(), str(probe)


OPEN_TO_ORACLES = {
    "a wall that is asked when a row has passed": (
        "alter policy brand_isolation_user on app.generations"
        " using (coalesce(brand_id = any (array[(select private.my_brand()),"
        " '', '', '', '', '', '', '', '', '']::text[]), false))",
        0,
        "explain analyze",
    ),
    "statistics of a column": (
        "alter table app.generations alter column prompt set statistics 100; analyze app.generations",
        Probe("app.generations", "prompt >= 'a' and prompt < 'b'", "prompt > 'q' and prompt < 'r'"),
        "explain",
    ),
    "an index that does not begin with the brand": (
        "create index loose on app.generations (prompt)",
        2,
        "explain analyze",
    ),
}


@pytest.mark.parametrize("name", OPEN_TO_ORACLES)
def test_an_oracle_is_noticed_where_there_is_one(name: str, owner, fixtures, probes):
    change, which, channel = OPEN_TO_ORACLES[name]
    probe = which if isinstance(which, Probe) else probes[which]
    owner.execute(change)
    owner.execute(_LARGE)
    become(owner, fixtures.signer, sub=fixtures.ids["other_member"], brand_id=fixtures.ids["other_brand"])
    assert bits(owner, probe, channel)


@pytest.mark.parametrize(
    "attacker", ["a member of another brand", "the same at ACME's door", "ACME's admin, not signed"]
)
@pytest.mark.parametrize("number", [0, 8])
def test_time_tells_no_bit_in_two_thousand_tries(number: int, attacker: str, database, fixtures, probes):
    with psycopg.connect(database.web_url) as connection, connection.transaction(force_rollback=True):
        attackers(fixtures)[attacker](connection)
        for name in ("enable_indexscan", "enable_bitmapscan", "enable_indexonlyscan"):
            connection.execute(f"set local {name} = off")
        share = told_by_time(connection, probes[number], TRIES)
    assert abs(share - 0.5) < CHANCE


def test_time_tells_where_conditions_go_before_the_wall(owner, fixtures, probes):
    owner.execute(OPEN_TO_ORACLES["a wall that is asked when a row has passed"][0])
    become(owner, fixtures.signer, sub=fixtures.ids["other_member"], brand_id=fixtures.ids["other_brand"])
    for name in ("enable_indexscan", "enable_bitmapscan", "enable_indexonlyscan"):
        owner.execute(f"set local {name} = off")
    assert told_by_time(owner, probes[0], TRIES) > 0.5 + CHANCE
