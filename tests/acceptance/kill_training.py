"""Kills the processes of trainings on a real platform. Each adapter must equal that of an undisturbed run, bit by bit.

`python -m tests.acceptance.kill_training --points 20 --json` starts `onbrand up` with the tiny sd15 and trains once
undisturbed. Then it repeats the training and sends SIGKILL to one process after another at random steps: a training
worker, the driver, Ray Train's controller, the dispatcher (its replica, or all of `onbrand up`), the raylet. If that
ends `onbrand up`, it starts it again, as a supervisor would. The exit status is 1 if an adapter differs, or if a job
did not complete or ended more than once.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import safetensors.numpy

from tools.harness.colour_adapters import SIDE
from tools.harness.platform_process import Running, command_line, wait_for

WORKER, CONTROLLER, DRIVER = "RayTrainWorker", "TrainController", "onbrand.training.job"
SYSTEM, RAYLET = "ServeReplica:internal:", "raylet/raylet"
KINDS = ("worker", "driver", "controller", "dispatcher", "raylet")
COSTLY = frozenset({"driver", "controller", "raylet", "platform"})
"""Kills after which a job is submitted again, at most three times."""
MOST_COSTLY = 3
NUM_PICTURES = 8
CONFIG = {
    "steps": 60,
    "batch_size": 2,
    "rank": 2,
    "resolution": SIDE,
    "checkpoint_every": 10,
    "validate_every": 10,
    "held_out": 2,
    "patience": 0,
    "seed": 7,
}
"""A short run whose checkpoints have all parts: moments, averages, the best average, validations."""
END_SECONDS, KILL_SECONDS, UP_SECONDS = 600.0, 240.0, 90.0
ENDED = ("completed", "failed", "canceled")
_PASSWORD = "a long enough password"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of it.

    Args:
        points: kills, over all trainings.
        per_training: of them in one training, at most.
    """

    points: int = 20
    per_training: int = 5
    seed: int = 0


@dataclass
class Verdict:
    """The result of a run. `wrong` describes each error."""

    points: int
    killed: list[dict[str, Any]] = field(default_factory=list)
    trainings: int = 0
    identical: int = 0
    resumed_at: list[int] = field(default_factory=list)
    unbroken_sha256: str = ""
    unbroken_seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        return len(self.killed) >= self.points and self.identical == self.trainings > 0 and not self.wrong

    def as_json(self) -> dict[str, Any]:
        """The result as JSON."""
        said = asdict(self)
        return (
            said
            | {"killed": len(self.killed), "by_kind": Counter(kill["kind"] for kill in self.killed)}
            | {"kills": [f"{kill['kind']} at {kill['step']}" for kill in self.killed]}
        )


@dataclass
class Owner:
    """A brand's admin over HTTP, who waits while the platform is down."""

    brand_id: str
    http: httpx.Client
    asset_ids: list[str] = field(default_factory=list)

    @classmethod
    def join(cls, url: str, pictures: Sequence[bytes]) -> Owner:
        """Sign up, make a brand, upload pictures."""
        name = f"killed-{uuid.uuid4().hex[:10]}"
        http = httpx.Client(base_url=url, timeout=60, trust_env=False)
        account = {"email": f"{name}@example.com", "password": _PASSWORD}
        http.post("/v1/users", json=account).raise_for_status()
        token = http.post("/v1/tokens", json=account).raise_for_status().json()["access_token"]
        http.headers["authorization"] = f"Bearer {token}"
        http.post("/v1/brands", json={"id": name, "name": name.title()}).raise_for_status()
        owner = cls(name, http)
        files = [("files", (f"{number}.png", data, "image/png")) for number, data in enumerate(pictures)]
        captions = json.dumps([f"photo of [brand] logo {number}" for number in range(len(pictures))])
        stored = owner.call("POST", "/assets", files=files, data={"captions": captions})
        owner.asset_ids = [asset["id"] for asset in stored.json()["data"]]
        return owner

    def call(self, method: str, path: str, **parts: Any) -> httpx.Response:
        """Send a request within the brand; repeat it while the platform is down. Raises unless the status is 2xx."""
        address = path if path.startswith(("http", "/v1")) else f"/v1/brands/{self.brand_id}{path}"
        headers = {"idempotency-key": uuid.uuid4().hex} if method == "POST" else {}

        def answer() -> httpx.Response | None:
            with contextlib.suppress(httpx.TransportError):
                got = self.http.request(method, address, headers=headers, **parts)
                return None if got.status_code >= 500 else got
            return None

        return wait_for(answer, END_SECONDS, f"an answer to {method} {path}").raise_for_status()  # type: ignore[no-any-return]

    def train(self) -> str:
        """Create a job with fixed parameters; returns its id."""
        body = {
            "name": "killed",
            "model_type": "sd15",
            "training_asset_ids": self.asset_ids,
            "training_config": CONFIG,
        }
        return str(self.call("POST", "/training-jobs", json=body).json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(self.call("GET", f"/training-jobs/{job_id}").json())

    def ends_of(self, job_id: str) -> list[str]:
        """The terminal states in the job's events."""
        text = self.call("GET", f"/training-jobs/{job_id}/events").text
        data = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]
        return [each["status"] for each in data if each.get("status") in ENDED]

    def adapter_sha256(self, job: dict[str, Any]) -> str:
        """The hash of the published tensors' names and bytes. The header contains a time and is left out."""
        name = job["model_url"].rpartition("/")[2].removesuffix(".safetensors")
        link = self.call("GET", f"/models/{name}/download").json()["url"]
        tensors = safetensors.numpy.load(self.call("GET", link).content)
        digest = hashlib.sha256()
        for key in sorted(tensors):
            digest.update(key.encode() + tensors[key].tobytes())
        return digest.hexdigest()


