"""The code follows the rules of CONTRIBUTING.md: layers, names, sizes, and forbidden imports."""

from __future__ import annotations

import ast
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from onbrand import errors

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "platform/onbrand"
MODULES = sorted(PACKAGE.rglob("*.py"))
SAYS_NOTHING = {"utils", "util", "helpers", "helper", "common", "core", "base", "manager", "misc", "tools", "stuff"}
OURS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.OnbrandError)]


def python(program: str, folder: Path = ROOT) -> str:
    """The output of a new Python process."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


def test_imports_only_go_down() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.exists():
        pytest.skip("import-linter is not installed here (extra 'check')")
    done = subprocess.run(
        [linter, "--no-cache", "--no-logo"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_folder_platform_does_not_hide_the_module_platform() -> None:
    assert not (ROOT / "platform/__init__.py").exists()
    done = subprocess.run(
        [sys.executable, "-c", "import platform; print(platform.system())"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == os.uname().sysname


def test_the_client_loads_neither_torch_nor_ray_nor_a_server() -> None:
    loaded = python("import sys, onbrand.client; print(*sys.modules)").split()
    assert not {"torch", "ray", "fastapi", "psycopg", "diffusers", "numpy", "PIL", "pydantic_settings"} & set(loaded)


def test_the_client_needs_nothing_else_of_onbrand() -> None:
    loaded = python("import sys, onbrand.client; print(*sys.modules)").split()
    ours = [name for name in loaded if name.startswith("onbrand.")]
    assert all(name.startswith("onbrand.client") for name in ours), ours


@pytest.mark.parametrize(
    "module", ["onbrand.app", "onbrand.services", "onbrand.storage.store", "onbrand.internal.client"]
)
def test_the_web_tier_loads_neither_torch_nor_ray(module: str) -> None:
    loaded = python(f"import sys, {module}; print(*sys.modules)").split()
    assert not {"torch", "ray", "diffusers"} & set(loaded)


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["onbrand.serving.assembly", "onbrand.serving.generator", "onbrand.training.job", "onbrand.training.run"]
)
def test_processes_on_gpus_load_no_database(module: str) -> None:
    """`tests/acceptance/test_worker_environment.py` looks at real ones."""
    loaded = python(f"import sys, {module}; print(*sys.modules)").split()
    assert [name for name in loaded if name.startswith(("psycopg", "onbrand.db"))] == []


def test_the_command_answers_help_without_loading_a_platform() -> None:
    loaded = python("import sys, onbrand.cli; print(*sys.modules)").split()
    assert not {"torch", "ray", "diffusers", "psycopg"} & set(loaded)


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling(kind: type[errors.OnbrandError]) -> None:
    told = kind("the thing 'x' is wrong; do y", param="x", retry_after=3)
    again = pickle.loads(pickle.dumps(told))  # noqa: S301 - our own bytes
    assert (type(again), str(again), again.fields) == (kind, str(told), told.fields)
    assert (again.param, again.status, again.code) == ("x", kind.status, kind.code)


def test_every_error_is_defined_in_one_file() -> None:
    elsewhere = [
        f"{path.relative_to(PACKAGE)}: {node.name}"
        for path in MODULES
        if path != PACKAGE / "errors.py" and PACKAGE / "client" not in path.parents
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and {ast.unparse(parent) for parent in node.bases} & _names_of_ours()
    ]
    assert elsewhere == []


def _names_of_ours() -> set[str]:
    return {kind.__name__ for kind in OURS}


def test_a_file_is_named_after_what_it_is() -> None:
    named = [*PACKAGE.rglob("*"), *(ROOT / "tests").rglob("*.py")]
    assert [str(path) for path in named if path.stem in SAYS_NOTHING] == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        path for path in MODULES if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_nothing_loads_a_pickle() -> None:
    """They run what they read; weights and checkpoints are safetensors."""
    pattern = re.compile(r"(?<!safetensors\.)torch\.(load|save)\(|pickle\.loads?\(|joblib|yaml\.load\(")
    assert [str(path) for path in MODULES if pattern.search(path.read_text())] == []


def test_only_the_storage_layout_makes_keys() -> None:
    """A key's parts are joined in one place; elsewhere a key is called for, or read from its row."""
    pattern = re.compile(r"""Key\([^)]*f["']|Key\([^)]*["']\s*\+""")
    layout = PACKAGE / "storage/layout.py"
    assert [str(path) for path in MODULES if path != layout and pattern.search(path.read_text())] == []
