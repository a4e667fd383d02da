"""Instants that cross hosts. CLOCK_MONOTONIC means nothing on another host, so none is sent as it is.

A worker's message leaves its host with ages in place of instants (shifted by minus that host's time), and
gets instants back where it arrives (shifted by plus the trial's time then). So durations are the worker's
own, ends are the trial's own, and no clock of one host is compared with another's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from crewbench.execute.worker import Stages, StepResult


def shifted(message: tuple[Any, ...], by_s: float) -> tuple[Any, ...]:
    """One of worker.py's messages with its instants moved by so many seconds; everything else as it was."""
    match message:
        case ("stage", name, at_s):
            return "stage", name, at_s + by_s
        case (what, Stages() as stages, *rest):
            ended_s = None if stages.ended_s is None else stages.ended_s + by_s
            return what, replace(stages, began_s=stages.began_s + by_s, ended_s=ended_s), *rest
        case ("done", StepResult() as result):
            first_s = result.first_token_s
            return "done", replace(
                result,
                started_s=result.started_s + by_s,
                ended_s=result.ended_s + by_s,
                first_token_s=None if first_s is None else first_s + by_s,
                token_s=[[at_s + by_s for at_s in call] for call in result.token_s],
            )
        case ("stopped", peaks, samples):
            return "stopped", peaks, [{**sample, "t_s": sample["t_s"] + by_s} for sample in samples]
    return message
