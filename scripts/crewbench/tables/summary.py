"""Estimates over the trials of a cell, and their comparisons with other cells."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from crewbench import cells, metrics, stats
from crewbench.quality import Agreement
from crewbench.records import Status


def summarise(
    trials: Iterable[Mapping[str, Any]],
    slowdowns: Mapping[tuple, Mapping[str, tuple[stats.Estimate, str]]] | None = None,
) -> list[dict[str, Any]]:
    """One row per cell, host and metric: the estimate over the trials that worked, of all that were run.

    After the metrics come what a workflow that worked cost (PER_WORKFLOW) and comparisons paired by repeat:
    `speedup_*` against the baseline where both do the same work in the same setting, `efficiency_*` against
    the fewest GPUs that the same mode worked on, and `slowdown_*` against an agent alone, by what is shared
    (`slowdowns`: by cell, as interference.estimates).
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = defaultdict(list)
    for trial in trials:
        groups[tuple(trial[name] for name in cells.WHERE)].append(trial)
    worked = {key: [t for t in group if t["status"] == Status.OK] for key, group in groups.items()}
    fewest: dict[tuple, tuple] = {}
    for key, ok in worked.items():
        without = _without_gpus(key)
        if ok and (without not in fewest or key[1] < fewest[without][1]):
            fewest[without] = key
    rows: list[dict[str, Any]] = []
    for key, group in groups.items():
        ok = worked[key]
        statuses = Counter(str(t["status"]) for t in group)
        base = {
            **dict(zip(cells.WHERE, key, strict=True)),
            "trials": len(group),
            "ok": len(ok),
            **{s.value: statuses[s.value] for s in Status if s is not Status.OK},
            "tainted": sum(bool(t["tainted"]) for t in group),
            "agreement": str(Agreement.worst(t["agreement"] for t in group)),
        }
        for metric in metrics.METRICS.values():
            values = [t[metric.name] for t in ok if t[metric.name] is not None]
            mean = stats.geometric_mean if metric.scale == "log" else stats.arithmetic_mean
            rows.append({**base, **_estimate_row(metric.name, metric.unit, mean(values), values)})
        for name, unit, spent, succeeded in PER_WORKFLOW:
            known = {t["repeat"]: t for t in group if t[spent] is not None}
            cost = stats.per_success(
                {r: t[spent] for r, t in known.items()},
                {r: _succeeded(t, succeeded) for r, t in known.items()},
            )
            rows.append({**base, **_estimate_row(name, unit, cost)})
        usual = cells.baseline()
        against = worked.get(fewest.get(_without_gpus((usual, *key[1:]))))
        first = fewest.get(_without_gpus(key))
        for phase in ("cold", "warm"):
            ours = _by_repeat(ok, f"{phase}_s")
            if against is not None and key[0] != usual:
                ratio = stats.paired(metrics.speedup, _by_repeat(against, f"{phase}_s"), ours)
                rows.append({**base, **_estimate_row(f"speedup_{phase}", "×", ratio, baseline=usual)})
            # What a mode that searches may use is not what it used.
            if first is not None and first != key and not cells.searches(key[0]):
                ratio = stats.paired(
                    partial(_efficiency, first[1], key[1]), _by_repeat(worked[first], f"{phase}_s"), ours
                )
                few = cells.devices(first[1])
                rows.append({**base, **_estimate_row(f"efficiency_{phase}", "", ratio, baseline=few)})
        for relation, (ratio, alone) in (slowdowns or {}).get(key, {}).items():
            rows.append({**base, **_estimate_row(f"slowdown_{relation}", "×", ratio, baseline=alone)})
    return rows


PER_WORKFLOW = (
    ("cold_gpu_s_per_workflow", "GPU s/workflow", "cold_gpu_s", "cold_s"),
    ("gpu_s_per_workflow", "GPU s/workflow", "gpu_s", "workflows_ok"),
    ("joules_per_workflow", "J/workflow", "energy_j", "workflows_ok"),
)
"""What a workflow that worked (a round of the crew's work) cost: its name, its unit, what was spent in every
trial, and what says how many workflows that was for."""


def _succeeded(trial: Mapping[str, Any], column: str) -> float:
    """How many workflows a trial brought about: a count, or one where its makespan is known."""
    return float(trial[column]) if column == "workflows_ok" else float(trial[column] is not None)


def _efficiency(few_gpus: int, many_gpus: int, few_s: float, many_s: float) -> float | None:
    return metrics.scaling_efficiency(few_gpus, few_s, many_gpus, many_s)


def _without_gpus(key: tuple) -> tuple:
    return (key[0], *key[2:])


def _by_repeat(trials: Iterable[Mapping[str, Any]], name: str) -> dict[int, float]:
    return {t["repeat"]: t[name] for t in trials if t[name] is not None}


def _estimate_row(
    name: str, unit: str, estimate: stats.Estimate, values: Sequence[float] = (), baseline: str = ""
) -> dict[str, Any]:
    return {
        "metric": name,
        "unit": unit,
        "baseline": baseline,
        "n": estimate.n,
        "estimate": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "median": metrics.median(values),
        "min": min(values, default=None),
        "max": max(values, default=None),
        "note": ("not estimable: " if estimate.value is None else "") + estimate.reason,
    }
