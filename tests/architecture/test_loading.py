"""The package loads no pickle and passes no tenant's file to Ray Data. The check finds each planted violation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.loading import faults_in

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for folder in ("platform/onbrand", "benchmarks", "deployments", ".ci")
    for path in (ROOT / folder).rglob("*.py")
)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PLANTED = [
    "import pickle",
    "import pickle as p",
    "from pickle import loads",
    "import _pickle",
    "import cloudpickle",
    "from ray import cloudpickle",
    "import ray.cloudpickle as cp",
    "import ray\nray.cloudpickle.loads(data)",
    "import dill",
    "import joblib",
    "from joblib import load",
    "import marshal",
    "import shelve",
    "import jsonpickle",
    "import multiprocessing",
    "from multiprocessing.connection import Client",
    "from concurrent.futures import ProcessPoolExecutor",
    "import concurrent.futures\nconcurrent.futures.ProcessPoolExecutor()",
    "import torch\ntorch.load(path)",
    "import torch as t\nt.load(path, weights_only=True)",
    "from torch import load",
    "from torch import load as read\nread(path)",
    "import torch\ntorch.save(weights, path)",
    "import torch\ntorch.jit.load(path)",
    "import torch\ntorch.hub.load('a', 'b')",
    "import torch.distributed as dist\ndist.broadcast_object_list(things)",
    "import numpy as np\nnp.load(path, allow_pickle=True)",
    "import numpy as np\nnp.load(path, None, True)",
    "import numpy as np\nnp.load(path, allow_pickle=asked)",
    "from numpy import load\nload(path, allow_pickle=True)",
    "import pandas as pd\npd.read_pickle(path)",
    "frame.to_pickle(path)",
    "import yaml\nyaml.load(text, Loader=yaml.Loader)",
    "import yaml\nyaml.unsafe_load(text)",
    "import ray.data",
    "from ray import data",
    "import ray\nray.data.read_images(folder)",
    "from ray.data import read_webdataset",
    "from ray import train\ntrain.get_dataset_shard('train')",
    "session.get_dataset_shard('train')",
    "from ray.train.torch import TorchTrainer\nTorchTrainer(work, datasets={'train': data})",
    "import importlib\nimportlib.import_module('pickle')",
    "from importlib import import_module\nimport_module('dill')",
    "__import__('pickle')",
    "load_state(path, weights_only=False)",
    "pipeline.from_pretrained(path, use_safetensors=False)",
    "pipeline.from_pretrained(path, trust_remote_code=True)",
    "def late():\n    import pickle\n    return pickle.loads(data)",
    "try:\n    import pickle\nexcept ImportError:\n    pass",
]
FINE = [
    "import json\njson.load(file)",
    "import numpy as np\nnp.load(path)",
    "import numpy as np\nnp.load(path, allow_pickle=False)",
    "import safetensors.torch\nsafetensors.torch.load(data)",
    "from safetensors.torch import load, save\nload(data)",
    "import yaml\nyaml.safe_load(text)",
    "from ray import serve, train\ntrain.report(metrics)",
    "from ray.train.torch import TorchTrainer\nTorchTrainer(work, scaling_config=scaling)",
    "import torch\ntorch.utils.data.Dataset",
    "import pickles",
    "from onbrand.training import data",
    "pipeline.from_pretrained(path, use_safetensors=True)",
    "def load(path): ...\nload(path)",
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_loaded_by_running_it(path: Path) -> None:
    assert faults_in(path.read_text()) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_no_notebook_shows_how_to_load_by_running(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    lines = [line for cell in cells for line in "".join(cell["source"]).splitlines() if not line.startswith(("%", "!"))]
    assert faults_in("\n".join(lines)) == []


def test_the_package_is_looked_at() -> None:
    assert len(SOURCES) > 100


@pytest.mark.parametrize("source", PLANTED)
def test_a_planted_fault_is_found(source: str) -> None:
    assert faults_in(source) != []


@pytest.mark.parametrize("source", FINE)
def test_what_only_looks_like_one_is_left_alone(source: str) -> None:
    assert faults_in(source) == []


def test_the_linter_finds_a_pickle_that_is_planted(tmp_path: Path) -> None:
    """The contract in pyproject.toml, on a copy of the package with one import more."""
    import shutil

    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.exists():
        pytest.skip("import-linter is not installed here (extra 'check')")
    shutil.copytree(ROOT / "platform/onbrand", tmp_path / "platform/onbrand", ignore=_but_python)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    planted = tmp_path / "platform/onbrand/services/events.py"
    planted.write_text(f"{planted.read_text()}\nimport pickle\n")
    done = subprocess.run(
        [linter, "--no-cache", "--no-logo", "--contract", "pickle"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path / "platform")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "onbrand.services.events -> pickle" in done.stdout


def _but_python(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if (Path(folder) / name).is_file() and not name.endswith(".py")}


def test_reading_an_engines_options_loads_no_ray() -> None:
    """`up` does so before it says in its environment how Ray is to be reached, which Ray reads when it is loaded."""
    code = "import sys, onbrand.serving.generator; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
