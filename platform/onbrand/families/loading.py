"""Loads a base as its family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from onbrand.config import FamilyName
from onbrand.families.bases import base_folder, recommended, revision
from onbrand.families.family import Family
from onbrand.families.flux import Flux
from onbrand.families.sd15 import SD15
from onbrand.families.sdxl import SDXL

CLASSES: dict[FamilyName, type[Family]] = {"sd15": SD15, "sdxl": SDXL, "flux": Flux}


def load_family(
    name: str,
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    cache: Path | None = None,
    storage_options: dict[str, Any] | None = None,
) -> Family:
    """Load the base at `source` (folder, S3 URL or Hugging Face id) as family `name`.

    Raises BaseModelRefused: `source` is not a base of this family.
    """
    folder = base_folder(name, str(source), cache, storage_options)
    pipeline = load_pipeline(name, folder, dtype=dtype).to(device)
    return family_class(name)(pipeline, recommended(name, folder), revision(folder))


def family_class(name: str) -> type[Family]:
    """The class of family `name`."""
    return CLASSES[name]  # type: ignore[index]


def load_pipeline(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """The plain diffusers pipeline in `folder`. Raises BaseModelRefused if its parts do not load."""
    import diffusers

    from onbrand.errors import BaseModelRefused

    _quiet_libraries()
    chosen = family_class(name)
    kind = getattr(diffusers, chosen.spec.pipeline_classes[0])
    try:
        pipeline = kind.from_pretrained(folder, dtype=dtype, local_files_only=True, **chosen.pipeline_options)
    except (OSError, ValueError, RuntimeError, AttributeError, KeyError) as problem:
        raise BaseModelRefused(
            f"the base model for {name} in {folder.name} does not load ({type(problem).__name__}); "
            "a part is missing or broken: fetch it again",
            param=f"bases.{name}",
        ) from problem
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _quiet_libraries() -> None:
    """Turn off the libraries' progress bars and advice about optional packages."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
