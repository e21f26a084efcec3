"""Side channels: what the web login can learn about another brand's rows by SQL conditions, besides reading them.

A probe is a pair of conditions: one holds for a row of ACME, its twin does not. A channel is an observation of a
statement that returns none of ACME's rows: its plan, its execution, statistics, errors, or time. A channel that differs
between the two reveals one bit of another brand's row.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

SECRET = "photo of an unannounced perfume"
TABLE_STATISTICS = (
    "select relname, seq_scan, seq_tup_read, idx_scan, idx_tup_fetch from pg_stat_xact_user_tables order by 1"
)
_NOT_SEEN = ("Cond", "Filter", "Output", "Planning", "Sort Key", "Cache Key")
"""Parts of a plan that are left out: the statement's own text, and the catalogue's cached pages."""


@dataclass(frozen=True)
class Probe:
    """A table, a condition that holds for ACME's row, and a condition that holds for no row of any brand."""

    table: str
    true: str
    false: str

    def __str__(self) -> str:
        return f"{self.table}: {self.true[:60]}"


PLANNERS: dict[str, tuple[str, ...]] = {
    "as it comes": (),
    "no sequential scan": ("enable_seqscan",),
    "sequential scan": ("enable_indexscan", "enable_bitmapscan", "enable_indexonlyscan"),
    "bitmap scan": ("enable_seqscan", "enable_indexscan", "enable_indexonlyscan"),
}


@contextmanager
def planned(connection: psycopg.Connection[Any], switched_off: Sequence[str]) -> Iterator[None]:
    """Disable these planner methods within the block."""
    for name in switched_off:
        connection.execute(f"set local {name} = off")
    yield
    for name in switched_off:
        connection.execute(f"set local {name} = on")


def explained(connection: psycopg.Connection[Any], table: str, condition: str) -> str:
    """The plan and its estimates, without execution."""
    return _plan(connection, "costs", f"select 1 from {table} t where {condition}")


def executed(connection: psycopg.Connection[Any], table: str, condition: str) -> str:
    """The executed plan, with loops and pages, of the second run, when all pages are in memory."""
    statement = f"select 1 from {table} t where {condition}"
    for _ in range(2):
        seen = _plan(connection, "analyze, buffers, timing off, summary off", statement)
    return seen


def joined(connection: psycopg.Connection[Any], table: str, condition: str) -> str:
    """The executed plan with the condition in a join with an own row."""
    statement = f"select 1 from (values (1), (2)) own (n) left join {table} t on own.n > 0 and {condition}"
    for _ in range(2):
        seen = _plan(connection, "analyze, buffers, timing off, summary off", statement)
    return seen


def counted(connection: psycopg.Connection[Any], table: str, condition: str) -> str:
    """The transaction's statistics after the statement."""
    before = connection.execute(TABLE_STATISTICS).fetchall()
    connection.execute(f"select 1 from {table} t where {condition}").fetchall()
    after = connection.execute(TABLE_STATISTICS).fetchall()
    known = {row[0]: row[1:] for row in before}
    changes = {
        name: [int(now or 0) - int(was or 0) for now, was in zip(rest, known.get(name, (0,) * 4), strict=True)]
        for name, *rest in after
    }
    return str({name: change for name, change in changes.items() if any(change)})


def failed(connection: psycopg.Connection[Any], table: str, condition: str) -> str:
    """Whether a statement fails that divides by zero for rows that fulfil the condition."""
    try:
        with connection.transaction(force_rollback=True):
            statement = f"select 1 from {table} t where case when {condition} then 1 / (length(t::text) * 0) > 0 end"
            return str(connection.execute(statement).fetchall())
    except psycopg.Error as problem:
        return f"{problem.sqlstate} {problem.diag.message_primary}"


CHANNELS: dict[str, Callable[[psycopg.Connection[Any], str, str], str]] = {
    "explain": explained,
    "explain analyze": executed,
    "explain analyze of a join": joined,
    "statistics": counted,
    "errors": failed,
}


def bits(connection: psycopg.Connection[Any], probe: Probe, channel: str) -> list[str]:
    """The planners with which this channel distinguishes a probe from its twin."""
    look = CHANNELS[channel]
    told = []
    connection.prepare_threshold = None  # a prepared statement would keep the plan of another planner
    for name, switched_off in PLANNERS.items():
        with planned(connection, switched_off):
            look(connection, probe.table, probe.true)  # what is planned and read for the first time is no bit
            if look(connection, probe.table, probe.true) != look(connection, probe.table, probe.false):
                told.append(name)
    return told


def told_by_time(connection: psycopg.Connection[Any], probe: Probe, tries: int) -> float:
    """The share of runs in which the probe is slower than its twin, with 400 more conditions after each.

    0.5 means no difference. Both are prepared statements and take turns, so that the time contains no planning.
    """
    more = " and ".join(f"md5({_text_of(probe)}) >= '{number:x}'" for number in range(-400, 0))
    for name, condition in (("holds", probe.true), ("fails", probe.false)):
        connection.execute(
            f"prepare {name} as select 1 from {probe.table} t where {condition} and {more}", prepare=False
        )
    took: dict[str, list[float]] = {"holds": [], "fails": []}
    for number in range(tries):
        for name in ("holds", "fails") if number % 2 else ("fails", "holds"):
            began = time.perf_counter()
            connection.execute(f"execute {name}", prepare=False)
            took[name].append(time.perf_counter() - began)
    connection.execute("deallocate holds")
    connection.execute("deallocate fails")
    return _share_of_longer(took["holds"][20:], took["fails"][20:])


def _share_of_longer(some: list[float], others: list[float]) -> float:
    """The area under the ROC curve: the chance that one of `some` is longer than one of `others`."""
    ranked = sorted([(value, 0) for value in others] + [(value, 1) for value in some])
    mean_rank = statistics.fmean(rank for rank, (_, is_some) in enumerate(ranked, 1) if is_some)
    return (mean_rank - (len(some) + 1) / 2) / len(others)


def _text_of(probe: Probe) -> str:
    return "prompt" if probe.table == "app.generations" else "object_name"


def _plan(connection: psycopg.Connection[Any], options: str, statement: str) -> str:
    row = connection.execute(f"explain ({options}, format json) {statement}").fetchone()
    assert row is not None
    return json.dumps(_visible(row[0]), sort_keys=True)


def _visible(part: Any) -> Any:
    if isinstance(part, list):
        return [_visible(each) for each in part]
    if isinstance(part, dict):
        return {name: _visible(value) for name, value in part.items() if not name.endswith(_NOT_SEEN)}
    return part
