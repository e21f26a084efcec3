"""Does the work of members, training workers and the ingress for the tests of serving."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from onbrand.config import Limits
from onbrand.internal.generation import RenderRequest
from onbrand.services import asset_checks, generations, images, job_validation, jobs, publication
from onbrand.services.generation_parameters import NewGeneration
from tests.stored_assets import store_assets
from tools.harness.tiny_families import family_of


@dataclass
class ServingFixtures:
    """Publishes a brand's model without training, and creates a generation without an ingress."""

    db: Any
    store: Any
    secrets: Any
    pictures: Any

    async def publish(self, brand, data: bytes) -> str:
        """Complete a training job with `data` as its adapter; returns the model's name."""
        async with self.db.user_session(brand.member.scope) as session:
            stored = self.store.brand(brand.id)
            files = [asset_checks.Upload("logo.png", self.pictures(hash(data) % 2**31), object="logo")]
            (asset,) = await store_assets(session, stored, brand.id, brand.member.user_id, files, Limits())
            new = job_validation.NewJob(name="test", model_type="sd15", training_asset_ids=[asset.id])
            job = await jobs.create_job(session, brand.id, brand.member.user_id, new)
        ticket = brand.ticket(job.id)
        async with self.db.system_session(ticket) as session:
            facts = {"rank": 4, "trigger_word": "acme", "base_revision": "0" * 64, "metrics": {}}
            model = await publication.publish(session, self.store.brand(brand.id), ticket, data, facts)
        return model.name

    async def ask(self, brand, **options) -> RenderRequest:
        """Create a pending generation; returns the request that the ingress would send."""
        numbers = {"num_images": 1, "width": 64, "height": 64, "seed": 5, "num_inference_steps": 2}
        new = NewGeneration(
            **{"prompt": "a red square", "model_type": "sd15", "guidance_scale": 3.0, **numbers, **options}
        )
        async with self.db.user_session(brand.member.scope) as session:
            served = {"sd15": family_of("sd15").recommended}
            row = await generations.create_generation(session, brand.id, brand.member.user_id, new, served, Limits())
            token = brand.ticket(row.id, "generation").sign(self.secrets.tickets)
            return await generations.render_request(session, row, token)

    async def row(self, brand, asked: RenderRequest) -> generations.Generation:
        async with self.db.user_session(brand.member.scope) as session:
            return await generations.get_generation(session, brand.id, asked.generation_id)

    async def bytes_of(self, brand, image: images.Image) -> bytes:
        async with self.db.user_session(brand.member.scope) as session:
            found = await images.get_image(session, brand.id, image.id)
        return self.store.brand(brand.id).read(found.key)

    async def pixels(self, brand, generation_id: str) -> np.ndarray:
        """[H, W, 3] of a generation's first picture, 0 to 255."""
        async with self.db.user_session(brand.member.scope) as session:
            row = await generations.get_generation(session, brand.id, generation_id)
        data = await self.bytes_of(brand, row.images[0])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
