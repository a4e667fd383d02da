"""The start states of round 0, as data. Warm rounds are `resident` whatever the start."""

from __future__ import annotations

from dataclasses import dataclass


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
