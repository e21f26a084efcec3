"""Onbrand's errors for those of PostgreSQL. They hold no SQL and no values."""

from __future__ import annotations

import logging
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg_pool import PoolTimeout

from onbrand.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    OnbrandError,
    Unavailable,
)

log = logging.getLogger(__name__)

_OURS = {
    "OB001": "a brand keeps at least one admin; make another member admin first",
    "OB002": "this has ended and does not change any more",
    "OB003": "a request to cancel cannot be taken back",
    "OB005": "this account has as many brands as one may have",
    "OB004": "a training job that has not ended uses this; cancel the job or wait for its end",
}
LOST = (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout)
_MEANS: list[tuple[tuple[type[BaseException], ...], type[OnbrandError], str, dict[str, Any]]] = [
    ((pg.InsufficientPrivilege,), Forbidden, "your role does not allow this", {}),
    ((pg.UniqueViolation,), Conflict, "this is there already", {}),
    ((pg.ForeignKeyViolation,), NotFound, "not found", {}),
    (
        (pg.DataError, pg.CheckViolation, pg.NotNullViolation),
        InvalidInput,
        "a value is out of the bounds that the database accepts",
        {},
    ),
    (
        (pg.SerializationFailure, pg.DeadlockDetected, pg.QueryCanceled),
        Unavailable,
        "the database is busy; try again",
        {"retry_after": 1},
    ),
    (
        LOST,
        Unavailable,
        "the database does not answer; try again",
        {"retry_after": 2},
    ),
]


def translated(problem: BaseException) -> OnbrandError:
    """Onbrand's error for a PostgreSQL error; it keeps only the SQLSTATE, as a field."""
    state = getattr(problem, "sqlstate", None)
    if state in _OURS:
        return Conflict(_OURS[state], sqlstate=state)
    for kinds, error, message, fields in _MEANS:
        if isinstance(problem, kinds):
            return error(message, sqlstate=state, **fields)
    if isinstance(problem, psycopg.Error) and str(state).startswith("42"):  # names of tables and columns, no values
        log.error("a statement of ours is wrong: %s %s", state, problem.diag.message_primary)
    return OnbrandError("the database refused a statement of ours; this is a defect", sqlstate=state)
