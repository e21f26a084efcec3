"""Prints a command's result as one JSON document or as text. Progress and errors go to stderr."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any, Protocol

import typer
from pydantic import BaseModel

from onbrand.cli.exits import FAILED, Failure

AsJson = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document.")]


class Step(Protocol):
    """Sets a progress bar's percentage, title, and notes below it."""

    def __call__(self, percent: float, title: str, notes: str = "") -> None: ...


def show(thing: Any, text: str, as_json: bool) -> None:
    """Print `thing` (a model or a plain object) as JSON, or `text`."""
    if as_json:
        print(_as_json(_plain(thing)))
    elif text:
        print(text)


def show_rows(things: Iterable[BaseModel], columns: Sequence[str], as_json: bool) -> None:
    """Print a list: as JSON `{"object": "list", "data": [...]}`, or as a table of `columns`."""
    found = list(things)
    if as_json:
        show({"object": "list", "data": [_plain(thing) for thing in found]}, "", as_json)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for thing in found:
        table.add_row(*(Text(_cell(getattr(thing, column))) for column in columns))
    console = Console()
    wide = console if console.is_terminal else Console(width=240)  # ids must not be cut in a pipe
    wide.print(table if found else "none")


def print_failure(failure: Failure, as_json: bool) -> None:
    """Print one line on stderr; with `as_json` also the error as the only document on stdout."""
    if as_json:
        error = {"code": failure.code, "message": failure.message, **failure.fields}
        print(_as_json({"error": error}))
    print(f"onbrand: {' '.join(failure.message.split())}", file=sys.stderr)


def take_any_text() -> None:
    """Print characters that the terminal's encoding lacks as `\\u2026`; accept any bytes on stdin."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the parent process
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the process
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def leave_reader() -> int:
    """Redirect stdout to the null device after a broken pipe. Returns the exit code, the same as typer's."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED


def _as_json(document: Any) -> str:
    """JSON text; ASCII only if stdout is not UTF-8, since JSON permits no other encoding."""
    is_utf8 = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "").replace("_", "") == "utf8"
    return json.dumps(document, ensure_ascii=not is_utf8)


@contextmanager
def progress_bar(title: str, as_json: bool) -> Iterator[Step]:
    """A progress bar on stderr, set by the yielded function; silent with `as_json`."""
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class Bar(Progress):
        def get_renderables(self) -> Iterable[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            yield from (Text(task.fields["notes"], style="dim") for task in self.tasks if task.fields["notes"])

    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=as_json,
    )
    with bar:
        task = bar.add_task(title, total=100, notes="")

        def move(percent: float, title: str, notes: str = "") -> None:
            bar.update(task, completed=percent, description=title, notes=notes)

        yield move


def _plain(thing: Any) -> Any:
    return thing.model_dump(mode="json") if isinstance(thing, BaseModel) else thing


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value.strftime("%Y-%m-%d %H:%M") if hasattr(value, "strftime") else str(value)
