"""Tests in several processes (`make test`, or `-n 3 --no-loadscope-reorder`): which go together, which go first.

A file stays in one process, and so does all of tests/acceptance, which speaks to one platform.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

TOGETHER = ("tests/acceptance/",)
LONGEST_FIRST = (
    "tests/acceptance/",
    "tests/isolation/test_faults.py",
    "tests/integration/test_training_jobs.py",
    "tests/integration/test_serving_app.py",
    "tests/isolation/test_http_absence.py",
    "tests/unit/test_training_loop.py",
)
"""What begins first, so that no process is left alone with something long at the end."""
WAITING = ("tests/isolation/", "tests/integration/")
"""What waits for servers a good deal: among the others, so that not all processes wait at once."""


def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        places = in_turns(dict.fromkeys(_file(item.nodeid) for item in items))
        items.sort(key=lambda item: places[_file(item.nodeid)])


def in_turns(files: Iterable[str]) -> dict[str, tuple[int, float]]:
    """Where each file comes: what is long first, as it stands there, then who waits evenly among those who compute."""
    places = {file: (_long(file), 0.0) for file in files}
    others = [file for file, (long, _) in places.items() if long == len(LONGEST_FIRST)]
    for kind in (True, False):
        alike = [file for file in others if file.startswith(WAITING) is kind]
        places |= {file: (len(LONGEST_FIRST), n / len(alike)) for n, file in enumerate(alike)}
    return places


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((start for start in TOGETHER if nodeid.startswith(start)), _file(nodeid))

    return ByFile(config, log)


def _file(nodeid: str) -> str:
    return nodeid.split("::", maxsplit=1)[0]


def _long(file: str) -> int:
    return next((n for n, start in enumerate(LONGEST_FIRST) if file.startswith(start)), len(LONGEST_FIRST))
