"""What the report opens with: what breaks first, and what to use for the crew at hand.

Pure functions from the tables alone. The rules stand in docs/method.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from crewbench import cells, metrics, ramp, stats
from crewbench.quality import Agreement
from crewbench.records import Status
from crewbench.verdict import Answer, Ranked, cell_name, ranked
from crewbench.words import count, estimate, number

OTHERS_MAX = 4
"""Ramps of other settings, and cells left out, that the first screen names; the tables have them all."""

MODES_NAMED = 3


def answers(tables: Mapping[str, pd.DataFrame], limits: ramp.Limits) -> list[Answer]:
    """What breaks first, and what to use for the headline setting's agents."""
    trials = tables["trials"]
    setting = cells.headline_setting(trials)
    here = cells.in_order(cells.only(trials, setting))
    kind = "slot" if set(trials["device_kind"]) == {"slot"} else "gpu"
    return [
        breaks_first(tables["verdict"], setting, kind),
        recommendation(here, tables["constraints"], limits, kind),
    ]


def breaks_first(verdicts: pd.DataFrame, setting: Mapping[str, Any], kind: str) -> Answer:
    """The constraint that breaks at the earliest point of all ramps in the setting, and a sentence for each
    mode; of other settings where nothing broke in this one."""
    question = "What breaks first: memory, latency, parallelism or orchestration?"
    inside = cells.only(verdicts, {n: setting[n] for n in ramp.RAMP if n in setting})
    outside = verdicts.drop(inside.index)
    outside = outside[outside["outcome"] == ramp.Outcome.BROKE]
    varying = cells.varying(verdicts, ramp.RAMP)
    support = [sentence(row, (), kind) for row in inside.to_dict("records")]
    support += [sentence(row, varying, kind) for row in outside.head(OTHERS_MAX).to_dict("records")]
    broke, names = inside[inside["outcome"] == ramp.Outcome.BROKE], ()
    if broke.empty and len(outside):
        support.insert(0, "In the setting that most modes share nothing broke.")
        broke, names = outside, varying
    if broke.empty:
        return Answer("breaks", question, _nothing(inside, kind), tuple(support))
    rows = sorted(broke.to_dict("records"), key=ramp.earliest)
    lead = rows[0]
    same = [r for r in rows if (r["first"], _at(r)) == (lead["first"], _at(lead))]
    titles = list(dict.fromkeys(cells.mode_title(r["mode"]) for r in same))
    titles[MODES_NAMED:] = [f"{len(titles) - MODES_NAMED} more"] if len(titles) > MODES_NAMED else []
    who = " and ".join(filter(None, [", ".join(titles[:-1]), titles[-1]]))
    budget = " (simulated budget)" if lead["first"] == "memory" and lead["simulated_budget"] else ""
    budget += "" if any(row["settled"] for row in same) else ", not settled"
    where = ramp_name(lead, names).removeprefix(cells.mode_title(lead["mode"])).removeprefix(", ")
    where = f" ({where})" if where else ""
    answer = f"{lead['first'].capitalize()}{budget}: {who} with {ramp.place(_at(lead), kind)}{where}"
    return Answer("breaks", question, answer, tuple(support))


def _nothing(inside: pd.DataFrame, kind: str) -> str:
    measured = inside[inside["outcome"] != ramp.Outcome.NOT_MEASURED]
    if measured.empty:
        return "Not measured: no trial worked."
    most = ramp.place(max(_last(row) for row in measured.to_dict("records")), kind)
    reach = "up to" if (measured["points_worked"] > 1).any() else "at"
    no_ramp = "; no ramp was run" if (measured["points"] == 1).all() else ""
    failed = inside[inside["unexplained"] != ""]
    none = [f"{cells.mode_title(row['mode'])} with {row['unexplained']}" for row in failed.to_dict("records")]
    none[MODES_NAMED:] = [f"{len(none) - MODES_NAMED} more"] if len(none) > MODES_NAMED else []
    return f"Nothing {reach} {most}{no_ramp}" + (f"; no trial worked of {'; '.join(none)}" if none else "")


