"""From trials to tables: what the manifest lists is read and checked, reduced, and written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from crewbench import (
    bounds,
    breakeven,
    capacity,
    cells,
    certificates,
    chain,
    comparisons,
    feasibility,
    inert,
    interference,
    quality,
    ramp,
    serving,
    session,
    stats,
    tax,
)
from crewbench.config import conditions
from crewbench.quality import Agreement
from crewbench.records import FILES, Status
from crewbench.tables import shown
from crewbench.tables.files import load, write
from crewbench.tables.frames import join, numbers_of_checks, numeric, typed
from crewbench.tables.one_trial import attempt_rows, device_rows, environment_facts, tax_of, trial_row, where
from crewbench.tables.reading import IDENTITY, Manifest, TableError, Trial, read_manifest, read_trial
from crewbench.tables.summary import summarise

__all__ = ["Manifest", "TableError", "Trial", "build", "load", "read_manifest", "read_trial", "write"]


def build(manifest: Manifest) -> dict[str, pd.DataFrame]:
    """Every table, by name. Linear in the number of trials; raises TableError with all problems at once."""
    bodies: dict[str, list[bytes]] = {name: [] for name in FILES if name != "gpu.csv"}
    trials, devices, attempts, ran, problems, glimpses = [], [], [], [], [], []
    found = _Found()
    facts: dict[tuple[str, str, str], int] = defaultdict(int)
    checks = check_rows(manifest)
    agreements = {row["check_id"]: row["agreement"] for row in checks}
    for line in manifest.trials:
        try:
            trial = read_trial(line)
        except TableError as error:
            problems += error.problems
            continue
        for name, collected in bodies.items():
            collected.append(trial.bodies[name])
        rows = device_rows(trial)
        glimpses.append(glimpse(trial))
        taxed = tax_of(trial)
        agreement = agreements.get(line.get("check_id"), Agreement.NOT_MEASURED)
        trials.append(trial_row(trial, rows, taxed, agreement))
        found.add(trial, taxed)
        devices += rows
        attempts += attempt_rows(trial)
        ran.append(session.ran(trial.record))
        for key, value in environment_facts(trial.record):
            facts[trial.record["identity"]["host"], key, value] += 1
    if problems:
        raise TableError(problems)
    tables = {"trials": numeric(pd.DataFrame(trials))}
    for name, row_type in FILES.items():
        if name in bodies:
            tables[Path(name).stem] = join(bodies[name], row_type)
    tables["devices"] = numeric(pd.DataFrame(devices))
    tables["attempts"] = pd.DataFrame(attempts)
    compared = interference.compare(found.seen)
    tables["summary"] = pd.DataFrame(summarise(trials, _slowdowns(compared)))
    tables |= _what_fits(manifest, trials, attempts, tables["ooms"], feasibility.grounds(glimpses))
    tables["comparisons"] = typed(comparisons.of_trials(trials), comparisons.COLUMNS)
    tables |= found.tables(compared)
    tables |= verdicts(tables, manifest.config.get("thresholds"))
    tables["breakeven"] = _with_agreements(tables["breakeven"], tables["trials"])
    planned = [line["trial_id"] for line in manifest.trials]
    tables["study"] = pd.DataFrame(
        session.summarise(filter(None, ran), planned, manifest.host_gpus),
        columns=[f.name for f in fields(session.Session)],
    )
    tables["quality"] = numbers_of_checks(checks)
    tables["skipped"] = pd.DataFrame(manifest.skipped, columns=[*cells.CELL, "reason"])
    tables["environment"] = pd.DataFrame(
        [(*key, count) for key, count in sorted(facts.items())], columns=["host", "key", "value", "trials"]
    )
    drawn = cells.shown(tables["trials"])
    tables["samples"] = shown.samples(drawn)
    tables["outputs"] = shown.outputs(drawn)
    return tables


def glimpse(trial: Trial) -> tuple[tuple, int | None, feasibility.Ground]:
    """What the trial says of the ground on which its group stood: feasibility.grounds."""
    record = trial.record
    spec, device = record["spec"], (record["devices"] or [{}])[0]
    cell = where(record)
    lengths = [
        -(-(a.prompt_tokens + a.output_tokens) // a.llm_calls)
        for a in trial.agents
        if a.prompt_tokens and a.output_tokens and a.llm_calls
    ]
    ground = feasibility.Ground(
        context_tokens=spec["output_tokens"],
        memory_mib=float(spec.get("memory_mib") or device.get("memory_mib") or 0),
        dtype=spec["dtype"],
        kind=device.get("kind", ""),
        device_name=inert.excerpt(str(device.get("name", "")), 80),
    )
    return tuple(cell[n] for n in certificates.GROUP), max(lengths, default=None), ground


def _what_fits(
    manifest: Manifest,
    trials: Sequence[Mapping[str, Any]],
    attempts: Sequence[Mapping[str, Any]],
    ooms: pd.DataFrame,
    ground: Mapping[tuple, feasibility.Ground],
) -> dict[str, pd.DataFrame]:
    """The tables `certificates`, `feasibility` and `capacity`."""
    options = {
        name: {key: value for key, value in variant.items() if value is not None}
        for name, variant in (manifest.config.get("variants") or {}).items()
    }
    memory = {key: here.memory_mib for key, here in ground.items()}
    certified = certificates.certificates(trials, attempts, ooms.to_dict("records"), memory, options)
    devices = manifest.host_gpus or max((int(t["gpus"]) for t in trials), default=1)
    model = feasibility.model_of(manifest.model.get("dir"))
    points = feasibility.points(trials, attempts, ground, options, model, devices)
    fit = capacity.table(points, ground, options, model, devices)
    return {
        "certificates": typed(certified, certificates.COLUMNS, gaps=["gpus"]),
        "feasibility": typed(points, feasibility.COLUMNS),
        "capacity": typed(fit, capacity.COLUMNS),
    }


def _with_agreements(pairs: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """Pairs of cells with a column for each side: whether its engine agrees with float32."""

    def agreement(pair: Mapping[str, Any], side: str) -> str:
        own = {name: pair[f"{side}_{name}"] for name in breakeven.OWN}
        return str(cells.agreement(trials, {**pair, **own}))

    rows = pairs.to_dict("records")
    return pairs.assign(**{f"{side}_agreement": [agreement(row, side) for row in rows] for side in "ab"})


class _Found:
    """What is compared across trials, as it is gathered from one after another."""

    def __init__(self) -> None:
        self.tax: list[dict[str, Any]] = []
        self.steps: list[dict[str, Any]] = []
        self.serving: list[dict[str, Any]] = []
        self.seen: list[interference.Seen] = []
        self.identities: dict[int, dict[str, Any]] = {}
        self.costs: list[tuple[dict[str, Any], int, breakeven.Costs]] = []

    def add(self, trial: Trial, taxed: tax.Tax) -> None:
        """One more trial. Only one that worked is compared: a step less is other work."""
        record, rounds = trial.record, trial.rounds
        cell = where(record)
        who = {**record["identity"], "compile_cache": cell["compile_cache"], "workload": cell["workload"]}
        self.tax.append({**who, "status": record["status"], **taxed.row()})
        self.steps += ({**who, **row} for row in taxed.step_rows())
        self.serving += ({**who, **row} for row in serving.of_trial(rounds, trial.workers, trial.servers))
        if record["status"] != Status.OK:
            return
        beside = interference.of_trial(trial.agents, trial.workers)
        kind = (record["devices"] or [{}])[0].get("kind", "")
        name = f"{cells.label(cell, (), kind)}, 1 agent"
        alone = interference.is_alone(cell["agents"], beside, trial.workers)
        self.identities[len(self.seen)] = who
        self.seen.append(interference.Seen(cell, who["repeat"], name, tuple(beside), alone))
        costs = breakeven.of_trial(rounds, trial.agents, trial.workers, record.get("zygote_s"))
        if costs is not None:
            options = conditions(record["spec"]["cell"].get("options") or {})
            self.costs.append(({**cell, "conditions": options}, who["repeat"], costs))

    def tables(self, compared: Sequence[interference.Seen]) -> dict[str, pd.DataFrame]:
        """`compared` are `seen`, with the agent alone beside each."""
        beside = [
            {**self.identities[i], **one.row()} for i, trial in enumerate(compared) for one in trial.beside
        ]
        pairs = breakeven.pairs(self.costs)
        who = [*IDENTITY, "compile_cache", "workload"]
        return {
            "tax": typed(self.tax, [*who, "status", *tax.COLUMNS]),
            "tax_steps": typed(self.steps, [*who, *tax.STEP_COLUMNS]),
            "serving": typed(self.serving, [*who, *serving.COLUMNS]),
            "interference": typed(beside, [*who, *interference.COLUMNS]),
            "breakeven": typed([pair.row() for pair in pairs], breakeven.COLUMNS),
            "breakeven_repeats": typed(
                [row for pair in pairs for row in pair.repeat_rows()], breakeven.REPEAT_COLUMNS
            ),
        }


def verdicts(
    tables: Mapping[str, pd.DataFrame], thresholds: Mapping[str, Any] | None
) -> dict[str, pd.DataFrame]:
    """What breaks first along each ramp, what bounds each cell, and what a chain's context costs."""
    found = ramp.tables(tables, ramp.Limits.of(thresholds))
    return {
        "verdict": typed(found["verdict"], ramp.VERDICT_COLUMNS),
        "constraints": typed(found["constraints"], ramp.CONSTRAINTS_COLUMNS),
        "bounds": typed(bounds.table(tables), bounds.COLUMNS),
        "chain": typed(chain.table(tables), chain.COLUMNS),
    }


def _slowdowns(compared: Iterable[interference.Seen]) -> dict[tuple, dict[str, tuple[stats.Estimate, str]]]:
    """interference.estimates of each cell, by its WHERE; none of those that others are compared with."""
    by_cell: dict[tuple, list[interference.Seen]] = defaultdict(list)
    for trial in compared:
        if not trial.alone:
            by_cell[tuple(trial.cell.values())].append(trial)
    return {key: interference.estimates(trials) for key, trials in by_cell.items()}


def check_rows(manifest: Manifest) -> list[dict[str, Any]]:
    """The manifest's checks of engines with their judgement. TableError for a record that cannot be read."""
    times = (manifest.config.get("thresholds") or {}).get("logit_error", quality.TIMES)
    try:
        return quality.rows(manifest.checks, times)
    except ValueError as error:
        raise TableError([str(error)]) from None
