"""Distributes tests over processes (`make test`, or `-n 3 --no-loadscope-reorder`), and starts the longest first.

A file stays in one process, and so does all of tests/acceptance, which uses one platform.
"""

from __future__ import annotations

from typing import Any

import pytest

TOGETHER = ("tests/acceptance/",)
LONGEST_FIRST = (
    "tests/acceptance/",
    "tests/isolation/test_faults.py",
    "tests/integration/test_training_jobs.py",
    "tests/isolation/",
    "tests/integration/",
    "tests/numerics/",
)
"""Tests that start first, so that no process is left alone with a long one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _place(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((start for start in TOGETHER if nodeid.startswith(start)), nodeid.split("::", maxsplit=1)[0])

    return ByFile(config, log)


def _place(nodeid: str) -> int:
    return next((n for n, start in enumerate(LONGEST_FIRST) if nodeid.startswith(start)), len(LONGEST_FIRST))
