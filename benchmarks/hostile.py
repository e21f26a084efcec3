"""Time and memory to refuse hostile files over HTTP.

`python -m benchmarks.hostile --json` starts a database and the two apps, sends every file of the corpus of
`tools/harness/hostile_files`, and prints one JSON object:

- `num_files`, `num_refused`: refused means a status and reason that the corpus expects, and a healthy server after it;
- `max_seconds`: longest request, from its first byte to the complete response, including the start of a child process;
- `max_mb`: peak memory of any child process (its `VmHWM`, read every millisecond), in 10^6 bytes;
- `slowest`, `largest`: names of these files; `not_refused`: names of files that were not refused.

The exit status is 1 unless all files are refused.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onbrand.config import Settings
from onbrand.db.embedded import start
from onbrand.db.session import Database
from onbrand.sandbox.processes import Child
from onbrand.secrets_file import load_secrets
from tools.harness.hostile_files.corpus import Hostile, corpus
from tools.harness.hostile_files.sending import FileRoutes, open_file_routes
from tools.harness.in_process_platform import Platform, serving
from tools.harness.people import PASSWORD, BrandOfPeople, Person


@dataclass(frozen=True)
class Refusal:
    """The result for one file."""

    name: str
    is_refused: bool
    seconds: float
    megabytes: float


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="one compact line")
    chosen = options.parse_args()
    figures = asyncio.run(measure())
    print(json.dumps(figures, indent=None if chosen.json else 1))
    sys.exit(0 if figures["num_refused"] == figures["num_files"] else 1)


async def measure() -> dict[str, Any]:
    """Send all files, one after another; returns the results."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="onbrand-hostile-"))
        settings = Settings(data_dir=Path(folder))
        secrets = load_secrets(settings)
        database = start(settings, secrets)
        stack.callback(database.stop)
        watched = stack.enter_context(Watch())
        db = await Database.open(database.web_url, database.system_url, claims_key=secrets.claims)
        try:
            async with serving(settings, secrets, db) as platform:
                async with open_file_routes(platform, await _brand(platform)) as opened:
                    return _figures([await _refusal(opened, hostile, watched) for hostile in corpus()])
        finally:
            await db.close()


async def _brand(platform: Platform) -> BrandOfPeople:
    async with platform.client() as client:
        account = {"email": "ada@acme.example", "password": PASSWORD}
        person = Person((await client.post("/v1/users", json=account)).json()["id"], account["email"])
    async with platform.client(person) as client:
        (await client.post("/v1/brands", json={"id": "acme", "name": "Acme"})).raise_for_status()
    return BrandOfPeople("acme", person, person, person)


async def _refusal(routes: FileRoutes, hostile: Hostile, watched: Watch) -> Refusal:
    data = hostile.make()
    watched.forget()
    began = time.perf_counter()
    answer = await routes.send(hostile.route, hostile.filename, data)
    seconds = time.perf_counter() - began
    told = re.search(hostile.why, answer.json().get("detail", "")) is not None
    answers_on = (await routes.client(hostile.route).get("/healthz")).status_code == 200
    is_refused = answer.status_code in hostile.statuses and told and answers_on
    return Refusal(hostile.name, is_refused, seconds, watched.megabytes)


def _figures(refusals: list[Refusal]) -> dict[str, Any]:
    slowest = max(refusals, key=lambda one: one.seconds)
    largest = max(refusals, key=lambda one: one.megabytes)
    return {
        "num_files": len(refusals),
        "num_refused": sum(one.is_refused for one in refusals),
        "max_seconds": round(slowest.seconds, 3),
        "max_mb": round(largest.megabytes, 1),
        "slowest": slowest.name,
        "largest": largest.name,
        "not_refused": [one.name for one in refusals if not one.is_refused],
    }


class Watch:
    """Reads the children's peak memory, a thousand times a second."""

    def __init__(self) -> None:
        self.megabytes = 0.0
        self._pids: list[int] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._first = Child.wait_until_ready

    def __enter__(self) -> Watch:
        first, pids = self._first, self._pids

        def noted(child: Child) -> None:
            first(child)
            pids.append(child.pid)

        Child.wait_until_ready = noted  # type: ignore[method-assign]
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        Child.wait_until_ready = self._first  # type: ignore[method-assign]
        self._ended.set()
        self._thread.join()

    def forget(self) -> None:
        """Reset the peak to zero."""
        self.megabytes = 0.0

    def _look(self) -> None:
        while not self._ended.wait(0.001):
            for pid in self._pids[-4:]:
                self.megabytes = max(self.megabytes, _peak(pid))


def _peak(pid: int) -> float:
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) * 1024 / 1e6 if found else 0.0


if __name__ == "__main__":
    main()
