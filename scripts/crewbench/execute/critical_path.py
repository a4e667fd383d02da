"""Which stages a round's makespan is made of: the chain of work that ends last, walked backwards.

From the end of the round to its start, each piece is the stage of one step or one worker on which
everything after it waited. What no stage explains is idle, so the stages add up to the makespan.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from crewbench.records import STAGES

SLACK_S = 1e-4
"""How much later than its own start a piece may see the end of one that it waited for: a clock's read."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Something that took place from `start_s` to `end_s`, with the stages it consisted of.

    `after` names the pieces that it may have waited for; `wait` is the stage to which the time counts
    between the last of them and its own start.
    """

    name: str
    start_s: float
    end_s: float
    stages: dict[str, float]
    after: tuple[str, ...] = ()
    wait: str = "idle"


def stages(pieces: Iterable[Piece], start_s: float, end_s: float) -> dict[str, float]:
    """Seconds per stage between two instants, summing to end_s - start_s.

    Walks back from the piece that ends last, each time to the latest-ending piece that it waited for. What
    ended after `end_s` held nothing up.
    """
    by_name = {p.name: p for p in pieces if p.end_s <= end_s + SLACK_S}
    total = dict.fromkeys(STAGES, 0.0)
    now, wait = end_s, "idle"
    here = max(by_name.values(), key=lambda p: p.end_s, default=None)
    while here is not None:
        total[wait] += max(0.0, now - here.end_s)
        span = here.end_s - here.start_s
        named = sum(here.stages.values())
        # Stages are read off different clocks' calls; never let them claim more than the piece lasted.
        shrink = min(1.0, span / named) if named > 0 else 1.0
        for stage, seconds in here.stages.items():
            total[stage] += seconds * shrink
        total["idle"] += max(0.0, span - named)
        now, wait = here.start_s, here.wait
        del by_name[here.name]  # pieces shorter than the slack could wait for each other
        before = [by_name[n] for n in here.after if n in by_name and by_name[n].end_s <= now + SLACK_S]
        here = max(before, key=lambda p: p.end_s, default=None)
    total[wait] += now - start_s
    return total
