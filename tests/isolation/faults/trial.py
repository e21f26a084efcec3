"""One trial: a process in which one line of Onbrand is broken, and the tests that should notice.

The parent has imported third-party libraries and no module of Onbrand. Files on disk do not change: a broken module is
compiled from its changed text at import, and broken migrations are applied from a copy.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NoReturn

import pytest

from tests.isolation.faults.catalogue import ROOT, Fault

LOGINS = "ONBRAND_TEST_DATABASE_LOGINS"
_ARGUMENTS = (
    "-x", "-q", "-p", "no:cacheprovider", "-p", "pytest_asyncio.plugin", "-p", "pytest_timeout",
    "-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning", "-k", "not s3",
)  # fmt: skip


@dataclass(eq=False)
class Story:
    """The result of a trial. Only a failed assertion counts as catching the fault."""

    num_passed: int = 0
    failed_at: str = ""
    because: str = ""
    is_assertion: bool = False
    is_planted: bool = True
    problems: list[str] = field(default_factory=list)

    @property
    def is_caught(self) -> bool:
        return self.is_planted and self.is_assertion and bool(self.failed_at)

    @property
    def is_whole(self) -> bool:
        """True if at least one test ran and all passed."""
        return self.num_passed > 0 and not self.failed_at and not self.problems

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report = yield
        if report.passed and report.when == "call":
            self.num_passed += 1
        if report.failed and call.excinfo is not None:
            kind = call.excinfo.type
            if report.when == "call" and issubclass(kind, (AssertionError, pytest.fail.Exception)):
                self.is_assertion = True
            elif report.when != "call":
                self.problems.append(f"{report.when} of {report.nodeid}: {kind.__name__}: {call.excinfo.value}"[:300])
            self.failed_at = self.failed_at or report.nodeid
            self.because = self.because or f"{kind.__name__}: {str(call.excinfo.value).splitlines()[0:1]}"[:300]
        return report

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.problems.append(f"collecting {report.nodeid}: {report.longreprtext[-200:]}")


def run(fault: Fault | None, tests: Sequence[str], logins: str | None, into: Path) -> NoReturn:
    """Apply the fault, run the tests, write the result to `into`, end the process."""
    story = Story()
    try:
        _say_to(into.with_suffix(".log"))
        os.chdir(ROOT)
        sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        if logins is not None:
            os.environ[LOGINS] = logins
        planted = _plant(fault, logins) if fault else None
        code = pytest.main([*_ARGUMENTS, *tests], plugins=[story])
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            said = into.with_suffix(".log").read_text().split("\n")
            story.problems.append(f"pytest ended with {code}: {[line for line in said if line][-3:]}")
        story.is_planted = planted is None or planted.was_read
    except BaseException:
        story.problems.append(traceback.format_exc()[-600:])
    finally:
        draft = into.with_suffix(".draft")
        draft.write_text(json.dumps(vars(story)))
        draft.rename(into)
        os._exit(0)


def _say_to(log: Path) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(out, stream)


@dataclass
class _Planted:
    was_read: bool = False


def _plant(fault: Fault, logins: str | None) -> _Planted:
    """Make this process read the broken text instead of the file's."""
    assert not [name for name in sys.modules if name.split(".")[0] == "onbrand"], "ours was imported before the fault"
    return _plant_migration(fault, logins) if fault.is_sql else _plant_module(fault)


def _plant_module(fault: Fault) -> _Planted:
    planted, text, path = _Planted(), fault.broken_text(), str(fault.path)
    as_it_is = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, fullname: str) -> CodeType | None:
        if os.path.realpath(self.path) != os.path.realpath(path):
            return as_it_is(self, fullname)
        planted.was_read = True
        return compile(text, path, "exec", dont_inherit=True)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
    return planted


def _plant_migration(fault: Fault, logins: str | None) -> _Planted:
    """Bring an empty database (or, without `logins`, every later one of this process) to the broken schema."""
    from onbrand.db import migrate

    folder = Path(tempfile.mkdtemp(prefix="onbrand-fault-"))
    shutil.copytree(fault.path.parent, folder / "migrations")
    (folder / "migrations" / fault.path.name).write_text(fault.broken_text())
    _serve_files_from(migrate, folder)
    if logins is not None:
        migrate.migrate(logins.split("\n")[0])
        shutil.rmtree(folder)
    return _Planted(was_read=True)


def _serve_files_from(module: ModuleType, folder: Path) -> None:
    module.files = lambda package: folder  # type: ignore[attr-defined]
