"""Under row-level security a list uses its own index and order, and the brand is checked once before."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

LIST = """
select t.id, t.user_id from {table} t where t.brand_id = $1
  and ($2::timestamptz is null or (t.created_at, t.id) < ($2::timestamptz, $3::uuid))
order by t.created_at desc, t.id desc limit $4"""
FILLINGS = {
    "app.invitations": """
        insert into app.invitations (brand_id, user_id, email, role, hash, created_at, expires_at)
        select 'brand-' || n % 50, gen_random_uuid(), 'a@example.com', 'member', repeat('f', 64),
          now() + n * interval '1 second', now() + n * interval '1 second' + interval '1 day'
        from generate_series(1, 5000) n""",
    "app.documents": """
        insert into app.documents
          (brand_id, user_id, name, version, title, object_name, content_type, bytes, sha256, created_at)
        select 'brand-' || n % 50, gen_random_uuid(), 'voice', n, 'Voice', 'brand-' || n % 50 || '/voice-v' || n,
          'text/markdown; charset=utf-8', 1, repeat('f', 64), now() + n * interval '1 second'
        from generate_series(1, 5000) n""",
}


@pytest.fixture
def many_rows(owner: psycopg.Connection) -> psycopg.Connection:
    """Brands with a hundred rows in each table, in a transaction that is rolled back."""
    owner.execute("set local session_replication_role = replica")  # no brands are made for them
    for table, filling in FILLINGS.items():
        owner.execute(filling)  # type: ignore[call-overload]
        owner.execute(f"analyze {table}")  # type: ignore[call-overload]
    return owner


def way_to_the_rows(owner: psycopg.Connection, role: str, table: str) -> list[tuple[str | None, ...]]:
    """Each step of the plan that lasts: its kind, the index that it reads, and by what; not the wall's own look-up."""
    with owner.transaction(force_rollback=True):
        owner.execute("select set_config('role', %s, true)", [role])
        row = owner.execute("explain (generic_plan, format json) " + LIST.format(table=table)).fetchone()
    assert row is not None
    plan = row[0] if isinstance(row[0], list) else json.loads(row[0])
    return list(_steps(plan[0]["Plan"]))


def _steps(plan: dict[str, Any]) -> Any:
    if plan.get("Parent Relationship") != "InitPlan":
        yield plan["Node Type"], plan.get("Index Name"), plan.get("Index Cond")
        for below in plan.get("Plans", []):
            yield from _steps(below)


@pytest.mark.parametrize("table", FILLINGS)
def test_a_list_is_read_by_its_index_in_its_order(table: str, many_rows: psycopg.Connection) -> None:
    scan = ("Index Scan", table.removeprefix("app.") + "_by_time", "(brand_id = $1)")
    assert way_to_the_rows(many_rows, "authenticated", table) == [("Limit", None, None), ("Result", None, None), scan]
    assert way_to_the_rows(many_rows, "postgres", table) == [("Limit", None, None), scan]


@pytest.mark.parametrize("table", FILLINGS)
def test_a_wall_that_finds_rows_itself_is_noticed(table: str, many_rows: psycopg.Connection) -> None:
    many_rows.execute(
        f"alter policy brand_isolation_user on {table} using (brand_id = any (array[(select private.my_brand())]))"  # type: ignore[call-overload]
    )
    scan = ("Index Scan", table.removeprefix("app.") + "_by_time", "(brand_id = $1)")
    assert scan not in way_to_the_rows(many_rows, "authenticated", table)
