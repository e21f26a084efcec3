"""Per-brand limits on engines and trainers, set by the database's owner and read by `services`."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from onbrand.db.logins import connect_as_owner
from onbrand.errors import ConfigurationError, InvalidInput, NotFound

DEFAULTS: dict[str, Any] = {
    "weight": 1.0,
    "max_waiting_pictures": None,
    "slot_quota": None,
    "max_running_trainings": None,
    "max_open_trainings": None,
}
_BOUNDS: dict[str, tuple[float, float]] = {
    "weight": (0.1, 10.0),
    "max_waiting_pictures": (1, 100_000),
    "slot_quota": (1, 10_000),
    "max_running_trainings": (1, 1_000),
    "max_open_trainings": (1, 100_000),
}
_ROW = f"select {', '.join(DEFAULTS)} from app.brand_limits where brand_id = %s"
_SET = f"""
insert into app.brand_limits (brand_id, {", ".join(DEFAULTS)})
values (%(brand_id)s, {", ".join(f"%({name})s" for name in DEFAULTS)})
on conflict (brand_id) do update set {", ".join(f"{name} = excluded.{name}" for name in DEFAULTS)},
  updated_at = clock_timestamp()
"""


def limits_of(owner_url: str, brand_id: str) -> dict[str, Any]:
    """A brand's limits. Raises NotFound, Unavailable, ConfigurationError.

    Args:
        owner_url: DSN of the owner that ran the migrations.
    """
    return set_limits(owner_url, brand_id, {})


def set_limits(owner_url: str, brand_id: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Change some of a brand's limits and return all; None resets one to its default.

    The change is recorded in the brand's record. Running calls keep the limits that they began with.

    Raises:
        InvalidInput: a number is out of bounds; `param` names it.
        NotFound: no such brand.
    """
    for name, value in changes.items():
        _must_be_within(name, value)
    with connect_as_owner(owner_url) as connection:
        try:
            return _changed(connection, brand_id, changes)
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedTable):
            raise ConfigurationError(
                "this login may not set limits; use the owner that ran this version's migrations", param="database_url"
            ) from None


def _must_be_within(name: str, value: Any) -> None:
    least, most = _BOUNDS[name]
    if value is not None and not least <= value <= most:
        raise InvalidInput(f"{name} must be {least} to {most}; got {value}", param=name)


def _changed(connection: psycopg.Connection[Any], brand_id: str, changes: dict[str, Any]) -> dict[str, Any]:
    connection.execute("set local role onbrand_operator")
    connection.execute("select pg_advisory_xact_lock(hashtextextended('limits:' || %s, 0))", [brand_id])
    if connection.execute("select 1 from app.brands where id = %s", [brand_id]).fetchone() is None:
        raise NotFound(f"there is no brand {brand_id}")
    with connection.cursor(row_factory=dict_row) as cursor:
        before = cursor.execute(_ROW, [brand_id]).fetchone() or DEFAULTS
    now = before | {name: DEFAULTS[name] if value is None else value for name, value in changes.items()}
    if now != before:
        connection.execute(_SET, now | {"brand_id": brand_id})
        _record(connection, brand_id, now)
    return now


def _record(connection: psycopg.Connection[Any], brand_id: str, now: dict[str, Any]) -> None:
    """Add a line to the brand's record; `weight` is text, since the record takes only whole numbers."""
    limits = {name: value for name, value in now.items() if value is not None} | {"weight": f"{now['weight']:g}"}
    connection.execute(
        "select private.audit_append(%s, 'system:operator', %s, %s)", [brand_id, "brand.set_limits", Jsonb(limits)]
    )
