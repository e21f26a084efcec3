"""Runs the demo on a temporary platform: the five steps, the access attempts, the contact sheet and the report."""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from onbrand.config import FamilyName, Settings
from onbrand.demo import steps as demo_steps
from onbrand.demo.contact_sheet import Row, Section, draw_contact_sheet
from onbrand.demo.isolation_attempts import isolation_attempts
from onbrand.demo.sample_brands import SampleBrand, choose_samples
from onbrand.demo.steps import DemoBrand
from onbrand.local.platform import Platform

FIT_RATIO = 0.3
"""The highest accepted ratio of the adapter's `fit` to the base's."""
FEWEST_TRIES = 8
"""The minimum number of cross-brand access attempts in a valid report."""
REPORT = "report.json"


def run_demo(
    model_type: FamilyName,
    own: Sequence[tuple[str, Path]],
    out: Path,
    *,
    steps: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run the demo and return its report, which is also in `out/report.json`.

    Args:
        own: (brand name, folder of pictures) of the user; synthetic brands fill up to two.
        steps: training steps; None: as recommended for the base.
        quiet: print nothing.

    Raises InvalidInput for pictures that cannot be used, ConfigurationError if the platform cannot start.
    """
    started, console = time.monotonic(), Console(stderr=True, quiet=quiet)
    folder = Path(tempfile.mkdtemp(prefix="onbrand-demo-"))
    try:
        settings = own_settings(model_type, folder / "data")
        suffix = f"-{secrets.token_hex(3)}" if settings.storage_url else ""  # a shared store may hold earlier demos
        samples = choose_samples(own, folder / "pictures", suffix)
        out.mkdir(parents=True, exist_ok=True)
        (out / REPORT).unlink(missing_ok=True)  # a failed run leaves none
        demo_brands, denied = _on_a_platform(settings, samples, model_type, steps, out, console)
        report = _report(demo_brands, model_type, settings, out) | {"denied": denied}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report["seconds"] = round(time.monotonic() - started, 1)
    (out / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    console.print(_table(report))
    return report


def own_settings(family: FamilyName, data_dir: Path) -> Settings:
    """Settings that separate the demo from the user's data; the environment still chooses the object store."""
    return Settings(
        data_dir=data_dir,
        database_url=None,
        web_database_url=None,
        system_database_url=None,
        run_storage=None,
        families=(family,),
        host="127.0.0.1",
        port=0,
        internal_port=0,
        public_url=None,
        internal_url=None,
        sign_up="open",
    )


def shortcomings(report: dict[str, Any]) -> list[str]:
    """The requirements that a report does not meet, as sentences."""
    found = []
    for brand in report["brands"]:
        name, fit = brand["brand_id"], brand["fit"]
        if brand["job"]["status"] != "completed":
            found.append(f"{name}'s job is {brand['job']['status']}")
        elif fit["adapter"] > FIT_RATIO * fit["base"]:
            found.append(f"{name}'s adapter fits {fit['adapter']}, more than {FIT_RATIO} of the base's {fit['base']}")
    tried, refused = report["denied"]["tried"], report["denied"]["refused"]
    if tried < FEWEST_TRIES or refused < tried:
        found.append(f"{refused} of {tried} cross-brand tries were refused; all must be, of at least {FEWEST_TRIES}")
    return found


def _on_a_platform(
    settings: Settings,
    samples: Sequence[SampleBrand],
    model_type: FamilyName,
    steps: int | None,
    out: Path,
    console: Console,
) -> tuple[list[DemoBrand], dict[str, int]]:
    def tell(text: str) -> None:
        console.print(f"[dim]{text} ...[/dim]")

    with Platform(settings, tell) as platform:
        tell("Uploading")
        demo_brands = [demo_steps.enter(platform.url, sample) for sample in samples]
        for demo_brand in demo_brands:
            demo_steps.upload(demo_brand, settings.limits.upload_files)
        tell("Training an adapter for each brand")
        demo_steps.train(demo_brands, model_type, steps, _progress(console))
        tell("Drawing with the base and with the adapters")
        for demo_brand in demo_brands:
            demo_steps.fetch_model(demo_brand)
            demo_steps.generate(demo_brand, model_type, out / demo_brand.brand_id)
        tell("Trying to get across the wall")
        return demo_brands, _try_all(demo_brands, console)


def _try_all(demo_brands: Sequence[DemoBrand], console: Console) -> dict[str, int]:
    ready = [demo_brand for demo_brand in demo_brands if demo_brand.model is not None]
    pairs = [(a, b) for a in demo_brands for b in ready if a is not b]
    attempts = [attempt for intruder, victim in pairs for attempt in isolation_attempts(intruder, victim)]
    crossed = [attempt.name for attempt in attempts if not attempt.is_refused()]
    for name in crossed:
        console.print(f"[bold red]not refused: {name}[/bold red]")
    return {"tried": len(attempts), "refused": len(attempts) - len(crossed)}


def _progress(console: Console) -> Callable[[DemoBrand], object]:
    told: dict[str, tuple[str, int]] = {}

    def tell(demo_brand: DemoBrand) -> None:
        state = (demo_brand.job.status, demo_brand.job.progress // 20)
        if told.get(demo_brand.brand_id) != state:
            told[demo_brand.brand_id] = state
            console.print(f"  {demo_brand.brand_id}: {demo_brand.job.status}, {demo_brand.job.progress} %")

    return tell


def _report(demo_brands: Sequence[DemoBrand], model_type: FamilyName, settings: Settings, out: Path) -> dict[str, Any]:
    from onbrand.demo.similarity import Similarity  # loads torch

    similarity = Similarity(model_type, settings)
    brands, sections = [], []
    for demo_brand in demo_brands:
        fit = {
            "base": similarity.fit(demo_brand.with_base, demo_brand.sample.held_out),
            "adapter": similarity.fit(demo_brand.with_adapter, demo_brand.sample.held_out),
        }
        brands.append(_brand_report(demo_brand, model_type, fit))
        sections.append(_section(demo_brand, model_type, fit))
    draw_contact_sheet(sections, out / "contact-sheet.png")
    return {"brands": brands}


def _brand_report(demo_brand: DemoBrand, model_type: str, fit: dict[str, float | None]) -> dict[str, Any]:
    return {
        "brand_id": demo_brand.brand_id,
        "model_type": model_type,
        "job": {
            "status": demo_brand.job.status,
            "seconds": round(demo_brand.seconds, 1),
            "model_url": demo_brand.job.model_url,
        },
        "model": demo_brand.model.name if demo_brand.model else None,
        "images": [str(path.absolute()) for path in demo_brand.with_adapter],
        "fit": fit,
    }


def _section(demo_brand: DemoBrand, model_type: str, fit: dict[str, float | None]) -> Section:
    own = [upload.path for upload in demo_brand.sample.uploads]
    name = demo_brand.model.name if demo_brand.model else "no model"
    return Section(
        demo_brand.sample.title,
        f"{model_type}  |  prompts: {', '.join(demo_brand.sample.prompts)}",
        (
            Row("its own pictures", f"{len(own)} uploaded", own),
            Row("the base alone", f"fit {fit['base']}", demo_brand.with_base),
            Row("with its adapter", f"{name}, fit {fit['adapter']}", demo_brand.with_adapter),
        ),
    )


def _table(report: dict[str, Any]) -> Table:
    table = Table("brand", "model", "job", "seconds", "fit of the base", "fit of the adapter", box=None, pad_edge=False)
    for brand in report["brands"]:
        job, fit = brand["job"], brand["fit"]
        table.add_row(
            brand["brand_id"],
            str(brand["model"]),
            job["status"],
            str(job["seconds"]),
            str(fit["base"]),
            str(fit["adapter"]),
        )
    denied = report["denied"]
    table.caption = f"{denied['refused']} of {denied['tried']} cross-brand tries refused; {report['seconds']} s in all"
    return table
