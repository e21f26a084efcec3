"""Assembles an engine with its base, thread and adapters, in its own process (`engine_child`)."""

from __future__ import annotations

import logging
import os
from functools import partial

import torch

from onbrand.config import FamilyName, Settings
from onbrand.engine.compilation import keep_memory
from onbrand.engine.engine import Engine
from onbrand.families.bases import base_source, s3_access
from onbrand.families.family import Family
from onbrand.families.loading import load_family
from onbrand.internal.client import SystemClient, connections
from onbrand.serving.adapter_store import AdapterFiles, AdapterStore
from onbrand.serving.engine_thread import EngineThread
from onbrand.serving.local_engine import LocalEngine
from onbrand.serving.options import EngineOptions

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def assemble(name: FamilyName, options: EngineOptions, settings: Settings) -> LocalEngine:
    """The engine of the configured base of a family, running. Raises BaseModelRefused."""
    quiet_libraries()
    family = load(name, options, settings)
    engine = Engine(
        family,
        num_slots=options.num_slots,
        max_rank=options.max_rank,
        max_batch=options.max_batch,
        batch_sizes=options.batch_sizes,
        max_waiting=options.max_waiting,
        max_waiting_per_brand=options.max_waiting_per_brand,
        compile=options.compile,
        even_passes=_on_cpu(settings) if options.even_passes is None else options.even_passes,
    )
    url = settings.system_url
    files = AdapterFiles(settings.folder / "cache" / "adapters", options.disk_bytes)
    client_for = partial(SystemClient, url, http=connections(url))
    return LocalEngine(EngineThread(engine), AdapterStore(family, files, options.host_bytes), client_for)


def load(name: FamilyName, options: EngineOptions, settings: Settings) -> Family:
    """The family's configured base on the chosen device. Raises BaseModelRefused."""
    device, on_cpu = _device(settings), _on_cpu(settings)
    if on_cpu:
        keep_memory()
        torch.set_num_threads(options.num_threads or int(os.environ.get("OMP_NUM_THREADS") or 1))
    dtype = options.dtype or ("float32" if on_cpu else "bfloat16")
    source = base_source(name, settings.bases)
    return load_family(name, source, dtype=_DTYPES[dtype], device=device, storage_options=s3_access(settings))


def _device(settings: Settings) -> str:
    return settings.device or ("cuda" if torch.cuda.is_available() else "cpu")


def _on_cpu(settings: Settings) -> bool:
    return _device(settings) == "cpu"


def quiet_libraries() -> None:
    """Silence diffusers and transformers: their warnings quote cut-off words, and no log may hold a prompt."""
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
