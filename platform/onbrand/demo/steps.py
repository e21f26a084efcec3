"""Runs the five steps for the brands of a demo through the SDK."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from onbrand.client import Asset, Generation, Image, Model, Onbrand, TrainingJob
from onbrand.demo.sample_brands import SampleBrand

FIRST_SEED, PICTURES_A_PROMPT = 7, 2
POLL_SECONDS = 0.5


@dataclass
class DemoBrand:
    """A brand with its members' clients and the results of the steps.

    Args:
        admin: created the brand.
        member: accepted the admin's invitation; trains and generates.
    """

    sample: SampleBrand
    admin: Onbrand
    member: Onbrand
    assets: list[Asset] = field(default_factory=list)
    started_job: TrainingJob | None = None
    model: Model | None = None
    with_base: list[Path] = field(default_factory=list)
    with_adapter: list[Path] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def brand_id(self) -> str:
        return self.sample.brand_id

    @property
    def job(self) -> TrainingJob:
        """The last known state of the job. Raises RuntimeError before `train`."""
        if self.started_job is None:
            raise RuntimeError("train() comes first")
        return self.started_job

    @property
    def published(self) -> Model:
        """The model of the completed job. Raises RuntimeError without one."""
        if self.model is None:
            raise RuntimeError(f"{self.brand_id} has no model")
        return self.model


def enter(url: str, sample: SampleBrand) -> DemoBrand:
    """Sign up two users; the first creates the brand, the second joins by invitation."""
    admin, member = (_sign_up(url, f"{who}@{sample.brand_id}.example") for who in ("ada", "max"))
    admin.brands.create(sample.brand_id, sample.title)
    invitation = admin.members.add(sample.brand_id, f"max@{sample.brand_id}.example")
    member.invitations.accept(invitation.token or invitation.id)
    return DemoBrand(sample, admin, member)


def upload(demo_brand: DemoBrand, most: int) -> None:
    """Step 1: upload the pictures, at most `most` in a request."""
    uploads = sorted(demo_brand.sample.uploads, key=lambda one: one.object)
    for shown, group in groupby(uploads, key=lambda one: one.object):
        same = list(group)
        for start in range(0, len(same), most):
            some = same[start : start + most]
            captions = [one.caption for one in some]
            demo_brand.assets += demo_brand.member.upload_training_images(
                demo_brand.brand_id, [one.path for one in some], captions, object=shown
            )


def train(
    demo_brands: Sequence[DemoBrand], model_type: str, steps: int | None, tell: Callable[[DemoBrand], object]
) -> None:
    """Steps 2 to 4 for all brands at once, until all jobs have ended. A failed job is kept and raises nothing."""
    for demo_brand in demo_brands:
        config = {"trigger_word": demo_brand.sample.word} | ({"steps": steps} if steps else {})
        demo_brand.started_job = demo_brand.member.create_training_job(
            demo_brand.brand_id, model_type, name=f"{demo_brand.sample.title}'s adapter", config=config
        )
    started = time.monotonic()
    running = list(demo_brands)
    while running:
        time.sleep(POLL_SECONDS)
        for demo_brand in list(running):
            demo_brand.started_job = demo_brand.job.refresh()
            demo_brand.seconds = time.monotonic() - started
            tell(demo_brand)
            if demo_brand.job.done:
                running.remove(demo_brand)


def fetch_model(demo_brand: DemoBrand) -> None:
    """Set the player's model if its job has completed."""
    if demo_brand.job.status == "completed":
        models = demo_brand.member.models.list(demo_brand.brand_id)
        demo_brand.model = next(model for model in models if model.job_id == demo_brand.job.id)


def generate(demo_brand: DemoBrand, model_type: str, out: Path) -> None:
    """Step 5: draw the prompts with the base and the adapter, with the same seeds; save the pictures in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for number, prompt in enumerate(demo_brand.sample.prompts):
        seed = FIRST_SEED + 100 * number
        demo_brand.with_base += _draw(demo_brand, prompt, seed, out, "base", number, model_type=model_type)
        if demo_brand.model is not None:
            demo_brand.with_adapter += _draw(
                demo_brand, prompt, seed, out, "adapter", number, model=demo_brand.model.name
            )


def _draw(
    demo_brand: DemoBrand, prompt: str, seed: int, out: Path, label: str, number: int, **which: Any
) -> list[Path]:
    generation: Generation = demo_brand.member.generate_image(
        demo_brand.brand_id, prompt, num_images=PICTURES_A_PROMPT, seed=seed, **which
    )
    demo_brand.images += generation.images
    first = number * PICTURES_A_PROMPT + 1
    return [image.download(out / f"{label}-{first + i}.png") for i, image in enumerate(generation.images)]


def _sign_up(url: str, email: str) -> Onbrand:
    client, password = Onbrand(url, timeout=120), secrets.token_urlsafe(16)
    client.token = None
    client.users.create(email, password)
    client.log_in(email, password)
    return client
