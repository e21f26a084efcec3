"""A short run of `chaos`: engines are killed while brands generate, publish and delete, and every response is right.

`tests/numerics/test_painted_colours.py` and `tests/unit/test_chaos_judge.py` test the parts that the verdict uses.
"""

from __future__ import annotations

from tests.acceptance.chaos import Plan, unleash
from tools.harness.platform_process import Running

SHORT = Plan(requests=60, kills=1, changes=4, brands=3, at_once=8, system_kills=0)


def test_every_request_is_answered_once_and_every_picture_is_its_own_adapters(platform: Running) -> None:
    verdict = unleash(platform, SHORT)
    assert verdict.is_good, verdict.as_json()
    assert (verdict.answered, verdict.killed) == (SHORT.requests, SHORT.kills)
    assert min(verdict.under_way_at_kills) > 0, "nobody was asking when the replica was killed"
    assert verdict.reseated > 0, "no adapter took another's slot"
    assert min(verdict.published - 2 * SHORT.brands, verdict.deleted, verdict.compared, verdict.answers["404"]) > 0
