"""One platform for all acceptance tests. They use it by HTTP and by the command line only."""

from __future__ import annotations

import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from tools.harness.platform_process import Person, Running, command_line, mapped_files

SMALL = ("--steps", "40", "--rank", "4", "--batch-size", "2")
"""A training: enough to move every weight; how well it learns is the demo's question."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    places = [n for n, item in enumerate(items) if Path(__file__).parent in item.path.parents]
    here = sorted((items[n] for n in places), key=lambda item: item.get_closest_marker("ends_the_platform") is not None)
    for n, item in zip(places, here, strict=True):
        items[n] = item
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600))


@contextmanager
def place_for_a_platform() -> Iterator[Path]:
    """A folder outside pytest's. Each pytest session closes its own folders to other accounts, such as PostgreSQL's."""
    with tempfile.TemporaryDirectory(prefix="onbrand-test-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="package")
def platform() -> Iterator[Running]:
    """`onbrand up` with the tiny sd15 and two engines of two slots, so that adapters take each other's, until the last
    test of this folder has ended. Its data directory has a name as people make them."""
    with place_for_a_platform() as folder:
        few = {"ONBRAND_ENGINE__NUM_REPLICAS": "2", "ONBRAND_ENGINE__NUM_SLOTS": "2"}
        running = Running(folder / "data #1, it's 100%", more=few)
        running.start()
        yield running
        if running.process is not None:
            running.send(signal.SIGTERM)


def draw_pictures(folder: Path, num: int = 6) -> list[Path]:
    """Draw pictures of a made-up emblem: PNG and JPEG, 96 px."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(num):
        image = Image.new("RGB", (96, 96), (240, 230, 200))
        pen = ImageDraw.Draw(image)
        pen.ellipse((20 + number, 20, 70 + number, 70), fill=(200, 30, 60))
        pen.rectangle((40, 40, 56, 80 - number), fill=(20, 40, 120))
        paths.append(folder / f"logo-{number + 1}.{'jpg' if number % 2 else 'png'}")
        image.save(paths[-1])
    return paths


@dataclass
class Trained:
    """A person whose brand has pictures, a model and drawn images, all made at the command line."""

    person: Person
    brand_id: str
    assets: list[dict[str, Any]]
    job: dict[str, Any]
    model: dict[str, Any]
    generation: dict[str, Any]
    worker_libraries: set[str]
    """Files that the training's worker processes had mapped into memory."""


@contextmanager
def libraries_of(platform: Running, name: str) -> Iterator[set[str]]:
    """Within the block, collect the mapped files of all processes of the platform that are called `name`."""
    found: set[str] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.2):
            for pid in platform.processes():
                if name in command_line(pid):
                    found.update(mapped_files(pid))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def join(platform: Running, folder: Path, name: str) -> Person:
    """Sign somebody up."""
    person = Person(folder / name, platform.url)
    person.says("signup", f"{name}@example.com", ONBRAND_PASSWORD=f"correct horse {name}")
    return person


@pytest.fixture(scope="package")
def acme(platform: Running, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A brand after the five steps at the command line."""
    folder = tmp_path_factory.mktemp("acme")
    ada = join(platform, folder, "ada")
    ada.says("brand", "create", "acme", "--name", "Acme")
    draw_pictures(folder / "pictures")
    caption = "photo of [brand] logo"
    uploaded = ada.says("asset", "upload", folder / "pictures", "--caption", caption, "--object", "logo")["data"]
    with libraries_of(platform, "RayTrainWorker") as libraries:
        job = ada.says("train", "--model-type", "sd15", *SMALL, timeout=500)
    model = ada.says("model", "get", "sd15-lora-v1")
    drawing = ["generate", "photo of [brand] logo", "--model", "sd15-lora-v1", "-n", "2", "--seed", "11"]
    generation = ada.says(*drawing, "--out", folder / "drawn")
    return Trained(ada, "acme", uploaded, job, model, generation, libraries)


@pytest.fixture(scope="package")
def rival(platform: Running, tmp_path_factory: pytest.TempPathFactory) -> Person:
    """An admin of another brand."""
    person = join(platform, tmp_path_factory.mktemp("rival"), "rita")
    person.says("brand", "create", "rival")
    return person
