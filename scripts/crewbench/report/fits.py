"""The report's tables of what fits and what a workflow costs, as rows of short texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from crewbench import cells
from crewbench.capacity import AGENTS_MAX, OWN
from crewbench.certificates import AT_MOST, CERTIFIED, MORE_THAN, OUTCOMES, SIMULATED, UNSETTLED
from crewbench.engines import ENGINES
from crewbench.feasibility import FITS, MEASURED, NOT, NOT_RUN, PREDICTED, REFUTED, SOMETIMES
from crewbench.stats import Estimate
from crewbench.words import count, interval, number

Rows = list[dict[str, Any]]

VARYING = ("agents", "engine", "start", "variant", "compile_cache", "host")

WORKFLOW = (
    ("cold_gpu_s_per_workflow", "GPU-seconds, the first from nothing"),
    ("gpu_s_per_workflow", "GPU-seconds, mean of all"),
    ("joules_per_workflow", "Joules, mean of all"),
)
"""What a workflow cost: a metric of the summary and its heading."""


def certificates(tables: Mapping[str, pd.DataFrame], kind: str) -> Rows:
    """A row for each group that says how many devices fit, and by what evidence."""
    found = cells.in_order(tables["certificates"])
    varying = cells.varying(found, VARYING)
    rows = []
    for row in found.to_dict("records"):
        worked = f"{row['worked']:.0f} of {row['trials']:.0f}" if row["trials"] == row["trials"] else "–"
        bound = row["failure_at_most_pct"]
        rows.append(
            {
                "mode": row["mode"],
                "name": _name(row, varying),
                "devices": _devices(row, kind),
                "outcome": row["outcome"],
                "why": _why(row),
                "worked": worked,
                "bound": f"{number(bound)} %" if bound == bound and bound is not None else "–",
                "fewer": _fewer(row, kind),
                "evidence": "; ".join(filter(None, [row["evidence"], row["note"]])),
                "memory": "–" if row["outcome"] == SIMULATED else number(row["memory_mib"]),
            }
        )
    return rows


def _why(row: Mapping[str, Any]) -> str:
    if row["outcome"] == CERTIFIED and row["fewer_gpus"] != row["fewer_gpus"]:
        return "every trial worked, and the mode can be on no fewer"
    return OUTCOMES.get(row["outcome"], "")


def _devices(row: Mapping[str, Any], kind: str) -> str:
    if row["gpus"] != row["gpus"] or row["gpus"] is None:
        return "–"
    had = cells.devices(int(row["gpus"]), kind)
    return {CERTIFIED: had, AT_MOST: f"at most {had}", MORE_THAN: f"more than {had}"}.get(
        row["outcome"], f"not settled at {had}" if row["outcome"] == UNSETTLED else "–"
    )


def _fewer(row: Mapping[str, Any], kind: str) -> str:
    if row["fewer_gpus"] != row["fewer_gpus"] or row["fewer_gpus"] is None:
        return "–"
    failed = f"{row['fewer_failed']:.0f} of {row['fewer_trials']:.0f}"
    return f"{failed} failed on {cells.devices(int(row['fewer_gpus']), kind)}"


def _name(row: Mapping[str, Any], varying: list[str]) -> str:
    """A group in words: a mode whatever its devices."""
    label = cells.label({**row, "gpus": 1}, varying)
    return label.replace(f", {cells.had(row['mode'], 1)}", "", 1)


def simulated(tables: Mapping[str, pd.DataFrame]) -> bool:
    """Whether any group ran on a simulated budget."""
    return bool((tables["certificates"]["outcome"] == SIMULATED).any())


def score(tables: Mapping[str, pd.DataFrame]) -> str:
    """How many measured points came out as predicted, in words; nothing where nothing was predicted. A server
    that reserves memory fits what it was given, whatever it needs: that is no prediction come true."""
    points = tables["feasibility"]
    judged = points[points["outcome"].isin([MEASURED, REFUTED]) & (points["predicted_fits"] != "")]
    judged = judged[judged["fits"].isin([FITS, NOT])]
    reserves = judged["engine"].map(_reserves).astype(bool)
    told = judged[~reserves]
    if told.empty:
        return ""
    right = int((told["outcome"] == MEASURED).sum())
    said = f"{right} of {count(len(told), 'measured point')} came out as predicted"
    return said + (", without servers, which reserve what they are given." if reserves.any() else ".")


def _reserves(engine: str) -> bool:
    return engine in ENGINES and ENGINES[engine].reserves


def feasibility(tables: Mapping[str, pd.DataFrame], kind: str) -> Rows:
    """A row for each mode, crew and context: what every number of devices says, measured or predicted."""
    points = tables["feasibility"]
    points = points[points["outcome"].isin([MEASURED, REFUTED, PREDICTED])]
    if points.empty:
        return []
    names = [n for n in cells.WHERE if n != "gpus"]
    varying = cells.varying(points, VARYING)
    rows = []
    for _, of_row in cells.in_order(points).groupby([*names, "context_tokens"], sort=False, observed=True):
        first = of_row.iloc[0].to_dict()
        said = {int(p["gpus"]): _point(p) for p in of_row.to_dict("records")}
        rows.append(
            {
                "mode": first["mode"],
                "name": _name(first, varying),
                "context": f"{int(first['context_tokens']):,}",
                "memory": number(first["memory_mib"]),
                "points": said,
            }
        )
    return rows


def capacity(tables: Mapping[str, pd.DataFrame], kind: str) -> Rows:
    """A row for each mode and number of devices: how many agents fit, by context."""
    found = tables["capacity"].assign(agents=0, start="", compile_cache="none")
    varying = cells.varying(found, OWN[1:])
    rows = []
    for key, of_row in cells.in_order(found).groupby([*OWN, "gpus"], sort=False, observed=True):
        first = of_row[of_row["as_measured"]].iloc[0].to_dict()
        longer = of_row[~of_row["as_measured"]]
        rows.append(
            {
                "mode": first["mode"],
                "name": cells.label(dict(zip([*OWN, "gpus"], key, strict=True)), varying, kind),
                "memory": number(first["memory_mib"]),
                "measured": _measured_agents(first),
                "over": number(first["measured_over_predicted"]),
                "here": (
                    _agents(first["most_agents"]) + _refuted(first),
                    f"{first['context_tokens']:,} tokens",
                ),
                "longer": {
                    int(context): (_agents(most), "")
                    for context, most in zip(longer["context_tokens"], longer["most_agents"], strict=True)
                },
            }
        )
    return rows


def lengths(rows: Rows) -> list[int]:
    """The contexts beside the measured ones that any row of `capacity` knows something of."""
    return sorted({context for row in rows for context in row["longer"]})


def _agents(most: int) -> str:
    return f"{most} or more" if most == AGENTS_MAX else str(most) if most else "none"


def _refuted(row: Mapping[str, Any]) -> str:
    """Whether crews that were measured say otherwise. Comparisons with NaN, not measured, are false."""
    fit, too_many, most = row["fit_agents"], row["too_many_agents"], row["most_agents"]
    return ", refuted" if not fit >= too_many and (fit > most or too_many <= most) else ""


def _measured_agents(row: Mapping[str, Any]) -> str:
    fit, too_many = row["fit_agents"], row["too_many_agents"]
    if fit >= too_many:
        return f"{too_many:.0f} to {fit:.0f} fit at times" if fit > too_many else f"{fit:.0f} fit at times"
    said = [f"{fit:.0f} fit"] if fit == fit else []
    said += [f"{too_many:.0f} do not"] if too_many == too_many else []
    return ", ".join(said) or "–"


def counts(rows: Rows) -> list[int]:
    """The numbers of devices that any row knows something of."""
    return sorted({gpus for row in rows for gpus in row["points"]})


def _point(point: Mapping[str, Any]) -> tuple[str, str]:
    """ "fits, measured" and "5 of 5, 15,752 MiB (predicted 15,100)"."""
    words = {FITS: "fits", NOT: "does not fit", SOMETIMES: "fits at times", NOT_RUN: "not settled, none ran"}
    word = words[point["fits"]]
    outcome = {MEASURED: "", PREDICTED: "predicted", REFUTED: "refuted the prediction"}[point["outcome"]]
    if point["outcome"] == PREDICTED:
        return f"{word}, predicted", f"{number(point['predicted_peak_mib'])} MiB"
    said = [f"{point['worked']:.0f} of {point['trials']:.0f} worked"]
    if point["peak_mib"] == point["peak_mib"]:
        said.append(f"{number(point['peak_mib'])} MiB")
    if point["predicted_peak_mib"] == point["predicted_peak_mib"]:
        said.append(f"predicted {number(point['predicted_peak_mib'])}")
    return f"{word}{', ' + outcome if outcome else ''}", ", ".join(said)


def workflows(tables: Mapping[str, pd.DataFrame], kind: str) -> Rows:
    """What a workflow that worked cost in each cell."""
    summary = tables["summary"]
    names = [name for name, _ in WORKFLOW]
    wanted = summary[summary["metric"].isin(names)]
    varying = cells.varying(wanted, VARYING)
    rows = []
    for key, of_cell in cells.in_order(wanted).groupby(cells.WHERE, sort=False, observed=True):
        cell = dict(zip(cells.WHERE, key, strict=True))
        by_metric = {row["metric"]: row for row in of_cell.to_dict("records")}
        first = by_metric[names[0]]
        rows.append(
            {
                "mode": cell["mode"],
                "name": cells.label(cell, varying, kind),
                "worked": f"{first['ok']} of {first['trials']}",
                "values": [_estimate(by_metric[name]) for name in names],
            }
        )
    return rows


def _estimate(row: Mapping[str, Any]) -> tuple[str, str]:
    value, low, high = (None if row[n] != row[n] else row[n] for n in ("estimate", "low", "high"))
    if value is None:
        return "–", str(row["note"]).removeprefix("not estimable: ")
    found = Estimate(value, low, high, int(row["n"]), str(row["note"]))
    return number(value), interval(found) if found.has_interval else found.reason
