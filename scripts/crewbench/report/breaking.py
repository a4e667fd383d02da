"""The report's section on what breaks first and what bounds each mode: rows of short texts from the tables
`verdict`, `constraints`, `bounds` and `chain`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from crewbench import cells, ramp
from crewbench.chain import by_step
from crewbench.opening import ramp_name
from crewbench.report.costs import said
from crewbench.stats import Estimate
from crewbench.words import number

Rows = list[dict[str, Any]]


def limits_words(limits: ramp.Limits) -> str:
    """The thresholds, in words."""
    deadline = "none is set" if limits.deadline_s is None else f"{number(limits.deadline_s)} s"
    return (
        f"Memory: a device's budget or capacity. Latency: the deadline, {deadline}. Parallelism: "
        f"{number(100 * limits.scaling_efficiency)} % of the ideal speed-up over GPUs or agents. "
        f"Orchestration: framework and queue take at most {number(100 * limits.orchestration_share)} % of "
        "the makespan."
    )


def constraints(tables: Mapping[str, pd.DataFrame], kind: str) -> Rows:
    """A row for each ramp: what breaks first, and each constraint with its number, where, and the margin."""
    verdicts = tables["verdict"]
    varying = cells.varying(verdicts, ramp.RAMP)
    by_ramp = {key: group for key, group in tables["constraints"].groupby(ramp.RAMP, sort=False)}
    rows = []
    for verdict in verdicts.to_dict("records"):
        found = by_ramp[tuple(verdict[n] for n in ramp.RAMP)]
        by_name = {row["constraint"]: row for row in found.to_dict("records")}
        broke = verdict["outcome"] == ramp.Outcome.BROKE
        rows.append(
            {
                "mode": verdict["mode"],
                "name": ramp_name(verdict, varying),
                "ramp": _ramp(verdict, kind),
                "first": str(verdict["first"]).capitalize(),
                "broke": broke,
                "simulated": bool(verdict["simulated_budget"]) and verdict["first"] == "memory",
                "constraints": [_constraint(by_name[name], kind) for name in ramp.CONSTRAINTS],
            }
        )
    return rows


def _ramp(verdict: Mapping[str, Any], kind: str) -> str:
    """ "1 to 8 agents, 1 to 4 GPUs"."""
    few, many = verdict["agents_from"], verdict["agents_to"]
    agents = f"{many} agent{'s' * (many != 1)}" if few == many else f"{few} to {many} agents"
    few, many = verdict["gpus_from"], verdict["gpus_to"]
    return (
        f"{agents}, {cells.devices(many, kind) if few == many else f'{few} to {cells.devices(many, kind)}'}"
    )


def _constraint(row: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Its number against the threshold or its outcome, with the margin, the point and the evidence."""
    value, margin = row["value"], row["margin_pct"]
    broke = row["outcome"] == ramp.Outcome.BROKE
    if row["outcome"] in (ramp.Outcome.NOT_JUDGED, ramp.Outcome.NOT_MEASURED):
        return {"value": row["outcome"], "bad": False, "where": "", "why": row["evidence"]}
    unit = " s" if row["constraint"] == "latency" else " %"
    shown = f"{number(value if unit == ' s' else 100 * value)}{unit}" if value == value else "broke"
    if value != value and not broke:
        shown = "not reached"
    room = f"{number(abs(margin))} % {'beyond' if margin < 0 else 'to spare'}" if margin == margin else ""
    sure = "" if row["settled"] else "not settled"
    where = ramp.place((int(row["at_agents"]), int(row["at_gpus"])), kind)
    return {
        "value": shown,
        "bad": broke,
        "where": ", ".join(filter(None, [room, where, sure])),
        "why": row["evidence"],
    }


def bounds(found: pd.DataFrame, kind: str) -> Rows:
    """A row for each cell: what bounds the crew, and an agent while it works, with what says so."""
    varying = cells.varying(found, (*cells.CELL, "compile_cache", "host"))
    return [
        {
            "mode": row["mode"],
            "name": cells.label(row, varying, kind),
            "bound": row["bound"],
            "each": row["each"] if row["each"] != row["bound"] else "–",
            "overlap": f"{number(row['overlap'])} of {row['agents']}",
            "bandwidth": _percent(row["bandwidth_pct"]),
            "util": _percent(row["util_pct"]),
            "orchestration": _percent(row["orchestration_pct"]),
            "why": row["why"],
            "n": row["n"],
        }
        for row in found.to_dict("records")
    ]


def chain(found: pd.DataFrame, kind: str) -> Iterator[dict[str, Any]]:
    """A row for each step of each chain: its prompt, its prefill and its decode. A row at a time, because a
    page shows some of many."""
    varying = cells.varying(found, (*cells.CELL, "compile_cache", "host"))
    for key, group in found.groupby(cells.WHERE, sort=False):
        cell = dict(zip(cells.WHERE, key, strict=True))
        for step in by_step(group):
            yield {
                "mode": cell["mode"],
                "name": cells.label(cell, varying, kind),
                "step": f"{step['position']}, {str(step['agent']).replace('_', ' ')}",
                "tokens": number(step["prompt_tokens"]),
                "prefill": said(_in_ms(step["prefill"]), " ms"),
                "each": "–" if step["ms_per_token"] is None else f"{number(step['ms_per_token'])} ms",
                "decode": said(_in_ms(step["decode"]), " ms"),
                "n": step["n"],
            }


def _in_ms(found: Estimate) -> Estimate:
    ends = {n: getattr(found, n) for n in ("value", "low", "high")}
    return replace(found, **{n: None if s is None else 1000 * s for n, s in ends.items()})


def _percent(value: float | None) -> str:
    return "not measured" if value is None or value != value else f"{number(value)} %"
