"""Repairs Ray Train's list of a run's checkpoints before it is read.

Ray Train writes the list in place at every checkpoint. A driver that dies meanwhile leaves a truncated list, and every
later start of the run would fail. The checkpoints themselves are complete, so a list with the newest one is written
anew. On S3 an object is written completely or not at all.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import ray
from safetensors import SafetensorError, safe_open

LIST = "checkpoint_manager_snapshot.json"
_TENSORS, _FACTS = "state.safetensors", "state.json"


def repair(run: Path) -> bool:
    """Replace a broken list in the folder `run`; True if it was broken. Without a complete checkpoint it is deleted."""
    if not (run / LIST).exists() or _is_whole(run):
        return False
    steps = {folder: step for folder in run.glob("checkpoint_*") if (step := _step_of(folder)) is not None}
    newest = max(steps, key=steps.__getitem__, default=None)
    if newest is None:
        (run / LIST).unlink()
        return True
    draft = run / f".{LIST}.{os.getpid()}"
    draft.write_text(json.dumps(_list_of(newest.name)))
    draft.replace(run / LIST)
    return True


def _is_whole(run: Path) -> bool:
    """True if the list can be read and all its checkpoints exist."""
    try:
        names = [each["checkpoint_dir_name"] for each in json.loads((run / LIST).read_text())["checkpoint_results"]]
    except (ValueError, KeyError, TypeError):
        return False
    return all((run / name).is_dir() for name in names)


def _step_of(folder: Path) -> int | None:
    """The step of a checkpoint; None if it is incomplete."""
    try:
        with safe_open(folder / _TENSORS, framework="np"):
            return int(json.loads((folder / _FACTS).read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


def _list_of(name: str) -> dict[str, object]:
    """The list as Ray Train writes it for one checkpoint (`_CheckpointManagerState`)."""
    result = {"checkpoint_dir_name": name, "metrics": {}}
    return {
        "ray_version": ray.__version__,
        "checkpoint_results": [result],
        "checkpoint_report_indices": [0],
        "latest_checkpoint_result": result,
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": 1,
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