def sentence(row: Mapping[str, Any], varying: Iterable[str], kind: str) -> str:
    """One row of the table `verdict` in words: "Shared: parallelism breaks first, with 4 agents on 1 GPU:
    speed-up 1.29 of an ideal 4.00 …; 35.3 % beyond its threshold."."""
    name = ramp_name(row, varying)
    if row["outcome"] == ramp.Outcome.NOT_MEASURED:
        return f"{name}: not measured, {row['evidence']}."
    margin = row["margin_pct"]
    none = f"; no trial worked with {row['unexplained']}" if row["unexplained"] else ""
    if row["outcome"] == ramp.Outcome.BROKE:
        beyond = f"; {number(-margin)} % beyond its threshold" if _below_0(margin) else ""
        simulated = ", a simulated budget" if row["first"] == "memory" and row["simulated_budget"] else ""
        how = "breaks first," if row["points"] > 1 else "breaks at the only point measured,"
        sure = "" if row["settled"] else " (not settled)"
        at = ramp.place(_at(row), kind)
        return f"{name}: {row['first']} {how} with {at}: {row['evidence']}{beyond}{simulated}{sure}{none}."
    only = "at the only point measured," if row["points"] == 1 else "at the only point that worked,"
    reach = "up to" if row["points_worked"] > 1 else only
    room = f"; {number(margin)} % of room" if _known(margin) else ""
    return f"{name}: not reached {reach} {ramp.place(_last(row), kind)}; {row['evidence']}{room}{none}."


def recommendation(trials: pd.DataFrame, constraints: pd.DataFrame, limits: ramp.Limits, kind: str) -> Answer:
    """The fastest cell of the common work that worked in every trial, computes what the checkpoint says,
    keeps the deadline and has no devices that do not pay; of those not told apart from it, the one with the
    fewest devices. Warm where it was measured."""
    question = f"What to use for {count(int(trials['agents'].iloc[0]), 'agent')}?"
    same = trials[trials["workload"] == cells.common_workload(trials)]
    phase = "warm" if same["warm_s"].notna().any() else "cold"
    fit, left_out, found = [], [], ranked(same, f"{phase}_s")
    for one in found:
        why = _unfit(one, found, _of(same, one[1]), limits, kind)
        if why:
            left_out.append(f"Left out: {cell_name(one[1], kind)}, {number(one[0].value)} s: {why}.")
        else:
            fit.append(one)
    said = [*left_out[:OTHERS_MAX], *_caveats(trials)]
    if not fit:
        answer = "Nothing fits" if left_out else "Not measured: no trial worked."
        return Answer("recommendation", question, answer, tuple(said))
    fastest = fit[0]
    equal = [one for one in fit if one is fastest or _not_told_apart(fastest[2], one[2])]
    best, key, _ = min(equal, key=lambda one: (int(one[1][1]), fit.index(one)))
    support = [f"A {phase} round takes {estimate(best, 's')}, n = {best.n}; {_deadline(limits)}."]
    if key != fastest[1]:
        than = f"{cell_name(fastest[1], kind)}, {number(fastest[0].value)} s"
        support.append(f"Not told apart from {than}, and takes fewer devices.")
    if best.n == 1:
        support.append("One trial of a cell: how sure this is cannot be said.")
    support += _cheapest(same, fit, key, phase, kind)
    support += _broken(_of(trials, key).iloc[0], constraints)
    answer = f"{cell_name(key, kind)}: {number(best.value)} s a {phase} round"
    return Answer("recommendation", question, answer, (*support, *said))


