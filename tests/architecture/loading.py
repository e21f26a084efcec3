"""Finds code that unpickles data or passes tenants' files to Ray Data. It reads the syntax tree and resolves names.

A pickle runs code when it is loaded. Weights, checkpoints and messages between processes use plain formats.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

MODULES = {
    "pickle": "a pickle runs what it reads",
    "_pickle": "a pickle runs what it reads",
    "pickletools": "a pickle runs what it reads",
    "cloudpickle": "a pickle runs what it reads",
    "dill": "a pickle runs what it reads",
    "joblib": "it pickles",
    "jsonpickle": "it makes objects of what it reads",
    "marshal": "it trusts what it reads",
    "shelve": "it pickles",
    "multiprocessing": "its pipes, queues and pools pickle",
    "ray.cloudpickle": "a pickle runs what it reads",
    "ray.data": "tenants' files never go through Ray Data readers",
    "torch.package": "it pickles",
}
NAMES = {
    "torch.load": "it unpickles; weights are safetensors",
    "torch.save": "it pickles; weights are safetensors",
    "torch.jit.load": "it runs what it reads",
    "torch.hub.load": "it runs what it fetches",
    "torch.hub.load_state_dict_from_url": "it unpickles",
    "torch.serialization.load": "it unpickles",
    "concurrent.futures.ProcessPoolExecutor": "it pickles what passes",
    "concurrent.futures.process.ProcessPoolExecutor": "it pickles what passes",
    "pandas.read_pickle": "it unpickles",
    "numpy.lib.format.read_array": "it may unpickle; use numpy.load",
    "numpy.core.multiarray.fromfile": "it trusts what it reads",
    "yaml.load": "it makes objects of what it reads; use yaml.safe_load",
    "yaml.unsafe_load": "it makes objects of what it reads; use yaml.safe_load",
    "yaml.full_load": "it makes objects of what it reads; use yaml.safe_load",
    "ray.train.get_dataset_shard": "tenants' files never go through Ray Data readers",
    "torch.distributed.send_object_list": "it pickles what passes",
    "torch.distributed.all_gather_object": "it pickles what passes",
    "torch.distributed.gather_object": "it pickles what passes",
    "torch.distributed.broadcast_object_list": "it pickles what passes",
    "torch.distributed.scatter_object_list": "it pickles what passes",
}
METHODS = {
    "read_pickle": "it unpickles",
    "to_pickle": "it pickles",
    "get_dataset_shard": "tenants' files never go through Ray Data readers",
}
MUST_BE = {
    "allow_pickle": (False, "an array of objects is a pickle"),
    "weights_only": (True, "without it, weights may be a pickle"),
    "use_safetensors": (True, "without it, weights may be a pickle"),
    "trust_remote_code": (False, "it runs what it fetches"),
}
IMPORTERS = {"importlib.import_module", "__import__", "importlib.__import__"}


def faults_in(source: str) -> list[str]:
    """``line: what and why`` for everything that is forbidden."""
    tree = ast.parse(source)
    known = dict(_imported(tree))
    return sorted({f"{node.lineno}: {fault}" for node in ast.walk(tree) for fault in _faults(node, known)})  # type: ignore[attr-defined]


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """The meaning of each name in the module: ``np`` is ``numpy``, ``load`` is ``torch.load``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                yield (each.asname, each.name) if each.asname else (each.name.split(".")[0], each.name.split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for each in node.names:
                yield each.asname or each.name, f"{node.module}.{each.name}"


def _faults(node: ast.AST, known: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        for each in node.names:
            yield from _of_module(each.name)
    elif isinstance(node, ast.ImportFrom) and not node.level:
        for each in node.names:
            yield from _of_module(f"{node.module}.{each.name}")
    elif isinstance(node, ast.Attribute | ast.Name):
        yield from _of_name(_dotted(node, known), node)
    elif isinstance(node, ast.Call):
        yield from _of_call(node, known)


def _of_module(path: str) -> Iterator[str]:
    for module, why in MODULES.items():
        if path == module or path.startswith(f"{module}."):
            yield f"{module}: {why}"
    if path in NAMES:
        yield f"{path}: {NAMES[path]}"


def _of_name(path: str | None, node: ast.Attribute | ast.Name) -> Iterator[str]:
    if path is not None:
        yield from _of_module(path)
    if isinstance(node, ast.Attribute) and node.attr in METHODS:
        yield f"{node.attr}: {METHODS[node.attr]}"


def _of_call(node: ast.Call, known: dict[str, str]) -> Iterator[str]:
    called = _dotted(node.func, known) or ""
    for keyword in node.keywords:
        if keyword.arg in MUST_BE:
            wanted, why = MUST_BE[keyword.arg]
            if not (isinstance(keyword.value, ast.Constant) and keyword.value.value is wanted):
                yield f"{keyword.arg} must be {wanted}: {why}"
        if keyword.arg == "datasets" and called.endswith("Trainer"):
            yield "datasets of a trainer: tenants' files never go through Ray Data readers"
    if called in ("numpy.load", "numpy.save", "numpy.savez", "numpy.savez_compressed") and any(
        isinstance(given, ast.Constant) and given.value is True for given in node.args[2:]
    ):
        yield "allow_pickle must be False: an array of objects is a pickle"
    if called in IMPORTERS and node.args and isinstance(node.args[0], ast.Constant):
        yield from _of_module(str(node.args[0].value))


def _dotted(node: ast.AST, known: dict[str, str]) -> str | None:
    """``torch.load`` for `t.load` if `t` is torch; None if the node is no dotted name."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id if node.id in ("__import__",) else None)
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value, known)
        return None if inner is None else f"{inner}.{node.attr}"
    return None
