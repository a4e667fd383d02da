"""What the report opens with: what breaks first, and what to use for the crew at hand.

Pure functions from the tables alone. The rules stand in docs/method.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from crewbench import cells, metrics, ramp, stats
from crewbench.engines import ENGINES
from crewbench.quality import Agreement
from crewbench.records import Status
from crewbench.verdict import Answer, Key, Ranked, alike, by_choice, ranked, zygote
from crewbench.words import count, estimate, number

OTHERS_MAX = 4
"""Ramps of other settings, and cells left out, that the first screen names; the tables have them all."""

MODES_NAMED = 3

SMALLER = 0.5
"""Of the recommended choice's peak: from there on another one is named for smaller devices."""


def answers(tables: Mapping[str, pd.DataFrame], limits: ramp.Limits) -> list[Answer]:
    """What breaks first, and what to use for the headline setting's agents."""
    trials = tables["trials"]
    setting = cells.headline_setting(trials)
    here = cells.in_order(cells.comparable(trials))
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
    why = sentence(lead, names, kind)
    support = [why, *(line for line in support if line != why)]
    alike = [r for r in rows if _told(r, names) == _told(lead, names)]
    same = [r for r in alike if (r["first"], _at(r)) == (lead["first"], _at(lead))]
    titles = list(dict.fromkeys(cells.mode_title(r["mode"]) for r in same))
    titles[MODES_NAMED:] = [f"{len(titles) - MODES_NAMED} more"] if len(titles) > MODES_NAMED else []
    who = " and ".join(filter(None, [", ".join(titles[:-1]), titles[-1]]))
    budget = " (simulated budget)" if lead["first"] == "memory" and lead["simulated_budget"] else ""
    budget += "" if any(row["settled"] for row in same) else ", not settled"
    where = f" ({', '.join(told)})" if (told := _told(lead, names)) else ""
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
    room = f"; {number(margin)} % to spare" if _known(margin) else ""
    return f"{name}: not reached {reach} {ramp.place(_last(row), kind)}; {row['evidence']}{room}{none}."


def recommendation(trials: pd.DataFrame, constraints: pd.DataFrame, limits: ramp.Limits, kind: str) -> Answer:
    """The fastest choice for the common work that worked in every trial, computes what the checkpoint says,
    keeps the deadline and has no devices that do not pay; of those not told apart from it, the one with the
    fewest devices, then with the quickest start. Warm where it was measured."""
    question = f"What to use for {count(int(trials['agents'].iloc[0]), 'agent')}?"
    same = trials[trials["workload"] == cells.common_workload(trials)]
    phase = "warm" if same["warm_s"].notna().any() else "cold"
    named = cells.varying(same, cells.CHOICE[2:])
    fit, left_out, found, of = [], [], ranked(same, f"{phase}_s"), by_choice(same)
    sizes: dict[tuple[Any, ...], dict[int, Mapping[int, float]]] = {}
    for _, (mode, gpus, *rest), values in found:
        sizes.setdefault((mode, *rest), {})[gpus] = values
    for one in found:
        why = _unfit(one, sizes, of[one[1]], limits, kind)
        if why:
            name = cells.choice(one[1], kind, named)
            left_out.append(f"Left out: {name}, {number(one[0].value)} s: {why}.")
        else:
            fit.append(one)
    said = [*left_out[:OTHERS_MAX], *_caveats(trials)]
    if not fit:
        answer = "Nothing fits" if left_out else "Not measured: no trial worked."
        return Answer("recommendation", question, answer, tuple(said))
    fastest = fit[0]
    equal = [
        one
        for one in fit
        if one is fastest or alike(phase, one[1], fastest[1]) or _not_told_apart(fastest[2], one[2])
    ]
    cold = {one[1]: one[0].value for one in ranked(same, "cold_s")}
    best, key, ours = min(
        equal, key=lambda one: (int(one[1][1]), cold.get(one[1], float("inf")), fit.index(one))
    )
    name = cells.choice(key, kind, named)
    once = f", and {own}" if (own := zygote(of[key])) else ""
    start = f"; a cold one {number(cold[key])} s{once}" if phase == "warm" and key in cold else ""
    support = [f"A {phase} round takes {estimate(best, 's')}, n = {best.n}{start}; {_deadline(limits)}."]
    if key != fastest[1] and alike(phase, key, fastest[1]):
        other = f"{number(cold[fastest[1]])} s cold" if fastest[1] in cold else "not measured cold"
        support.append(
            f"The same deployment, started as {cells.choice(fastest[1], kind, named)}: "
            f"{number(fastest[0].value)} s {phase}, {other}; a {phase} round does not depend on the start."
        )
    elif key != fastest[1]:
        than = f"{cells.choice(fastest[1], kind, named)}, {number(fastest[0].value)} s"
        ratio = estimate(stats.paired(metrics.speedup, ours, fastest[2]), "×")
        why = "takes fewer devices" if key[1] < fastest[1][1] else "starts sooner"
        support.append(
            f"{count(best.n, 'repeat').capitalize()} cannot tell it from {than} ({ratio} as fast); it {why}."
        )
    if best.n == 1:
        support.append("One trial of a cell: how sure this is cannot be said.")
    found_out = Agreement.worst(of[key]["agreement"].unique())
    if found_out is not Agreement.AGREES:
        support.append(f"Of its engine: {found_out.words} in this study.")
    if len(found) == 1:
        support.append("Nothing else was measured on the same work, so there is nothing to compare it with.")
    support += _memory(of, fit, key, kind, named)
    support += _cheapest(same, fit, key, phase, kind, named)
    support += _broken(of[key].iloc[0], constraints)
    answer = f"{name}: {number(best.value)} s a {phase} round"
    return Answer("recommendation", question, answer, (*support, *said), key)


