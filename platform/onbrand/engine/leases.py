"""Which jobs hold slots: a job leases its adapter's slot when its rows step, and may lose it while they pause."""

from __future__ import annotations

from collections.abc import Callable, Collection

from onbrand.engine.adapters import Residency
from onbrand.engine.batch import Job
from onbrand.engine.slots import rank_class


class Leases:
    """The leases of an engine's jobs.

    Args:
        served: how much a brand was served; slots are recalled from those ahead, whose turn is the farthest.
    """

    def __init__(self, residency: Residency, served: Callable[[str], float]) -> None:
        self._residency, self._served = residency, served
        self._holders: dict[Job, None] = {}

    def take(self, job: Job, stepping: Collection[Job]) -> bool:
        """See that `job` can step: it holds its adapter's slot, or needs none. False: there is no slot for it now.

        Args:
            stepping: jobs whose slots may not be recalled.

        Raises AdapterRefused when the adapter does not fit the base.
        """
        assert job.prepared is not None
        if job.lease is not None or job.prepared.use is None:
            return True
        if not self._pin(job) and job.prepared.use.key not in self._residency.resident:
            for other in self._pausing(job, stepping):
                self.give_back(other)
                if self._pin(job):
                    break
        job.claiming = job.lease is None
        return not job.claiming

    def give_back(self, job: Job) -> None:
        """The counterpart of `take`; also when it was refused."""
        if job.lease is not None:
            self._residency.unpin(job.lease)
            del self._holders[job]
        elif job.claiming and job.prepared and job.prepared.use:
            self._residency.withdraw(job.prepared.use.key)
        job.lease, job.claiming = None, False

    def _pin(self, job: Job) -> bool:
        assert job.prepared is not None
        use = job.prepared.use
        assert use is not None
        job.lease = self._residency.pin(use.key, use.weights, job.request.slot_quota)
        if job.lease is not None:
            self._holders[job] = None
        return job.lease is not None

    def _pausing(self, job: Job, stepping: Collection[Job]) -> list[Job]:
        """Those who hold a slot that would fit, and do not step now; who is farthest ahead comes first."""
        assert job.prepared is not None
        assert job.prepared.use is not None
        size = rank_class(job.prepared.use.weights.rank)
        pausing = [other for other in self._holders if other not in stepping and _size(other) == size]
        return sorted(pausing, key=lambda other: -self._served(other.brand_id))


def _size(job: Job) -> int:
    return job.lease.slot.rank_class if job.lease else 0
