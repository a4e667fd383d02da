"""The tables under "What the framework, sharing and starting cost": from the tables' rows to words.

A row at a time, because a page shows some of thousands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from crewbench import cells, metrics, tax
from crewbench.breakeven import WITHOUT
from crewbench.figures import repayment
from crewbench.figures.framework import VARYING
from crewbench.interference import RELATIONS
from crewbench.records import Status
from crewbench.stats import Estimate
from crewbench.words import interval, number

GOAL = 1.05
"""What a warm round may take of its replay where the config does not say."""

Rows = Iterator[dict[str, Any]]


def agreements(tables: Mapping[str, pd.DataFrame], name: str) -> str:
    """What stands below the table of this name of its engines' agreement: no speed stands without it."""
    if name == "breakeven":
        return cells.untold(repayment.agreements(tables[name].to_dict("records")), labelled=True)
    named = ["engine", "variant", "host", "gpus"]
    shown = tables["tax" if name == "framework" else name][named].drop_duplicates()
    found = [(c["engine"], cells.agreement(tables["trials"], c)) for c in shown.to_dict("records")]
    return cells.untold(found, labelled=tables["trials"]["engine"].nunique() > 1)


def framework(tables: Mapping[str, pd.DataFrame], kind: str, thresholds: Mapping[str, float]) -> Rows:
    """What the agents' framework adds in each cell that had a replay, and how that stands to the goal."""
    goal = thresholds.get("framework_ratio", GOAL)
    trials = tables["trials"]
    worked = trials[(trials["status"] == Status.OK) & trials["warm_over_replay"].notna()]
    varying = cells.varying(trials, VARYING)
    for cell, group in _by_cell(worked):
        ratio = _estimate(tables["summary"], cell, "warm_over_replay")
        share = Estimate(*(tax.share_pct(x) for x in (ratio.value, ratio.low, ratio.high)), ratio.n)
        yield {
            "mode": cell["mode"],
            "name": cells.label(cells.told(tables["trials"], cell), varying, kind),
            "warm": number(metrics.median(group["warm_s"])),
            "replay": number(metrics.median(group["replay_s"])),
            "added": number(metrics.median(group["warm_s"] - group["replay_s"])),
            "ratio": said(ratio, " ×"),
            "share": said(share, " %"),
            "step_ms": number(metrics.median(group["added_ms_per_step"])),
            "step_tokens": number(metrics.median(group["added_tokens_per_step"])),
            "step_calls": number(metrics.median(group["added_calls_per_step"])),
            "goal": tax.against_goal(ratio, goal),
            "n": len(group),
        }


def interference(tables: Mapping[str, pd.DataFrame], kind: str) -> Rows:
    """An agent beside others against one alone, by what they share; or why that was not measured. `n`: trials
    behind the time for a token, and of how many of them there is an agent alone where those are fewer."""
    beside = tables["interference"]
    beside = beside[beside["agents"] > 1]
    varying = cells.varying(tables["trials"], VARYING)
    for relation, words in RELATIONS.items():
        for cell, group in _by_cell(beside[beside["relation"] == relation]):
            known = group.dropna(subset=["slowdown"])
            ratio = _estimate(tables["summary"], cell, f"slowdown_{relation}")
            yield {
                "mode": cell["mode"],
                "name": cells.label(cells.told(tables["trials"], cell), varying, kind),
                "relation": words,
                "others": number(metrics.median(group["others"])),
                "token_ms": number(1000 * metrics.median(group["s_per_token"])),
                "alone_ms": number(_thousand(metrics.median(group["alone_s_per_token"]))),
                "slowdown": said(ratio, " ×") if len(known) else ("–", ""),
                "alone": known["alone"].iloc[0] if len(known) else group["note"].iloc[0],
                "n": len(group) if len(known) in (0, len(group)) else f"{len(known)} of {len(group)}",
            }


def comparable(tables: Mapping[str, pd.DataFrame]) -> bool:
    """Whether any trial of several agents has an agent alone to be compared with."""
    beside = tables["interference"]
    return bool(beside[beside["agents"] > 1]["slowdown"].notna().any())


def breakeven(tables: Mapping[str, pd.DataFrame], kind: str) -> Rows:
    """Calls until the dearer start of each pair is repaid."""
    pairs = repayment.ordered(tables["breakeven"])
    named = repayment.varying(pairs)
    for row in pairs.to_dict("records"):
        calls = repayment.estimate_of(row)
        without = row["outcome"] in WITHOUT
        yield {
            "mode": row["b_mode"],
            "heading": repayment.heading(row),
            "name": repayment.label(row, named, kind),
            "seconds": [number(row[n]) for n in ("start_b_s", "start_a_s", "call_b_s", "call_a_s")],
            "calls": (row["outcome"], "") if without else said(calls),
            "rounds": "–" if without else number(row["calls"] / row["calls_per_round"]),
            "zygote": number(row["zygote_s"]) if row["zygote_s"] == row["zygote_s"] else "none",
            "n": int(row["n"]),
        }


def serving(tables: Mapping[str, pd.DataFrame], kind: str) -> Rows:
    """What servers said of themselves, medians over a cell's trials and servers."""
    varying = cells.varying(tables["trials"], VARYING)
    for cell, group in _by_cell(tables["serving"]):
        hits = metrics.median(group["prefix_hit_pct"])
        yield {
            "mode": cell["mode"],
            "name": cells.label(cells.told(tables["trials"], cell), varying, kind),
            "prefix": "–" if hits is None else f"{number(hits)} %",
            "preemptions": number(metrics.median(group["preemptions"])),
            "running": _gauge(group, "running"),
            "waiting": _gauge(group, "waiting"),
            "kv": _gauge(group, "kv_used_share", 100, " %"),
            "n": len(group),
            "note": next((note for note in group["note"] if note), ""),
        }


def _gauge(group: pd.DataFrame, name: str, times: float = 1, unit: str = "") -> tuple[str, str]:
    """A gauge's mean over time, and below it its peak."""
    mean = metrics.median(group[f"{name}_mean"])
    if mean is None:
        return "–", ""
    return f"{number(times * mean)}{unit}", f"at most {number(times * group[f'{name}_peak'].max())}{unit}"


def _thousand(value: float | None) -> float | None:
    return None if value is None else 1000 * value


def _by_cell(rows: pd.DataFrame) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    groups = cells.in_order(rows).groupby(cells.WHERE, observed=True, sort=False)
    return [(dict(zip(cells.WHERE, key, strict=True)), group) for key, group in groups]


def _estimate(summary: pd.DataFrame, cell: Mapping[str, Any], metric: str) -> Estimate:
    row = cells.only(summary, {**cell, "metric": metric}).iloc[0]
    value, low, high = (None if row[n] != row[n] else row[n] for n in ("estimate", "low", "high"))
    return Estimate(value, low, high, int(row["n"]), str(row["note"]))


def said(found: Estimate, unit: str = "") -> tuple[str, str]:
    """Its value, and below it its interval or why there is none."""
    if found.value is None:
        return "–", found.reason
    return f"{number(found.value)}{unit}", interval(found) if found.has_interval else found.reason
