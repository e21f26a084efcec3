"""matrix.yaml, tables.yaml and columns.yaml as SQL: every persona tries everything, and gets the expected refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from tests.isolation.check_counter import CheckCounter

HERE = Path(__file__).parent
MATRIX = yaml.safe_load((HERE / "matrix.yaml").read_text())
STATEMENTS = yaml.safe_load((HERE / "statements.yaml").read_text())
TABLES = yaml.safe_load((HERE / "tables.yaml").read_text())["rows"]
COLUMNS = yaml.safe_load((HERE / "columns.yaml").read_text())

PEOPLE = (
    "member", "member2", "admin", "key", "key_without",
    "removed", "other_member", "other_admin", "bound", "other_key", "anonymous",
)  # fmt: skip
STRANGERS = ("at_home", "nowhere", "forged_admin")
"""They get what a member of another brand gets: a member of GLOBEX in a transaction about GLOBEX, a member of ACME in
one about no brand, and ACME's admin by claims that nobody signed."""
KNOWN_AS = {
    "at_home": "other_member",
    "nowhere": "other_member",
    "forged_admin": "no_claims",
    "forged_ticket": "system_other_brand",
}
TICKETS = ("own", "other_job", "other_kind", "other_brand", "person")
IN_TABLES = (
    "member", "member2", "admin", "removed", "other_member", "other_admin", "bound", "anonymous",
    "no_claims", "no_role", "system", "system_other_job", "system_other_brand", "system_other_member",
    "drawing", "drawing_other", "dispatcher", "system_no_role", *STRANGERS, "forged_ticket",
)  # fmt: skip
SYSTEM_PERSONA = {
    ("training", "own"): "system",
    ("training", "other_job"): "system_other_job",
    ("training", "other_kind"): "system_other_kind",
    ("training", "other_brand"): "system_other_brand",
    ("generation", "own"): "drawing",
    ("generation", "other_job"): "drawing_other",
    ("generation", "other_kind"): "drawing_other_kind",
    ("generation", "other_brand"): "drawing_other_brand",
}
LOGIN_OF = {
    "authenticated": "member",
    "brand_system": "system",
    "anon": "anonymous",
    "onbrand_dispatcher": "dispatcher",
}


def named(row: dict[str, Any]) -> str:
    return f"{row['resource']} {row['verb']}"


@pytest.mark.parametrize("persona", [*PEOPLE, *STRANGERS])
@pytest.mark.parametrize("row", MATRIX["people"], ids=named)
def test_people_get_what_the_matrix_says(row: dict[str, Any], persona: str, tries, check_counter: CheckCounter):
    statement = STATEMENTS["people"][named(row)]
    expected = {
        "allow": "rows",
        "deny_role": statement.get("deny", "refused"),
        "not_found": statement.get("outside"),
        "unauthenticated": "refused",
        "last_admin": "last_admin",
    }[row["other_member" if persona in STRANGERS else persona]]
    if persona == "key_without" and row.get("needs") == "read":
        expected = statement["outside"]  # the database shows it what it shows to strangers
    if persona in statement.get("has_none", ()):
        expected = "none"
    found = tries.outcome(credential(persona, row), statement["sql"])
    check_counter.compare("sql", {persona: found}, {persona: expected})


def credential(persona: str, row: dict[str, Any]) -> str:
    """A key for the scope that the row requires."""
    return f"{persona}:{row.get('needs', 'manage')}" if persona in ("key", "key_without") else persona


@pytest.mark.parametrize("persona", [ticket for ticket in TICKETS if ticket != "person"])
@pytest.mark.parametrize("row", MATRIX["system"], ids=named)
def test_tickets_reach_their_own_job_and_nothing_else(
    row: dict[str, Any], persona: str, tries, check_counter: CheckCounter
):
    statement = STATEMENTS["system"][named(row)]
    expected = "rows" if row[persona] == "allow" else statement["outside"]
    found = tries.outcome(SYSTEM_PERSONA[row["resource"], persona], statement["sql"])
    check_counter.compare("sql", {persona: found}, {persona: expected})


@pytest.mark.parametrize("persona", IN_TABLES)
@pytest.mark.parametrize("row", TABLES, ids=lambda row: row["name"])
def test_tables_answer_everyone_rightly(row: dict[str, Any], persona: str, tries, check_counter: CheckCounter):
    refused = row["refused"]
    known_as = KNOWN_AS.get(persona, persona)
    if known_as in row["allow"]:
        expected = "rows"
    elif refused in ("all", "others") or known_as in refused:
        expected = "refused"
    else:
        expected = "none"
    check_counter.compare("sql", {persona: tries.outcome(persona, row["sql"])}, {persona: expected})


def test_the_three_tables_name_every_persona_and_every_statement():
    assert {named(row) for row in MATRIX["people"]} == set(STATEMENTS["people"])
    assert {named(row) for row in MATRIX["system"]} == set(STATEMENTS["system"])
    assert all(set(PEOPLE) <= set(row) for row in MATRIX["people"])
    assert all(set(TICKETS) <= set(row) for row in MATRIX["system"])
    answers = {row[persona] for row in MATRIX["people"] for persona in PEOPLE}
    assert answers == {"allow", "deny_role", "not_found", "unauthenticated", "last_admin"}


def test_the_tables_ask_more_than_a_thousand_questions_of_the_database_alone():
    people, system = len(MATRIX["people"]) * len(PEOPLE), len(MATRIX["system"]) * (len(TICKETS) - 1)
    assert people + system + len(TABLES) * len(IN_TABLES) >= 1000


def columns_of(owner: psycopg.Connection) -> dict[str, list[tuple[str, bool]]]:
    """Every column of every table of the platform, and whether it is generated."""
    found: dict[str, list[tuple[str, bool]]] = {}
    for table, column, generated in owner.execute(
        "select a.attrelid::regclass::text, a.attname, a.attgenerated <> '' from pg_attribute a"
        " join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname in ('app', 'storage', 'audit', 'identity') and c.relkind in ('r', 'p', 'v', 'm')"
        " and a.attnum > 0 and not a.attisdropped order by 1, a.attnum"
    ):
        found.setdefault(table, []).append((column, generated))
    return found


@pytest.mark.parametrize("role", sorted(COLUMNS))
def test_columns_are_written_by_those_who_may(role: str, owner, tries):
    """Tried, column by column, as an update that would change nothing."""
    wrong = []
    for table, columns in columns_of(owner).items():
        may = COLUMNS[role].get(table, {})
        for column, generated in columns:
            value = "default" if generated else f'"{column}"'
            outcome = tries.outcome(LOGIN_OF[role], f'update {table} set "{column}" = {value} where false')
            if (outcome == "none") != (column in may.get("update", [])):
                wrong.append(f"update {table}.{column}: {outcome}")
            granted = owner.execute(
                "select has_column_privilege(%s, %s, %s, 'insert')", [role, table, column]
            ).fetchone()
            if granted != (column in may.get("insert", []),):
                wrong.append(f"insert {table}.{column}: {granted}")
        outcome = tries.outcome(LOGIN_OF[role], f"delete from {table} where false")
        if (outcome == "none") != may.get("delete", False):
            wrong.append(f"delete {table}: {outcome}")
    assert wrong == []