class Killing:
    """One run on a platform that is up.

    Args:
        kinds: kinds of processes to kill, in turn; every second kill of a dispatcher kills all of `onbrand up`.
    """

    def __init__(self, running: Running, plan: Plan, kinds: Sequence[str] = KINDS) -> None:
        self._running, self._plan, self._kinds = running, plan, kinds
        self._dice = random.Random(plan.seed)
        self.owner = Owner.join(running.url, pictures())
        self.verdict = Verdict(plan.points)

    def run(self) -> Verdict:
        """Train once undisturbed, then with kills until all points are used."""
        began = time.monotonic()
        unbroken = self._end_of(self.owner.train())
        self.verdict.unbroken_seconds = round(time.monotonic() - began, 1)
        self.verdict.unbroken_sha256 = self.owner.adapter_sha256(unbroken)
        waiting = self._deaths()
        while waiting and not self.verdict.wrong:
            waiting = self._train_and_kill(waiting)
        self.verdict.seconds = round(time.monotonic() - began, 1)
        return self.verdict

    def _deaths(self) -> list[str]:
        """The kinds of kills, each equally often, in random order within each round of all kinds."""
        deaths: list[str] = []
        while len(deaths) < self._plan.points:
            deaths += self._dice.sample(self._kinds, len(self._kinds))
        turns = iter(range(len(deaths)))
        return [_every_second(kind, turns) for kind in deaths[: self._plan.points]]

    def _train_and_kill(self, waiting: list[str]) -> list[str]:
        """Run one training with as many of the waiting kills as possible; returns the remaining ones."""
        deaths = bearable(waiting, self._plan.per_training)
        points = sorted(self._dice.randrange(int(CONFIG["steps"])) for _ in deaths)
        job_id = self.owner.train()
        num_killed = 0
        for kind, point in zip(deaths, points, strict=True):
            if not self._kill_at(job_id, kind, point):
                break
            num_killed += 1
        self._judge(job_id)
        return waiting[num_killed:]

    def _kill_at(self, job_id: str, kind: str, point: int) -> bool:
        """Kill at step `point` of the job; False if the job ended before."""

        def due() -> dict[str, Any] | None:
            job = self.owner.job(job_id)
            is_due = job["provider_job_id"] is not None and job["metrics"].get("step", 0) >= point
            return job if is_due or job["status"] in ENDED else None

        job = wait_for(due, END_SECONDS, f"step {point} of job {job_id}")
        if job["status"] in ENDED or not self._kill(kind, job_id):
            return False
        self.verdict.killed.append({"kind": kind, "step": job["metrics"].get("step", 0)})
        return True

    def _kill(self, kind: str, job_id: str) -> bool:
        """Kill a process of this kind; False if the job ended before one existed."""
        if kind == "platform":
            self._running.send(signal.SIGKILL)
            self._running.start()
            return True
        found = self._victims(kind, job_id)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if kind == "raylet":
            self._running.wait(UP_SECONDS)
            self._running.start()
        return bool(found)

    def _victims(self, kind: str, job_id: str) -> list[int]:
        """Wait for processes of this kind, as a job has none for a while after a kill."""
        words = {"worker": WORKER, "driver": f"{DRIVER} ", "controller": CONTROLLER, "dispatcher": SYSTEM}

        def found() -> list[int] | None:
            all_of_them = self._running.processes()
            of_kind = [pid for pid in all_of_them if words.get(kind, RAYLET) in command_line(pid)]
            if kind == "driver":
                of_kind = [pid for pid in of_kind if job_id in command_line(pid)]
            return of_kind or ([] if self.owner.job(job_id)["status"] in ENDED else None)

        end = time.monotonic() + KILL_SECONDS
        while (pids := found()) is None:
            assert time.monotonic() < end, f"there is no {kind} to kill"
            time.sleep(0.1)
        return pids

    def _judge(self, job_id: str) -> None:
        job = self._end_of(job_id)
        self.verdict.trainings += 1
        if "resumed_at_step" in job["metrics"]:
            self.verdict.resumed_at.append(job["metrics"]["resumed_at_step"])
        if job["status"] != "completed":
            self.verdict.wrong.append(f"job {job_id} {job['status']}: {job['error']}")
        elif (ends := self.owner.ends_of(job_id)) != ["completed"]:
            self.verdict.wrong.append(f"job {job_id} ended as {ends}")
        elif (found := self.owner.adapter_sha256(job)) != self.verdict.unbroken_sha256:
            self.verdict.wrong.append(f"job {job_id}: the adapter's tensors are {found}")
        else:
            self.verdict.identical += 1

    def _end_of(self, job_id: str) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            job = self.owner.job(job_id)
            return job if job["status"] in ENDED else None

        return dict(wait_for(ended, END_SECONDS, f"the end of job {job_id}"))


