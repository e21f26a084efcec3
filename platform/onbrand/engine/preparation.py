"""Prepares requests for their first step: text encoding, schedule, merged adapters, and the cut parts of prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from onbrand.engine.adapters import merge_adapters
from onbrand.engine.batch import EngineJob, Prepared
from onbrand.engine.prompt_encoding import MOST_AT_ONCE, Branches, Encoder, PromptPair
from onbrand.engine.request import Plan, Request
from onbrand.families.family import Family


class Preparation:
    """Prepares jobs of one family. From any thread."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._encoder = Encoder(family)

    def prepare(self, jobs: Sequence[EngineJob]) -> list[Prepared | Exception]:
        """The conditioning, schedule and adapter of each job, or its exception. All jobs are guided, or none is."""
        pairs = [_prompts_of(job) for job in jobs]
        encoded = self._encoder.branches(pairs)
        return [self._prepared(job, branches) for job, branches in zip(jobs, encoded, strict=True)]

    def _prepared(self, job: EngineJob, branches: Branches | Exception) -> Prepared | Exception:
        if isinstance(branches, Exception):
            return branches
        request, plan, family = job.request, job.plan, self._family
        sampler = family.samplers[request.parameters.sampler] if request.parameters.sampler else family.sampler
        positive, negative = branches
        try:
            return Prepared(
                sampler=sampler,
                schedule=sampler.schedule(plan.num_steps, family.image_tokens(plan.height, plan.width)),
                positive=positive,
                negative=negative,
                use=merge_adapters(request.adapters) if request.adapters else None,
                cut=tuple(self._cuts(request, plan)),
            )
        except Exception as problem:
            return problem

    def _cuts(self, request: Request, plan: Plan) -> Iterator[dict[str, Any]]:
        """The parts of the prompts beyond the base's text length, as JSON."""
        texts = {"prompt": request.parameters.prompt}
        if plan.guided and request.parameters.negative_prompt:
            texts["negative_prompt"] = request.parameters.negative_prompt
        for name, text in texts.items():
            yield from ({"field": name, **cut.as_json()} for cut in self._family.text_lengths.cuts(text))


def grouped(jobs: Iterable[EngineJob]) -> list[list[EngineJob]]:
    """Groups of jobs, one encoding pass each: all guided or none; a job with `exclusive` is alone."""
    open_groups: dict[bool, list[EngineJob]] = {}
    groups: list[list[EngineJob]] = []
    for job in jobs:
        group = None if job.request.parameters.exclusive else open_groups.get(job.plan.guided)
        if group is None or len(group) == MOST_AT_ONCE:
            groups.append(group := [])
            if not job.request.parameters.exclusive:
                open_groups[job.plan.guided] = group
        group.append(job)
    return groups


def _prompts_of(job: EngineJob) -> PromptPair:
    parameters = job.request.parameters
    return PromptPair(parameters.prompt, parameters.negative_prompt or None, job.plan.guided)
