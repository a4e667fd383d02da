"""results/report.html: one file that answers, then proves. No network, no font of its own; whole without its
script.

This module turns tables and figures into plain data for template.html.j2; the template has no logic but
loops. Text of models and programs is made inert here and escaped there.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from crewbench import cells, drawing, inert, metrics, opening, palette, ramp, verdict
from crewbench.figures.study import TIMELINE
from crewbench.quality import Agreement
from crewbench.records import Status
from crewbench.report import breaking, comparisons, costs, fits, pages
from crewbench.report.glossary import GLOSSARY
from crewbench.stats import Estimate
from crewbench.tables import Manifest
from crewbench.words import count, ended, interval, number

COSTS = ("framework", "interference", "breakeven")
"""Figures that stand in a section of their own, each with its table."""

CHAIN = "chain"
"""The figure that stands with what breaks first."""

HERE = Path(__file__).parent
ROWS_MAX = 200
"""Rows of one table in the page; the CSV files have them all."""

SESSIONS_MAX = 10
"""Sessions that the page tells of; the table `study` has them all."""

HEADLINE = (
    ("cold_s", "Cold"),
    ("speedup_cold", "against sequential"),
    ("warm_s", "Warm"),
    ("speedup_warm", "against sequential"),
    ("warm_ttft_s", "First token, warm"),
    ("warm_tokens_per_s", "Crew, warm"),
    ("cold_gpu_s", "Cost, cold"),
    ("peak_mib", "Fullest {device}"),
)
"""Columns of the headline table: a metric of the summary and its heading."""


ENGINE_NUMBERS = (
    ("logit_error", "Logits off"),
    ("plain_logit_error", "A plain forward's"),
    ("logprob_error", "Log probabilities off"),
    ("plain_logprob_error", "A plain forward's"),
    ("gap", "Worst id below the best"),
    ("top1_share", "Same first choice"),
)
"""Columns of the table of engines: of the table `quality`, and its heading."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure as the page shows it: two drawings of the same, one for each width. `mode` is the one that it
    is about, if it is about one."""

    name: str
    question: str
    caption: str
    description: list[str]
    missing: str
    wide: Markup
    narrow: Markup
    mode: str = ""


def build(manifest: Manifest, tables: Mapping[str, pd.DataFrame], figures: Path) -> str:
    """The page. Raises FileNotFoundError when figures.py has not run."""
    environment = pages.templates()
    environment.filters["count"] = count
    return environment.get_template("template.html.j2").render(context(manifest, tables, figures))


def context(manifest: Manifest, tables: Mapping[str, pd.DataFrame], figures: Path) -> dict[str, Any]:
    """All that the template shows, as plain data."""
    trials = tables["trials"]
    setting = cells.headline_setting(trials)
    look = manifest.config.get("report", {})
    colours = palette.all_colours(look.get("palette", "colorblind"))
    kind = "slot" if set(trials["device_kind"]) == {"slot"} else "gpu"
    device = "slot" if kind == "slot" else "GPU"
    drawn = [_figure(entry, figures) for entry in json.loads((figures / "figures.json").read_text())]
    timelines = [f for f in drawn if f.mode]
    apart = {*COSTS, CHAIN}
    limits = ramp.Limits.of(manifest.config.get("thresholds"))
    of_costs = {f.name: f for f in drawn if f.name in COSTS}
    thresholds = manifest.config.get("thresholds", {})
    here = cells.only(tables["summary"], setting)
    elsewhere = tables["summary"].drop(here.index)
    columns = _columns(tables["summary"])
    opened = opening.answers(tables, limits)
    script = (HERE / "page.js").read_text(encoding="utf-8")
    common = cells.common_workload(cells.only(trials, setting))
    grid, capacity = fits.feasibility(tables, kind), fits.capacity(tables, kind)
    return {
        "of_study": _of_study(manifest, trials, kind),
        "title": inert.excerpt(look.get("title", "Where should the models live?"), 120),
        "style": pages.style(colours),
        "script": Markup(script),
        "script_source": Markup(
            f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        ),
        "modes": [
            {"name": mode, "title": cells.mode_title(mode)}
            for mode in dict.fromkeys(cells.in_order(trials)["mode"])
        ],
        "lead": _lead(manifest, trials, kind),
        "compared_here": _compared_words(cells.comparable(trials)),
        "setting": _setting_words(setting, Agreement.worst(here["agreement"].unique())),
        "warnings": _warnings(trials),
        "opening": opened,
        "answers": verdict.answers(tables),
        "limits": breaking.limits_words(limits),
        "constraints": breaking.constraints(tables, kind)[:ROWS_MAX],
        "bounds": breaking.bounds(tables["bounds"], kind)[:ROWS_MAX],
        "chain": list(islice(breaking.chain(tables["chain"], kind), ROWS_MAX)),
        "chain_figure": next(f for f in drawn if f.name == CHAIN),
        "device": device,
        "headline": _table(here, common, kind, (), columns),
        "recommended": _table(
            _recommended(elsewhere, opened, setting), None, kind, _varying(tables["summary"]), columns
        ),
        "headings": _headings(columns, device),
        # One that all share stands in the setting's words above the table, unless it is a warning.
        "agreement_shown": set(here["agreement"]) & {Agreement.DIFFERS} or here["agreement"].nunique() > 1,
        "left_out": _left_out(columns, device),
        "elsewhere": _table(elsewhere, None, kind, _varying(tables["summary"]), columns),
        "compared": comparisons.compared(tables["comparisons"], setting, common, kind)[:ROWS_MAX],
        "family": comparisons.family(tables["comparisons"], setting, common),
        "figures": [f for f in drawn if f not in timelines and f.name not in apart],
        "costs": of_costs,
        "framework": list(islice(costs.framework(tables, kind, thresholds), ROWS_MAX)),
        "agreements": {name: costs.agreements(tables, name) for name in (*COSTS, "serving")},
        "goal": thresholds.get("framework_ratio", costs.GOAL),
        "interference": list(islice(costs.interference(tables, kind), ROWS_MAX)),
        "comparable": costs.comparable(tables),
        "breakeven": list(islice(costs.breakeven(tables, kind), ROWS_MAX)),
        "serving": list(islice(costs.serving(tables, kind), ROWS_MAX)),
        "certificates": fits.certificates(tables, kind)[:ROWS_MAX],
        "simulated": fits.simulated(tables),
        "score": fits.score(tables),
        "capacity": capacity[:ROWS_MAX],
        "lengths": fits.lengths(capacity),
        "length_headings": [f"{context:,} tokens" for context in fits.lengths(capacity)],
        "feasibility": grid[:ROWS_MAX],
        "device_counts": fits.counts(grid),
        "device_headings": [cells.devices(gpus, kind) for gpus in fits.counts(grid)],
        "workflows": fits.workflows(tables, kind)[:ROWS_MAX],
        "workflow_headings": [text.replace("GPU", device) for _, text in fits.WORKFLOW],
        "timelines": timelines,
        "failed_trials": _failed_trials(trials, tables["agents"]),
        "failed_attempts": _failed_attempts(tables["attempts"], kind),
        "first_ooms": _first_ooms(*(_at_home(tables[n], trials) for n in ("ooms", "workers")), kind),
        "skipped": _skipped(tables["skipped"], kind),
        "engines": _engines(tables["quality"]),
        "engines_unchecked": _unchecked(tables["quality"]),
        "tainted": _records(trials[trials["tainted"]], "trial_id", "host", "taints"),
        "checks": _checks(trials, thresholds),
        "outputs": _outputs(tables["outputs"]),
        "sessions": _sessions(tables["study"], kind),
        "environment": _environment(tables["environment"], manifest),
        "engine_headings": ["Engine", "Type", "Float32", *(text for _, text in ENGINE_NUMBERS), "Why"],
        "glossary": GLOSSARY,
        "variants": _variants(manifest, tables),
        "metrics": metrics.METRICS.values(),
        "files": [(f"{name}.csv", len(frame)) for name, frame in tables.items()],
        "rows_max": ROWS_MAX,
    }


def _figure(entry: Mapping[str, str], figures: Path) -> Figure:
    name = entry["name"]
    wide, narrow = (
        Markup(
            drawing.for_page((figures / f"{name}{suffix}.svg").read_text(encoding="utf-8"), f"{name}{suffix}")
        )
        if not entry["missing"]
        else Markup("")
        for suffix in ("", "-narrow")
    )
    said = [part for part in entry["description"].split("; ") if part]
    before, _, mode = name.partition(TIMELINE.format(mode=""))
    mode = "" if before else mode
    return Figure(name, entry["question"], entry["caption"], said, entry["missing"], wide, narrow, mode)


def _lead(manifest: Manifest, trials: pd.DataFrame, kind: str) -> str:
    model = manifest.model.get("name") or manifest.model.get("shape") or "a model"
    hosts = trials["host"].nunique()
    crews = sorted(set(trials["agents"]))
    agents = count(crews[0], "agent") if len(crews) == 1 else f"{crews[0]} to {count(crews[-1], 'agent')}"
    used = cells.devices(int(trials["gpus"].max()), kind).replace("slot", "CPU slot")
    when = min((w for w in trials["started_wall"] if w), default="")[:10]
    return (
        f"{agents}, {count(trials['mode'].nunique(), 'mode')}, up to {used}, "
        f"model {inert.excerpt(str(model), 60)}: "
        f"{count(len(trials), 'trial')} on {count(hosts, 'host')}" + (f", from {when}." if when else ".")
    )


def _of_study(manifest: Manifest, trials: pd.DataFrame, kind: str) -> str:
    """What the study is of, what varies most first: it tells the tabs of a browser apart."""
    modes = [cells.mode_title(mode) for mode in dict.fromkeys(cells.in_order(trials)["mode"])]
    engines, starts = (list(dict.fromkeys(trials[name])) for name in ("engine", "start"))
    crews = sorted(set(trials["agents"]))
    parts = [
        ", ".join(engines) if len(engines) > 1 else "",
        f"{', '.join(starts)} start" if len(starts) > 1 else "",
        ", ".join(modes) if len(modes) < 3 else count(len(modes), "mode"),
        cells.devices(int(trials["gpus"].max()), kind),
        count(crews[-1], "agent") if len(crews) == 1 else f"{crews[0]} to {count(crews[-1], 'agent')}",
        str(manifest.model.get("name") or manifest.model.get("shape") or ""),
    ]
    return inert.shortened("; ".join(filter(None, parts)), 160)


def _varying(summary: pd.DataFrame) -> list[str]:
    return cells.varying(summary, (*cells.CELL, "compile_cache", "host"))


def _compared_words(trials: pd.DataFrame) -> str:
    """ "every engine, start and variant that was run with 8 agents on host vm, with memory_mib 47104"."""
    at = trials.iloc[0]
    words = f"every engine, start and variant that was run with {count(int(at['agents']), 'agent')}"
    words += f" on host {inert.excerpt(str(at['host']), 60)}"
    return words + (f", with {at['conditions']}" if at["conditions"] else "")


def _setting_words(setting: Mapping[str, Any], agreement: Agreement) -> str:
    compiled = cells.compile_cache(setting)
    return (
        f"{count(int(setting['agents']), 'agent')}, {setting['engine']} engine ({agreement.words}), "
        f"{setting['start']} start, "
        + (f"{compiled}, " if compiled else "")
        + f"variant {setting['variant']}, host {inert.excerpt(str(setting['host']), 60)}"
    )


def _warnings(trials: pd.DataFrame) -> list[str]:
    said = []
    if trials["simulated_budget"].any():
        said.append("Simulated budget: memory of CPU slots is kept by accounting, no memory was full.")
    if trials["random_weights"].any():
        said.append("Random weights: this measures speed and memory, not language.")
    for engine in trials[trials["agreement"] == Agreement.DIFFERS]["engine"].unique():
        said.append(f"Engine {engine} computes something else than the checkpoint: do not take its speed.")
    return said


def _columns(summary: pd.DataFrame) -> dict[str, str]:
    """Those columns of the headline table that any cell has a number for."""
    known = set(summary[summary["estimate"].notna()]["metric"])
    return {name: text for name, text in HEADLINE if name in known}


def _left_out(columns: Mapping[str, str], device: str) -> str:
    """The headings of the others, in a sentence; "" where there are none."""
    names = dict.fromkeys(text.format(device=device) for name, text in HEADLINE if name not in columns)
    return f"No cell has a number for: {', '.join(names)}." if names else ""


def _headings(columns: Mapping[str, str], device: str) -> list[tuple[str, str]]:
    units = {"speedup_cold": "×", "speedup_warm": "×"}
    return [
        (text.format(device=device), units.get(name) or metrics.METRICS[name].unit.replace("GPU", device))
        for name, text in columns.items()
    ]


def _recommended(
    elsewhere: pd.DataFrame, opened: Iterable[verdict.Answer], setting: Mapping[str, Any]
) -> pd.DataFrame:
    """The rows of what the first screen recommends, where that is outside the headline setting."""
    choice = next((answer.choice for answer in opened if answer.choice), None)
    if choice is None:
        return elsewhere.head(0)
    same = {name: setting[name] for name in ("agents", "host")}
    return cells.only(elsewhere, {**dict(zip(cells.CHOICE, choice, strict=True)), **same})


def _table(
    summary: pd.DataFrame, common: str | None, kind: str, varying: Iterable[str], columns: Iterable[str]
) -> list[dict[str, Any]]:
    """Rows grouped by the work that they do, the common work first: groups are not compared for latency."""
    if summary.empty:
        return []
    groups: dict[str, list[dict[str, Any]]] = {}
    cut = 0
    for key, rows in cells.in_order(summary).groupby(cells.WHERE, observed=True, sort=False):
        cell = dict(zip(cells.WHERE, key, strict=True))
        if sum(map(len, groups.values())) >= ROWS_MAX:
            cut += 1
            continue
        by_metric = {r["metric"]: r for r in rows.to_dict("records")}
        first = next(iter(by_metric.values()))
        groups.setdefault(cell["workload"], []).append(
            {
                "mode": cell["mode"],
                "title": cells.mode_title(cell["mode"]),
                "detail": cells.label(cell, (*varying,), kind).removeprefix(
                    cells.mode_title(cell["mode"]) + ", "
                ),
                "ok": f"{first['ok']} of {first['trials']}",
                "bad": first["ok"] < first["trials"],
                "ended": _endings(first),
                "agreement": first["agreement"],
                "differs": first["agreement"] == Agreement.DIFFERS,
                "values": [_value(by_metric.get(name)) for name in columns],
            }
        )
    ordered = sorted(groups.items(), key=lambda group: group[0] != common)
    return [
        {
            "work": "Work"
            if common is None
            else "The same work"
            if work == common
            else "Other work, not compared",
            "steps": inert.excerpt(work.replace("+", ", "), 80),
            "rows": rows,
            "cut": cut,
        }
        for work, rows in ordered
    ]


def _endings(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{row[s]} {ended(s)}" for s in Status if s is not Status.OK and row[s])


def _value(row: Mapping[str, Any] | None) -> dict[str, str]:
    """An estimate as two short texts, and why it is missing as a third."""
    if row is None or row["estimate"] is None or row["estimate"] != row["estimate"]:
        return {
            "value": "–",
            "interval": "",
            "why": (row or {}).get("note", "not compared") or "not measured",
        }
    found = Estimate(
        row["estimate"], *(None if row[n] != row[n] else row[n] for n in ("low", "high")), row["n"]
    )
    return {
        "value": number(found.value),
        "interval": interval(found) if found.has_interval else f"n = {found.n}",
        "why": "",
    }


def _records(rows: pd.DataFrame, *names: str) -> list[dict[str, Any]]:
    return rows[list(names)].head(ROWS_MAX).to_dict("records")


def _failed_trials(trials: pd.DataFrame, agents: pd.DataFrame) -> list[dict[str, Any]]:
    """Trials that did not work, each with the agents whose steps did not work in its last attempt."""
    bad = trials[trials["status"] != Status.OK]
    shown = cells.in_order(bad).head(ROWS_MAX)
    steps = agents[agents["trial_id"].isin(shown["trial_id"])]
    steps = cells.last_attempts(steps)
    steps = steps[steps["status"] != Status.OK]
    rows = []
    for trial in shown.to_dict("records"):
        ours = steps[steps["trial_id"] == trial["trial_id"]]
        rows.append(
            {
                "trial_id": trial["trial_id"],
                "mode": trial["mode"],
                "ended": ended(trial["status"]),
                "error": inert.excerpt(trial["error"], 300),
                "steps": f"{trial['steps_failed']} of {trial['steps']}",
                "who": _who(ours),
            }
        )
    return rows


def _who(steps: pd.DataFrame) -> str:
    """Whose steps ended how and in which rounds: "data engineer, devops engineer: out of memory in round 0,
    skipped in rounds 1, 2". Who ended alike is named together."""
    alike: dict[str, list[str]] = {}
    for agent, rows in steps.sort_values("round", kind="stable").groupby("agent", sort=False):
        told = []
        for status, of_status in rows.groupby("status", sort=False):
            rounds = sorted(set(of_status["round"]))
            noun = "rounds" if len(rounds) > 1 else "round"
            told.append(f"{ended(status)} in {noun} {', '.join(map(str, rounds))}")
        alike.setdefault(", ".join(told), []).append(str(agent).replace("_", " "))
    return inert.excerpt("; ".join(f"{', '.join(who)}: {how}" for how, who in alike.items()), 400)