def _unfit(
    one: tuple[stats.Estimate, tuple[str, int], Mapping[int, float]],
    others: Ranked,
    group: pd.DataFrame,
    limits: ramp.Limits,
    kind: str,
) -> str:
    """Why a cell is not recommended, or "". It is `one` of `others`, and `group` are its trials."""
    found, (mode, gpus), ours = one
    bad = int((group["status"] != Status.OK).sum())
    if bad:
        return f"{bad} of {count(len(group), 'trial')} did not work"
    if Agreement.worst(group["agreement"].unique()) == Agreement.DIFFERS:
        return "its engine computes something else than the checkpoint"
    if limits.deadline_s is not None and found.value > limits.deadline_s:
        return f"over the deadline of {number(limits.deadline_s)} s"
    fewer = {key[1]: theirs for _, key, theirs in others if key[0] == mode and key[1] < gpus}
    if not fewer or cells.searches(mode):  # what such a mode may use is not what it used
        return ""
    least = int(min(fewer))
    efficiency = ramp.efficiency_over_gpus(least, int(gpus), fewer[least], ours).value
    if efficiency is None or efficiency >= limits.scaling_efficiency:
        return ""
    few, floor = cells.devices(least, kind), number(100 * limits.scaling_efficiency)
    return f"{number(100 * efficiency)} % of the ideal speed-up over {few}, less than {floor} %"


def _deadline(limits: ramp.Limits) -> str:
    if limits.deadline_s is None:
        return "no deadline is set"
    return f"within the deadline of {number(limits.deadline_s)} s"


def _not_told_apart(ours: Mapping[int, float], theirs: Mapping[int, float]) -> bool:
    ratio = stats.paired(metrics.speedup, theirs, ours)
    return ratio.has_interval and ratio.low <= 1 <= ratio.high


def _cheapest(trials: pd.DataFrame, fit: Ranked, key: tuple[str, int], phase: str, kind: str) -> list[str]:
    """Which of the cells that fit costs the fewest device-seconds a round."""
    names = [one[1] for one in fit]
    costs = [one for one in ranked(trials, f"{phase}_gpu_s") if one[1] in names]
    ours = next((one for one in costs if one[1] == key), None)
    if ours is None:
        return []
    least = min(costs, key=lambda one: one[0].value)
    noun = "slot-seconds" if kind == "slot" else "GPU-seconds"
    cost = f"{number(least[0].value)} a round"
    if least is ours:
        return [f"It costs the fewest {noun} too: {cost}."]
    return [f"{cell_name(least[1], kind)} costs the fewest {noun}: {cost} against {number(ours[0].value)}."]


def _broken(trial: Mapping[str, Any], constraints: pd.DataFrame) -> list[str]:
    """What the recommended cell breaks at its own point."""
    rows = cells.only(constraints, {n: trial[n] for n in ramp.RAMP})
    rows = rows[rows["outcome"] == ramp.Outcome.BROKE].to_dict("records")
    here = (trial["agents"], trial["gpus"])
    return [f"It breaks {r['constraint']} here: {r['evidence']}." for r in rows if _at(r) == here]


def _caveats(trials: pd.DataFrame) -> list[str]:
    said = []
    if trials["simulated_budget"].any():
        said.append("The memory budget is simulated.")
    if trials["random_weights"].any():
        said.append("Random weights: time and memory decide here, not what the agents say.")
    return said


def _of(trials: pd.DataFrame, key: tuple[str, int]) -> pd.DataFrame:
    return cells.only(trials, {"mode": key[0], "gpus": key[1]})


def _at(row: Mapping[str, Any]) -> ramp.Point:
    return int(row["at_agents"]), int(row["at_gpus"])


def _last(row: Mapping[str, Any]) -> ramp.Point:
    """The last point of a ramp at which a trial worked."""
    return int(row["worked_agents"]), int(row["worked_gpus"])


def _known(value: float | None) -> bool:
    return value is not None and value == value


def _below_0(value: float | None) -> bool:
    return _known(value) and value < 0


def ramp_name(row: Mapping[str, Any], varying: Iterable[str]) -> str:
    """ "Shared", or with what else tells the ramp from others: "Shared, eager, variant short"."""
    words = {"start": "{} start", "variant": "variant {}", "compile_cache": "compile cache {}"}
    told = (words.get(n, "{}").format(row[n]) for n in varying if n != "mode" and row[n] != "none")
    return ", ".join([cells.mode_title(row["mode"]), *told])