def bearable(waiting: Sequence[str], most: int) -> list[str]:
    """The first of the waiting kills, as long as none exceeds the number of submissions of one job."""
    taken: list[str] = []
    for kind in waiting[:most]:
        if sum(each in COSTLY for each in [*taken, kind]) > MOST_COSTLY:
            break
        taken.append(kind)
    return taken


def _every_second(kind: str, turns: Iterator[int]) -> str:
    """Kill the whole platform with every second dispatcher."""
    turn = next(turns)
    return "platform" if kind == "dispatcher" and (turn // len(KINDS)) % 2 else kind


def pictures() -> list[bytes]:
    """Different pictures of a made-up emblem."""
    import io

    from PIL import Image, ImageDraw

    made = []
    for number in range(NUM_PICTURES):
        image = Image.new("RGB", (96, 96), (240, 230 - 9 * number, 200))
        pen = ImageDraw.Draw(image)
        pen.ellipse((10 + 5 * number, 20, 60 + 4 * number, 70), fill=(200, 30, 20 * number))
        pen.rectangle((40, 8 * number, 56, 86), fill=(20, 120 - 12 * number, 120))
        out = io.BytesIO()
        image.save(out, "PNG")
        made.append(out.getvalue())
    return made


def kill(running: Running, plan: Plan, kinds: Sequence[str] = KINDS) -> Verdict:
    """Run trainings and kills on a running platform."""
    killing = Killing(running, plan, kinds)
    with contextlib.closing(killing.owner.http):
        return killing.run()


def main(arguments: list[str] | None = None) -> int:
    """Start a platform, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in asdict(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"(default {value})")
    parser.add_argument("--kind", action="append", choices=KINDS, help="kill only these; repeatable")
    parser.add_argument("--json", action="store_true", help="one JSON object on one line")
    chosen = vars(parser.parse_args(arguments))
    as_json, kinds = chosen.pop("json"), chosen.pop("kind") or KINDS
    with tempfile.TemporaryDirectory(prefix="onbrand-test-", ignore_cleanup_errors=True) as folder:
        running = Running(Path(folder) / "data")
        try:
            running.start()
            verdict = kill(running, Plan(**chosen), kinds)
        finally:
            if running.process is not None:
                running.send(signal.SIGTERM)
    print(json.dumps(verdict.as_json(), indent=None if as_json else 1))
    return 0 if verdict.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