def _failed_attempts(attempts: pd.DataFrame, kind: str) -> list[dict[str, Any]]:
    """Attempts that failed on the way to one that worked or was the last, by mode and number of devices."""
    if attempts.empty:
        return []
    earlier = attempts[~attempts["last"]]
    rows = []
    for (mode, gpus, status), group in earlier.groupby(["mode", "gpus_used", "status"], sort=True):
        rows.append(
            {
                "mode": mode,
                "name": cells.mode_title(mode),
                "devices": cells.devices(int(gpus), kind),
                "ended": ended(status),
                "times": len(group),
                "mean_s": number(group["duration_s"].mean()),
                "mean_gpu_s": number(group["gpu_s"].mean()),
                "error": inert.excerpt(group["error"].iloc[0], 200),
            }
        )
    return rows


def _at_home(rows: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """Rows with their trial's host in place of their own: what tells one cell from another."""
    return rows.assign(host=rows["trial_id"].map(trials.set_index("trial_id")["host"]))


def _first_ooms(ooms: pd.DataFrame, workers: pd.DataFrame, kind: str) -> list[dict[str, Any]]:
    """The first out-of-memory of each cell: what was asked for, what was free, who held what, and the memory
    of a copy as predicted beside the most that a copy of that cell took where it worked."""
    where = [*cells.CELL, "host"]
    varying = cells.varying(workers)
    worked = workers[workers["status"] == Status.OK]
    peaks = worked["nvml_process_peak_mib"].fillna(worked["allocated_peak_mib"])
    peak = peaks.groupby([worked[name] for name in where]).max()
    ordered = ooms.sort_values("repeat", kind="stable").drop_duplicates(where)
    return [
        {
            "mode": row["mode"],
            "name": cells.label(row, varying, kind),
            "doing": f"{row['oom_phase']}, {row['phase']} round"
            + (f", {row['step']}" if row["step"] else ""),
            "asked": number(row["requested_mib"]),
            "free": number(row["free_mib"]),
            "held": inert.excerpt(row["held_by"], 300) or "not said",
            "predicted": number(row["predicted_mib"]),
            "peak": number(peak.get(tuple(row[name] for name in where))),
        }
        for row in cells.in_order(ordered).head(ROWS_MAX).to_dict("records")
    ]


def _skipped(skipped: pd.DataFrame, kind: str) -> list[dict[str, str]]:
    return [
        {
            "name": cells.label(cell, ("agents", "engine", "start", "variant"), kind),
            "reason": inert.excerpt(str(cell["reason"]), 300),
        }
        for cell in skipped.head(ROWS_MAX).to_dict("records")
    ]


def _checks(trials: pd.DataFrame, thresholds: Mapping[str, float]) -> list[tuple[str, str]]:
    """What speaks for and against trusting the numbers."""
    limit = 100 * thresholds.get("idle_share", 0.02)
    unexplained = trials["unexplained_pct"].dropna()
    over = int((unexplained > limit).sum())
    worst = "not measured" if unexplained.empty else f"{unexplained.max():.2f} % at worst"
    samples, late, errors = (
        pd.to_numeric(trials[n], errors="coerce").fillna(0).sum()
        for n in ("samples", "samples_late", "sample_errors")
    )
    return [
        ("Makespan that no stage explains", f"{worst}; {count(over, 'trial')} over {number(limit)} %"),
        (
            "Samples of the devices",
            f"{int(samples):,}, of them {int(late):,} late and {int(errors):,} in error",
        ),
        ("Tainted trials", f"{int(trials['tainted'].sum())} of {len(trials)}"),
        ("Zygotes, not part of any cold makespan", _own_start(trials, "zygote_s")),
        ("Ray, not part of any cold makespan", _own_start(trials, "runner_s")),
        ("CPU pressure", _pressure(trials)),
    ]


def _engines(quality: pd.DataFrame) -> list[dict[str, Any]]:
    """Each check of an engine as a row of texts; what cannot be seen says so. No rows where none was made."""
    if set(quality["agreement"]) <= {Agreement.NOT_MEASURED}:
        return []
    rows = []
    for check in quality.to_dict("records"):
        measured = check["tokens"] == check["tokens"]

        def shown(name: str, check: dict[str, Any] = check, measured: bool = measured) -> str:
            value = check[name]
            missing = Agreement.NOT_OBSERVABLE if measured else check["agreement"]
            return str(missing) if value is None or value != value else number(value)

        rows.append(
            {
                "name": check["check_id"],
                "dtype": check["dtype"],
                "agreement": check["agreement"],
                "differs": check["agreement"] == Agreement.DIFFERS,
                "values": [shown(name) for name, _ in ENGINE_NUMBERS],
                "reason": inert.excerpt(check["reason"], 300),
            }
        )
    return rows


def _unchecked(quality: pd.DataFrame) -> str:
    """What stands in place of the table of engines where none was checked: a sentence with the reasons."""
    if quality.empty:
        return "Not measured."
    engines = ", ".join(dict.fromkeys(quality["engine"]))
    reasons = "; ".join(dict.fromkeys(filter(None, quality["reason"])))
    return f"Not measured of {engines}: {inert.excerpt(reasons, 300) or 'no reason was kept'}."


def _variants(manifest: Manifest, tables: Mapping[str, pd.DataFrame]) -> list[tuple[str, str]]:
    """Each variant of the study's trials and skipped cells with the options that it sets."""
    named = dict.fromkeys(pd.concat([tables["trials"]["variant"], tables["skipped"]["variant"]]))
    known = manifest.config.get("variants", {"base": {}})
    rows = []
    for name in sorted(named, key=lambda name: (name != "base", name)):
        options = {o: value for o, value in known.get(name, {}).items() if value is not None}
        said = ", ".join(f"{option} = {_option(value)}" for option, value in options.items())
        rows.append((name, said or ("no option is set" if name in known else "not in the manifest")))
    return rows


def _option(value: Any) -> str:
    """An option as the config has it: "true", "parallel", "47104"."""
    return inert.excerpt(value if isinstance(value, str) else json.dumps(value), 60)


def _own_start(trials: pd.DataFrame, column: str) -> str:
    """What a runner's own start cost, before any worker's: it is recorded and never called saved."""
    known = pd.to_numeric(trials[column], errors="coerce").dropna()
    return (
        f"{number(known.median())} s to start, median of {count(len(known), 'trial')}"
        if len(known)
        else "none"
    )


def _pressure(trials: pd.DataFrame) -> str:
    """Seconds in which some task waited for a CPU, and what a hypervisor took, over the trials' sum."""
    known = [json.loads(p) for p in trials["pressure"] if p]
    said = [
        f"{number(sum(p[key] for p in known if key in p))} s {text}"
        for key, text in (
            ("cpu_some_s", "with a task waiting for a core"),
            ("steal_s", "taken by a hypervisor"),
        )
        if any(key in p for p in known)
    ]
    return ", ".join(said) + ", over all trials" if said else "not recorded"


def _outputs(outputs: pd.DataFrame) -> list[dict[str, Any]]:
    groups = []
    for mode, rows in outputs.groupby("mode", sort=False):
        said = [
            {
                "agent": str(r["agent"]).replace("_", " "),
                "step": str(r["step"]),
                "text": inert.excerpt(str(r["text"]), 300),
            }
            for r in rows.to_dict("records")
        ]
        groups.append({"mode": mode, "name": cells.mode_title(mode), "said": said})
    return groups


def _sessions(study: pd.DataFrame, kind: str) -> list[str]:
    """When the trials ran, and how much longer than they must, a line per session."""
    said = []
    for row in study.head(SESSIONS_MAX).to_dict("records"):
        how = "each alone on the host" if row["exclusive"] else "packed"
        order = (
            "in the order drawn from the seed"
            if not row["out_of_order"]
            else f"{count(row['out_of_order'], 'trial')} not in the order drawn from the seed"
        )
        few, many = row["repeats_min"], row["repeats_max"]
        repeats = count(many, "repeat") if few == many else f"{few} to {many} repeats"
        bound = (
            "their sum" if row["exclusive"] else f"packing them on {cells.devices(row['host_gpus'], kind)}"
        )
        said.append(
            f"Host {inert.excerpt(str(row['host']), 60)}, {row['started_wall'].replace('T', ' ')[:16]} UTC: "
            f"{count(row['trials'], 'trial')}, {how}, {order}, {repeats} of a cell. "
            f"{number(row['wall_s'])} s from the first start to the last end, "
            f"{number(row['wall_over_bound'])} × the lower bound, {bound}."
        )
    if len(study) > SESSIONS_MAX:
        said.append(f"{len(study) - SESSIONS_MAX} more in tables/study.csv.")
    return said


def _environment(environment: pd.DataFrame, manifest: Manifest) -> list[dict[str, Any]]:
    groups = [
        {
            "host": inert.excerpt(str(host), 60),
            "facts": [(r["key"], r["value"], r["trials"]) for r in rows.head(ROWS_MAX).to_dict("records")],
            "trials": int(rows["trials"].max()),
        }
        for host, rows in environment.groupby("host", sort=True)
    ]
    model = [
        (key, inert.excerpt(str(value), 200), None)
        for key, value in manifest.model.items()
        if value is not None
    ]
    return [{"host": "", "facts": model, "trials": 0}, *groups]