def _memory(
    of: Mapping[Key, pd.DataFrame], fit: Ranked, key: Key, kind: str, named: Sequence[str]
) -> list[str]:
    """What the recommended choice held of its fullest device, and which one takes much less."""
    peaks = {one[1]: of[one[1]]["peak_mib"].max() for one in fit}
    ours = peaks[key]
    if not _known(ours):
        return []
    device = "slot" if kind == "slot" else "GPU"
    engine = ENGINES.get(key[cells.CHOICE.index("engine")])
    if engine and engine.reserves:
        return [f"It held {number(ours)} MiB of its fullest {device}: its server reserves what it is given."]
    held = f"It held {number(ours)} MiB of its fullest {device}."
    for mean, other, _ in fit:
        if _known(peaks[other]) and peaks[other] < SMALLER * ours:
            took = f"held {number(peaks[other])} MiB and took {number(mean.value)} s"
            return [f"{held} For a smaller one: {cells.choice(other, kind, named)} {took}."]
    return [held]


def _unfit(
    one: tuple[stats.Estimate, Key, Mapping[int, float]],
    sizes: Mapping[tuple[Any, ...], Mapping[int, Mapping[int, float]]],
    group: pd.DataFrame,
    limits: ramp.Limits,
    kind: str,
) -> str:
    """Why a cell is not recommended, or "". `group` are its trials; `sizes` has the values of all choices by
    what they are but for their GPUs, and by these."""
    found, (mode, gpus, *rest), ours = one
    bad = int((group["status"] != Status.OK).sum())
    if bad:
        return f"{bad} of {count(len(group), 'trial')} did not work"
    if Agreement.worst(group["agreement"].unique()) == Agreement.DIFFERS:
        return "its engine computes something else than the checkpoint"
    if limits.deadline_s is not None and found.value > limits.deadline_s:
        return f"over the deadline of {number(limits.deadline_s)} s"
    fewer = {size: theirs for size, theirs in sizes[(mode, *rest)].items() if size < gpus}
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


def _cheapest(
    trials: pd.DataFrame, fit: Ranked, key: Key, phase: str, kind: str, named: Sequence[str]
) -> list[str]:
    """Which of the choices that fit, where there are several, costs the fewest device-seconds a round."""
    names = [one[1] for one in fit] if len(fit) > 1 else []
    costs = [one for one in ranked(trials, f"{phase}_gpu_s") if one[1] in names]
    ours = next((one for one in costs if one[1] == key), None)
    if ours is None:
        return []
    least = min(costs, key=lambda one: one[0].value)
    noun = "slot-seconds" if kind == "slot" else "GPU-seconds"
    if least is ours or alike(phase, least[1], key):
        return [f"It costs the fewest {noun} too: {number(ours[0].value)} a round."]
    cost = f"{number(least[0].value)} a round against {number(ours[0].value)}"
    return [f"{cells.choice(least[1], kind, named)} costs the fewest {noun}: {cost}."]


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
    return ", ".join([cells.mode_title(row["mode"]), *_told(row, varying)])


def _told(row: Mapping[str, Any], varying: Iterable[str]) -> list[str]:
    words = {"start": "{} start", "variant": "variant {}", "compile_cache": "compile cache {}"}
    return [words.get(n, "{}").format(row[n]) for n in varying if n != "mode" and row[n] != "none"]
