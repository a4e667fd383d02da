"""What a growing context costs: prompt tokens and prefill of each step of a chain, where each step reads all
that the steps before it wrote. Pure functions from the tables to the table `chain`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pandas as pd

from crewbench import cells, metrics, stats
from crewbench.deployment import Deployment
from crewbench.records import Status
from crewbench.trial import Cell

COLUMNS = (
    *cells.WHERE,
    *("repeat", "position", "step", "agent", "rounds", "prompt_tokens", "prefill_s", "prefill_ms_per_token"),
    "decode_s",
)


def is_chain(deployment: Deployment | None) -> bool:
    """Whether every step reads all the steps before it."""
    return (
        deployment is not None
        and len(deployment.steps) > 1
        and all(len(step.after) == i for i, step in enumerate(deployment.steps))
    )


def table(found: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """A row for each trial that worked and each step of its chain, `position` from 1: medians over its warm
    rounds, or of its cold one where it has none."""
    trials = found["trials"]
    worked = cells.in_order(trials[trials["status"] == Status.OK]).to_dict("records")
    chains = {t["trial_id"]: t for t in worked if is_chain(_deployment(t))}
    agents = cells.last_attempts(found["agents"])
    ours = agents[agents["trial_id"].isin(chains) & (agents["status"] == Status.OK)]
    steps: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    for row in ours.to_dict("records"):
        steps[row["trial_id"], row["step"]].append(row)
    rows = []
    for key, trial in chains.items():
        for position, step in enumerate(_deployment(trial).steps, start=1):
            ran = steps[key, step.name]
            ran = [r for r in ran if r["phase"] == "warm"] or ran
            tokens, prefill, decode = (
                metrics.median(r[n] for r in ran) for n in ("prompt_tokens", "prefill_s", "decode_s")
            )
            if prefill is None:
                continue
            rows.append(
                {
                    **{name: trial[name] for name in cells.WHERE},
                    "repeat": trial["repeat"],
                    "position": position,
                    "step": step.name,
                    "agent": ran[0]["agent"],
                    "rounds": len(ran),
                    "prompt_tokens": tokens,
                    "prefill_s": prefill,
                    "prefill_ms_per_token": 1000 * prefill / tokens if tokens else None,
                    "decode_s": decode,
                }
            )
    return rows


def by_step(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """A cell's trials step by step: the median prompt, and geometric means of prefill and decode, in s."""
    return [
        {
            "position": int(position),
            "agent": group["agent"].iloc[0],
            "n": len(group),
            "prompt_tokens": metrics.median(group["prompt_tokens"]),
            "prefill": stats.geometric_mean(group["prefill_s"].dropna()),
            "ms_per_token": metrics.median(group["prefill_ms_per_token"]),
            "decode": stats.geometric_mean(group["decode_s"].dropna()),
        }
        for position, group in rows.groupby("position", sort=True)
    ]


def _deployment(trial: Mapping[str, Any]) -> Deployment | None:
    return cells.deployment(
        Cell(*(trial[n] for n in ("mode", "gpus", "agents", "engine", "start", "variant")))
    )
