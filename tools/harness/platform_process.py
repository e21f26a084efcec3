"""A real platform as a process, and the command line as a user runs it. Nothing here imports the platform."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).parents[2]
START_SECONDS, STOP_SECONDS = 240, 60
CANARY = "canary-of-the-environment"
SECRETS = dict.fromkeys(
    ("ONBRAND_S3_ACCESS_KEY", "ONBRAND_S3_SECRET_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "SOME_API_KEY"),
    CANARY,
)
"""Secrets in the environment of `onbrand up`, which Ray's processes must not inherit."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of a user's Onbrand (except bases), with `more`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ONBRAND_") or k == "ONBRAND_BASES"}
    return kept | {"PYTHONPATH": str(REPOSITORY / "platform"), "OMP_NUM_THREADS": "1"} | more


def onbrand(*arguments: str | Path, config: Path, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `onbrand ARGUMENTS` to its end; `config` is the folder of its credentials."""
    return subprocess.run(
        [sys.executable, "-m", "onbrand.cli", *map(str, arguments)],
        env=environment(XDG_CONFIG_HOME=str(config), **env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@dataclass
class Person:
    """A user of the command line."""

    config: Path
    url: str

    def says(self, *arguments: str | Path, timeout: float = 300, **env: str) -> Any:
        """The JSON document that a command prints; it must succeed."""
        done = self.tries(*arguments, "--json", timeout=timeout, **env)
        assert done.returncode == 0, f"onbrand {' '.join(map(str, arguments))}: {done.returncode}\n{done.stderr}"
        return json.loads(done.stdout)

    def tries(self, *arguments: str | Path, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command that may fail."""
        return onbrand(*arguments, config=self.config, timeout=timeout, **({"ONBRAND_URL": self.url} | env))

    def reads(self, path: str) -> Any:
        """The response of a route over HTTP with the command line's login; it must succeed."""
        answer = httpx.get(f"{self.url}{path}", headers={"Authorization": f"Bearer {self.token}"}, timeout=60)
        return answer.raise_for_status().json()

    @property
    def token(self) -> str:
        return str(json.loads((self.config / "onbrand" / "credentials.json").read_text())["token"])


@dataclass
class Running:
    """`onbrand up` on a folder. It can be stopped, killed and started again."""

    data_dir: Path
    port: int = field(default_factory=free_port)
    internal_port: int = field(default_factory=free_port)
    more: dict[str, str] = field(default_factory=dict)
    """Of its environment."""
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def internal_url(self) -> str:
        """The address of the internal routes for workers."""
        return f"http://127.0.0.1:{self.internal_port}/internal"

    def start(self) -> dict[str, Any]:
        """Start it; returns the document that `up --json` prints."""
        up = ["up", "--json", "--port", str(self.port), "--data-dir", str(self.data_dir), "--family", "sd15"]
        with (self.data_dir.parent / "up.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "onbrand.cli", *up],
                env=environment(
                    ONBRAND_TEST_MARK=self.mark,
                    ONBRAND_INTERNAL_PORT=str(self.internal_port),
                    **SECRETS,
                    **self.more,
                ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"onbrand up ended with {self.process.wait()}: {(self.data_dir.parent / 'up.log').read_text()}"
        document = dict(json.loads(line))
        assert "error" not in document, document["error"]
        return document

    def send(self, number: signal.Signals) -> int:
        """Send a signal, wait for the end, return the exit status."""
        process = self.process
        assert process is not None
        assert process.stdout is not None
        process.send_signal(number)
        try:
            return process.wait(STOP_SECONDS)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            self.process = None

    def wait(self, seconds: float) -> int:
        """Wait until the process ends; returns its exit status."""
        process = self.process
        assert process is not None
        assert process.stdout is not None
        status = process.wait(seconds)
        process.stdout.close()
        self.process = None
        return status

    def processes(self) -> list[int]:
        """All descendants of this platform, found by the mark in their environment."""
        mark, found = f"ONBRAND_TEST_MARK={self.mark}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes() and not is_ended(int(folder.name)):
                    found.append(int(folder.name))
            except OSError:
                continue
        return found


def pixels(path: str | Path) -> np.ndarray:
    """An image as H x W x 3 integers of 0..255."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=int)


def is_ended(pid: int) -> bool:
    """Whether a process is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def mapped_files(pid: int) -> set[str]:
    """Files that a process has mapped into memory, such as extension modules; empty once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {line[73:].strip() for line in lines if line[73:].strip().startswith("/")}


def command_line(pid: int) -> str:
    """The command line, or the title that the process gave itself."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true value of `condition`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds} s in vain for {what}")
