"""Limits of the images that wait in an engine's queue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onbrand.engine.fair_queue import FairQueue
from onbrand.engine.request import Request
from onbrand.errors import TooManyRequests


@dataclass(frozen=True, slots=True)
class WaitingLimits:
    """How many images may wait.

    Args:
        max_waiting: limit of all. Above it, each account is held to an equal share of it, and each brand to an equal
            share of its account's. A brand with no waiting images is always accepted.
        max_waiting_per_brand: most of one brand.
    """

    max_waiting: int
    max_waiting_per_brand: int

    def must_have_room(self, queue: FairQueue, request: Request, retry_after: Callable[[str], int]) -> None:
        """Raise TooManyRequests unless the request's images may wait, too.

        Args:
            retry_after: seconds for a brand's id, for the error.
        """
        account_id, brand_id = request.account_id or request.brand_id, request.brand_id
        num, of_brand = request.parameters.num_images, queue.num_images(account_id, brand_id)
        if not of_brand:
            return
        if of_brand + num > self.max_waiting_per_brand:
            raise TooManyRequests(
                f"{of_brand} pictures of this brand wait already; try again later", retry_after=retry_after(brand_id)
            )
        share = self.max_waiting / len(queue.accounts() | {account_id})
        share_of_brand = share / len(queue.brands(account_id) | {brand_id})
        is_full = queue.num_images() + num > self.max_waiting
        if is_full and queue.num_images(account_id) + num > share and of_brand + num > share_of_brand:
            raise TooManyRequests(
                f"{of_brand} pictures of this brand wait already, and no more would be drawn soon; try again later",
                retry_after=retry_after(brand_id),
            )
