"""How many agents fit: mode x devices x context, predicted beside what was measured: the table `capacity`.

The prediction is feasibility's, asked for more and more agents. It knows of memory alone: many may be slow.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any

from crewbench import cells
from crewbench.certificates import GROUP
from crewbench.checkpoint.manifest import Manifest
from crewbench.engines import ENGINES
from crewbench.feasibility import (
    FITS,
    MEASURED,
    NOT,
    REFUTED,
    SOMETIMES,
    Ground,
    cell_of,
    contexts,
    predicted_peak_mib,
)
from crewbench.matrix import skip_reason
from crewbench.modes import MODES
from crewbench.trial import Cell

AGENTS_MAX = 256
"""Agents beyond which nobody asks: a mode with one copy for agents in turn has no end."""

OWN = ("mode", "engine", "variant", "host")
"""What says how much memory agents take: neither how it started nor what lay compiled does."""

COLUMNS = (
    *(*OWN, "gpus", "context_tokens", "as_measured", "most_agents", "fit_agents", "too_many_agents"),
    *("measured_over_predicted", "memory_mib", "device_name"),
)


def table(
    points: Iterable[Mapping[str, Any]],
    ground: Mapping[tuple, Ground],
    options: Mapping[str, Mapping[str, Any]],
    model: Manifest | None,
    devices: int,
) -> list[dict[str, Any]]:
    """One row for each mode (with its engine, variant and host), number of GPUs (up to `devices`, and what
    was measured beyond), and context: `most_agents` that fit as predicted, at most AGENTS_MAX, 0 if none do.
    `as_measured` is the longest context that its trials met; beside it stand the most agents that were
    measured to fit (`fit_agents`) and the fewest that were not (`too_many_agents`); a crew that fitted at
    times is both. What the prediction leaves out (activations above all) makes real peaks larger:
    `measured_over_predicted` is the largest such ratio of the mode's measured points, 1 if none is larger,
    and every prediction here is multiplied by it.

    `points` are feasibility's, `ground` is by certificates.GROUP. Nothing for slots, whose budgets are
    simulated, for modes that search, which end as another mode, for engines that reserve memory, which let
    agents wait instead, and without `model`, the checkpoint's sizes."""
    points, rows = [point for point in points if point["outcome"] in (MEASURED, REFUTED)], []
    for own, (group, here) in _longest(ground).items() if model is not None else ():
        if here.kind != "gpu" or not _has_an_end(group):
            continue
        measured = [point for point in points if tuple(point[name] for name in OWN) == own]
        over = _over(measured)
        # A cell over several hosts has more GPUs than one host.
        for gpus in sorted({*range(1, devices + 1), *(point["gpus"] for point in measured)}):
            here_too = [point for point in measured if point["gpus"] == gpus]
            fit = [point["agents"] for point in here_too if point["fits"] in (FITS, SOMETIMES)]
            too_many = [point["agents"] for point in here_too if point["fits"] in (NOT, SOMETIMES)]
            for context in contexts(here, model):
                most = _most_agents(group, gpus, here, context, over, options, model)
                if most is None:
                    continue
                seen = context == here.context_tokens
                rows.append(
                    {
                        **{name: group[name] for name in OWN},
                        **{"gpus": gpus, "context_tokens": context, "as_measured": seen, "most_agents": most},
                        "fit_agents": max(fit, default=None) if seen else None,
                        "too_many_agents": min(too_many, default=None) if seen else None,
                        "measured_over_predicted": over,
                        **{"memory_mib": here.memory_mib, "device_name": here.device_name},
                    }
                )
    return rows


def _longest(ground: Mapping[tuple, Ground]) -> dict[tuple, tuple[dict[str, Any], Ground]]:
    """By OWN, the group that met the longest context."""
    by_own: dict[tuple, tuple[dict[str, Any], Ground]] = {}
    for key, one in ground.items():
        group = dict(zip(GROUP, key, strict=True))
        own = tuple(group[name] for name in OWN)
        if own not in by_own or one.context_tokens > by_own[own][1].context_tokens:
            by_own[own] = (group, one)
    return by_own


def _has_an_end(group: Mapping[str, Any]) -> bool:
    """Whether memory says how many agents of these there can be."""
    known = group["mode"] in MODES and group["engine"] in ENGINES
    return known and not cells.searches(group["mode"]) and not ENGINES[group["engine"]].reserves


def _over(measured: Iterable[Mapping[str, Any]]) -> float:
    known = [p for p in measured if p["peak_mib"] is not None and p["predicted_peak_mib"]]
    return max([1.0, *(p["peak_mib"] / p["predicted_peak_mib"] for p in known)])


def _most_agents(
    group: Mapping[str, Any],
    gpus: int,
    ground: Ground,
    context_tokens: int,
    over: float,
    options: Mapping[str, Mapping[str, Any]],
    model: Manifest,
) -> int | None:
    """0 to AGENTS_MAX; None where the mode cannot be on so many GPUs."""

    def of(agents: int) -> Cell:
        return cell_of({**group, "agents": agents}, gpus, options)

    def too_many(agents: int) -> bool:
        return over * predicted_peak_mib(of(agents), ground, model, context_tokens) > ground.memory_mib

    least = next((n for n in range(1, gpus + 2) if not skip_reason(of(n), ground.kind)), None)
    if least is None:
        return None
    # More agents never need less.
    crews = range(least, AGENTS_MAX + 1)
    fit = bisect_left(crews, True, key=too_many)
    return crews[fit - 1] if fit else 0
