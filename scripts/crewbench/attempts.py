"""A trial's attempts that lie kept between its allocations: which are over, and which one is next.

Read where the next allocation's devices are asked for, and again in it: both must mean one attempt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from crewbench.records import Status


def kept(place: Path) -> list[Path]:
    """The directories of the attempts that are over, in order."""
    done = (place / str(number) for number in count(1))
    found = []
    for path in done:
        if not (path / "trial.json").exists():
            return found
        found.append(path)
    raise AssertionError


def following(before: Sequence[Path], attempts: int) -> int | None:
    """The number (from 1) of the attempt that follows those kept, of so many. None where the search has ended
    and its attempts only wait to be joined: the last one did not run out of memory, or none is left."""
    if len(before) == attempts or (before and status(before[-1]) is not Status.OOM):
        return None
    return len(before) + 1


def status(attempt: Path) -> Status:
    return Status(json.loads((attempt / "trial.json").read_text(encoding="utf-8"))["status"])
