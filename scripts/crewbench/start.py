"""The start states of round 0, as data. Warm rounds are `resident` whatever the start."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from crewbench.checkpoint.files import EVICTED_SHARE, WARM_SHARE


@dataclass(frozen=True, slots=True)
class Start:
    """`zygote`: workers are forked from a process that has done the imports. `cached`: the weights are
    in the page cache before round 0; otherwise they are evicted from it. Both are verified.
    `keeps_compiled`: what an engine compiles lies on disk before round 0; otherwise nothing does."""

    name: str
    title: str
    zygote: bool
    cached: bool
    keeps_compiled: bool


STARTS = {
    s.name: s
    for s in (
        Start("disk", "new process, weights on disk", zygote=False, cached=False, keeps_compiled=False),
        Start("process", "new process, weights in the page cache", False, True, True),
        Start("zygote", "forked process with the imports done, weights in the page cache", True, True, True),
    )
}


def taints(start: Start, shares: Collection[float | None]) -> list[str]:
    """What workers of one host found of the weights in the page cache (0 to 1, None where the kernel does not
    tell), each just before it loaded them, says against the start state: a sentence, or none. From disk the
    first to load counts: the others find what it has read."""
    known = [share for share in shares if share is not None]
    if len(known) < len(shares):
        return ["whether the weights were in the page cache is not known: their files belong to another user"]
    least = min(known, default=None)
    if least is None or (least >= WARM_SHARE if start.cached else least <= EVICTED_SHARE):
        return []
    meant = "all" if start.cached else "none"
    return [f"{100 * least:.1f} % of the weights were in the page cache before they were loaded, not {meant}"]
