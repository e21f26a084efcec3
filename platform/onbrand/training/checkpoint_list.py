"""Ray Train's list of a run's checkpoints, made whole again before it is read.

Ray Train writes the list in place at every checkpoint. A driver that dies while it writes leaves half a list, and every
later start of the run would end at it. The checkpoints themselves are whole, so a list of the newest is made of what
lies there. On S3 an object is written whole or not at all.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import ray
from safetensors import SafetensorError, safe_open

LIST = "checkpoint_manager_snapshot.json"
_TENSORS, _FACTS = "state.safetensors", "state.json"


def mend(run: Path) -> bool:
    """Replace a broken list in the folder `run`; whether it was broken. With no whole checkpoint it begins anew."""
    if not (run / LIST).exists() or _is_whole(run):
        return False
    whole = [folder for folder in run.glob("checkpoint_*") if _step_of(folder) is not None]
    newest = max(whole, key=_step, default=None)
    if newest is None:
        (run / LIST).unlink()
        return True
    draft = run / f".{LIST}.{os.getpid()}"
    draft.write_text(json.dumps(_list_of(newest.name)))
    draft.replace(run / LIST)
    return True


def _is_whole(run: Path) -> bool:
    """Whether the list can be read, and what it names is there."""
    try:
        names = [each["checkpoint_dir_name"] for each in json.loads((run / LIST).read_text())["checkpoint_results"]]
    except (ValueError, KeyError, TypeError):
        return False
    return all((run / name).is_dir() for name in names)


def _step(folder: Path) -> int:
    return _step_of(folder) or 0


def _step_of(folder: Path) -> int | None:
    """The step of a checkpoint; None for one that was not written to its end."""
    try:
        with safe_open(folder / _TENSORS, framework="np"):
            return int(json.loads((folder / _FACTS).read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


def _list_of(name: str) -> dict[str, object]:
    """What Ray Train would have written of one checkpoint (`_CheckpointManagerState`)."""
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
