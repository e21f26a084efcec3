"""Slot leases of jobs: a job leases its adapter's slot when its rows step, and may lose it while they pause."""

from __future__ import annotations

from collections.abc import Callable, Collection

from onbrand.engine.adapters import AdapterKey
from onbrand.engine.batch import EngineJob
from onbrand.engine.residency import AdapterResidency


class Leases:
    """The leases of an engine's jobs.

    Args:
        served: ledgers of a job's account and brand; slots are recalled first from the jobs with the highest.
    """

    def __init__(self, residency: AdapterResidency, served: Callable[[EngineJob], tuple[float, float]]) -> None:
        self._residency, self._served = residency, served
        self._holders: dict[EngineJob, None] = {}

    def take(self, job: EngineJob, stepping: Collection[EngineJob]) -> bool:
        """Get the slot of the job's adapter, if it has one. False: no slot is available now.

        Args:
            stepping: jobs whose slots may not be recalled.

        Raises AdapterRefused when the adapter does not fit the base.
        """
        assert job.prepared is not None
        if job.lease is not None or job.prepared.use is None:
            return True
        if not self._pin(job) and job.prepared.use.key not in self._residency.resident:
            for other in self._recallable(job, stepping):
                self.give_back(other)
            self._pin(job)
        job.claiming = job.lease is None
        return not job.claiming

    def give_back(self, job: EngineJob) -> None:
        """Undo `take`, also if it returned False."""
        if job.lease is not None:
            self._residency.unpin(job.lease)
            del self._holders[job]
        elif job.claiming and job.prepared and job.prepared.use:
            self._residency.withdraw(job.prepared.use.key)
        job.lease, job.claiming = None, False

    def _pin(self, job: EngineJob) -> bool:
        assert job.prepared is not None
        use = job.prepared.use
        assert use is not None
        job.lease = self._residency.pin(use.key, use.weights, job.request.slot_quota)
        if job.lease is not None:
            self._holders[job] = None
        return job.lease is not None

    def _recallable(self, job: EngineJob, stepping: Collection[EngineJob]) -> list[EngineJob]:
        """The pausing jobs whose slot `job` would get if they released it. Of several slots, the one whose holder is
        farthest ahead. Empty: no recall would help."""
        assert job.prepared is not None
        use = job.prepared.use
        assert use is not None
        pausing: dict[AdapterKey, list[EngineJob]] = {}
        for other in sorted(self._holders, key=self._served, reverse=True):
            if other not in stepping and other.lease is not None:
                pausing.setdefault(other.lease.key, []).append(other)
        for key, holders in pausing.items():
            if self._residency.would_yield(key, len(holders), use.key, use.weights.rank):
                return holders
        return []
