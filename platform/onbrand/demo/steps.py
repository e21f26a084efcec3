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

    kit: SampleBrand
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
        return self.kit.brand_id

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


def enter(url: str, kit: SampleBrand) -> DemoBrand:
    """Sign up two users; the first creates the brand, the second joins by invitation."""
    admin, member = (_sign_up(url, f"{who}@{kit.brand_id}.example") for who in ("ada", "max"))
    admin.brands.create(kit.brand_id, kit.title)
    invitation = admin.members.add(kit.brand_id, f"max@{kit.brand_id}.example")
    member.invitations.accept(invitation.token or invitation.id)
    return DemoBrand(kit, admin, member)


def upload(player: DemoBrand, most: int) -> None:
    """Step 1: upload the pictures, at most `most` in a request."""
    uploads = sorted(player.kit.uploads, key=lambda one: one.object)
    for shown, group in groupby(uploads, key=lambda one: one.object):
        same = list(group)
        for start in range(0, len(same), most):
            some = same[start : start + most]
            captions = [one.caption for one in some]
            player.assets += player.member.upload_training_images(
                player.brand_id, [one.path for one in some], captions, object=shown
            )


def train(
    players: Sequence[DemoBrand], model_type: str, steps: int | None, tell: Callable[[DemoBrand], object]
) -> None:
    """Steps 2 to 4 for all brands at once, until all jobs have ended. A failed job is kept and raises nothing."""
    for player in players:
        config = {"trigger_word": player.kit.word} | ({"steps": steps} if steps else {})
        player.started_job = player.member.create_training_job(
            player.brand_id, model_type, name=f"{player.kit.title}'s adapter", config=config
        )
    started = time.monotonic()
    running = list(players)
    while running:
        time.sleep(POLL_SECONDS)
        for player in list(running):
            player.started_job = player.job.refresh()
            player.seconds = time.monotonic() - started
            tell(player)
            if player.job.done:
                running.remove(player)


def fetch_model(player: DemoBrand) -> None:
    """Set the player's model if its job has completed."""
    if player.job.status == "completed":
        models = player.member.models.list(player.brand_id)
        player.model = next(model for model in models if model.job_id == player.job.id)


def generate(player: DemoBrand, model_type: str, out: Path) -> None:
    """Step 5: draw the prompts with the base and the adapter, with the same seeds; save the pictures in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for number, prompt in enumerate(player.kit.prompts):
        seed = FIRST_SEED + 100 * number
        player.with_base += _draw(player, prompt, seed, out, "base", number, model_type=model_type)
        if player.model is not None:
            player.with_adapter += _draw(player, prompt, seed, out, "adapter", number, model=player.model.name)


def _draw(player: DemoBrand, prompt: str, seed: int, out: Path, label: str, number: int, **which: Any) -> list[Path]:
    generation: Generation = player.member.generate_image(
        player.brand_id, prompt, num_images=PICTURES_A_PROMPT, seed=seed, **which
    )
    player.images += generation.images
    first = number * PICTURES_A_PROMPT + 1
    return [image.download(out / f"{label}-{first + i}.png") for i, image in enumerate(generation.images)]


def _sign_up(url: str, email: str) -> Onbrand:
    client, password = Onbrand(url, timeout=120), secrets.token_urlsafe(16)
    client.token = None
    client.users.create(email, password)
    client.log_in(email, password)
    return client
