"""From trials to tables: reads what the manifest lists, checks every file, reduces, writes CSV and parquet.

Rows describe themselves: nothing is read from a path or a name, and no directory is walked. A file that
does not match the hash in its trial.json stops everything with its name and the remedy.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from crewbench import (
    bounds,
    breakeven,
    cells,
    certificates,
    chain,
    comparisons,
    feasibility,
    inert,
    interference,
    metrics,
    quality,
    ramp,
    serving,
    session,
    stats,
    tax,
)
from crewbench.config import conditions
from crewbench.engines import ENGINES
from crewbench.quality import Agreement
from crewbench.records import (
    FILES,
    AgentRow,
    GpuRow,
    Identity,
    OomRow,
    RoundRow,
    ServerRow,
    Status,
    WorkerRow,
    columns,
)
from crewbench.trial import Cell

OUTPUTS = "outputs.jsonl"
IDENTITY = [f.name for f in fields(Identity)]
ERROR_CHARACTERS = 500
EXCERPT_CHARACTERS = 280
SAMPLES_PER_DEVICE = 300
PROBLEMS_SHOWN = 20


class TableError(Exception):
    """Results that cannot be read: every problem found, each with its remedy."""

    def __init__(self, problems: Iterable[str]) -> None:
        # A reader of CSV quotes what it could not read.
        self.problems = [inert.excerpt(problem, 1000) for problem in problems]
        shown = self.problems[:PROBLEMS_SHOWN]
        if len(self.problems) > len(shown):
            shown.append(f"... and {len(self.problems) - len(shown)} more")
        super().__init__("\n".join(shown))


@dataclass(frozen=True, slots=True)
class Manifest:
    """results/matrix.json: the trials that were wanted, in order, where each is, the cells that were skipped,
    how many devices a host has (None: not said), and the checks of engines (none in older manifests)."""

    path: Path
    config: dict[str, Any]
    model: dict[str, Any]
    trials: list[dict[str, str]]
    skipped: list[dict[str, Any]]
    host_gpus: int | None = None
    checks: Sequence[Mapping[str, Any]] = ()


@dataclass(slots=True)
class Trial:
    """One trial as read: trial.json, its rows, and its files' bodies for the tables that keep every row."""

    record: dict[str, Any]
    directory: Path
    agents: list[AgentRow]
    workers: list[WorkerRow]
    rounds: list[RoundRow]
    ooms: list[OomRow]
    replays: list[AgentRow]
    servers: list[ServerRow]
    gpu: Samples
    bodies: dict[str, bytes]

    @property
    def last_attempt(self) -> int:
        return max((r.attempt for r in self.rounds), default=0)

    @property
    def final(self) -> list[RoundRow]:
        """The rounds of the last attempt: of those before it only what they cost counts."""
        return [r for r in self.rounds if r.attempt == self.last_attempt]


@dataclass(slots=True)
class Samples:
    """gpu.csv as columns, in the file's order: one instant, one device and its readings per position."""

    device_uuid: np.ndarray
    columns: dict[str, np.ndarray]

    @property
    def at_s(self) -> np.ndarray:
        return self.columns["t_at_s"]

    def of(self, uuid: str, start_s: float, end_s: float) -> dict[str, np.ndarray]:
        """The columns of one device between two instants."""
        chosen = (self.device_uuid == uuid) & (self.at_s >= start_s) & (self.at_s <= end_s)
        return {name: values[chosen] for name, values in self.columns.items()}


# Reading -----------------------------------------------------------------------------------------


def read_manifest(path: Path) -> Manifest:
    """Raises TableError for a file that is not there, is not JSON, or lists no trial."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest(
            path,
            data["config"],
            data["model"],
            list(data["trials"]),
            list(data.get("skipped", [])),
            data.get("devices", {}).get("count"),
            list(data.get("checks", [])),
        )
    except FileNotFoundError:
        raise TableError([f"{path}: there is no manifest; `make report` writes it"]) from None
    except (ValueError, KeyError, TypeError) as error:
        raise TableError(
            [f"{path}: not a manifest ({error!r}); `make report` writes one, results/matrix.json"]
        ) from None
    if not manifest.trials:
        raise TableError([f"{path}: lists 0 trials; the config must have a cell that makes sense"])
    # Rows are joined by trial_id alone: those of one trial may be of several hosts.
    times = Counter(line.get("trial_id") for line in manifest.trials)
    twice = [f"{name} ({n} times)" for name, n in times.items() if n > 1]
    if twice:
        raise TableError(
            [f"{path}: lists a trial twice: {', '.join(twice)}; delete it and run `make report`"]
        )
    return manifest


def read_trial(line: Mapping[str, str]) -> Trial:
    """Reads and checks one trial of the manifest. Raises TableError with what is wrong and the remedy."""
    here = Path(line["dir"])
    remedy = f"delete {here} and run again: only this trial reruns"
    record = _trial_json(here, line, remedy)
    problems, content = [], {}
    for name in (*FILES, OUTPUTS):
        if name not in record["files"]:
            problems.append(
                f"{here / name}: not in trial.json: another version measured this trial; {remedy}"
            )
            continue
        try:
            content[name] = (here / name).read_bytes()
        except FileNotFoundError:
            problems.append(f"{here / name}: missing, though trial.json lists it; {remedy}")
            continue
        if hashlib.sha256(content[name]).hexdigest() != record["files"][name]:
            problems.append(
                f"{here / name}: half-written or altered, its sha256 is not trial.json's; {remedy}"
            )
    if problems:
        raise TableError(problems)
    rows, bodies = {}, {}
    for name, row_type in FILES.items():
        header, _, bodies[name] = content[name].partition(b"\n")
        if header.decode().strip().split(",") != columns(row_type):
            raise TableError([f"{here / name}: its columns are those of another version; {remedy}"])
        try:
            rows[name] = samples(content[name]) if row_type is GpuRow else parse(content[name], row_type)
        except ValueError as error:
            raise TableError([f"{here / name}: {error}; {remedy}"]) from None
    return Trial(
        record,
        here,
        rows["agents.csv"],
        rows["workers.csv"],
        rows["rounds.csv"],
        rows["ooms.csv"],
        rows["replays.csv"],
        rows["servers.csv"],
        rows["gpu.csv"],
        bodies,
    )


def _trial_json(here: Path, line: Mapping[str, str], remedy: str) -> dict[str, Any]:
    path = here / "trial.json"
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise TableError([f"{path}: missing, so trial {line['trial_id']} is not done; run again"]) from None
    except ValueError as error:
        raise TableError([f"{path}: not valid JSON ({error}); {remedy}"]) from None
    lacking = [k for k in ("trial_id", "spec8", "status", "identity", "files", "devices") if k not in record]
    if lacking:
        raise TableError([f"{path}: lacks {', '.join(lacking)}; {remedy}"])
    for key in ("trial_id", "spec8"):
        if record[key] != line[key]:
            raise TableError(
                [f"{path}: its {key} is {record[key]!r}, the manifest's is {line[key]!r}; {remedy}"]
            )
    return record


@cache
def _types(row_type: type) -> list[tuple[str, type, bool]]:
    """(name, type, whether it may be empty) of a row type's own fields."""
    hints = get_type_hints(row_type)
    found = []
    for field in fields(row_type):
        hint = hints[field.name]
        optional = isinstance(hint, UnionType)
        found.append((field.name, get_args(hint)[0] if optional else hint, optional))
    return found


def parse(content: bytes, row_type: type) -> list[Any]:
    """The rows of a CSV file of the data contract as dataclasses. ValueError names the line."""
    _allow_long_cells()
    reader = csv.reader(io.StringIO(content.decode("utf-8", "replace"), newline=""))
    next(reader, None)
    skip, types, rows = len(IDENTITY), _types(row_type), []
    for cells_ in reader:
        if len(cells_) != skip + len(types):
            raise ValueError(f"line {reader.line_num} has {len(cells_)} cells, not {skip + len(types)}")
        values = []
        for (name, kind, optional), text in zip(types, cells_[skip:], strict=True):
            try:
                values.append(None if text == "" and optional else _READ.get(kind, kind)(text))
            except ValueError:
                what = f"line {reader.line_num}, {name}: {text[:40]!r} is no {kind.__name__}"
                raise ValueError(what) from None
        rows.append(row_type(*values))
    return rows


def _truth(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError(text)
    return text == "True"


_READ = {bool: _truth}
"""How a cell becomes a value where the type itself does not read it."""


def _allow_long_cells() -> None:
    csv.field_size_limit(1 << 30)  # an error can be a megabyte of one line


def samples(content: bytes) -> Samples:
    """gpu.csv's bytes as columns; an empty cell is NaN. ValueError (pyarrow's) names a broken line."""
    wanted = ("t_at_s", "device_uuid", "util_pct", "used_mib", "free_mib", "power_w", "energy_j")
    table = pa.csv.read_csv(
        io.BytesIO(content),
        read_options=pa.csv.ReadOptions(use_threads=False, block_size=max(len(content), 1)),
        convert_options=pa.csv.ConvertOptions(
            include_columns=list(wanted),
            column_types={n: pa.string() if n == "device_uuid" else pa.float64() for n in wanted},
        ),
    )
    uuids = table["device_uuid"].to_numpy(zero_copy_only=False)
    return Samples(uuids, {n: table[n].to_numpy() for n in wanted if n != "device_uuid"})


# Reducing one trial ------------------------------------------------------------------------------


def trial_row(
    trial: Trial, devices: list[dict[str, Any]], taxed: tax.Tax, agreement: str = Agreement.NOT_MEASURED
) -> dict[str, Any]:
    """One trial in one row: what it was, whether its engine agrees with float32, how it ended, and every
    metric of METRICS (None: not measured)."""
    record, rounds = trial.record, trial.rounds
    last, final = trial.last_attempt, trial.final
    cold = next((r for r in final if r.round == 0), None)
    warm = [r for r in final if r.round > 0]
    first_attempts = [r for r in rounds if r.round == 0]
    cold_ok = cold is not None and cold.status == Status.OK
    cold_s = metrics.makespan_s((r.started_at_s, r.ended_at_s) for r in first_attempts) if cold_ok else None
    warm_s = metrics.median(r.makespan_s for r in warm if r.status == Status.OK)
    steps = [a for a in trial.agents if a.attempt == last]
    cold_steps, warm_steps = ([a for a in steps if (a.round == 0) == is_cold] for is_cold in (True, False))
    tokens = [_tokens(a for a in steps if a.round == number) for number in {a.round for a in steps}]
    errors = [r.error for r in (*trial.agents, *trial.workers) if r.error and r.attempt == last]
    limit, warm_decode = _decode_limit(trial, devices), _decode_tokens_per_s(warm_steps)
    compiled = record.get("compile_cache") or {}
    used = [d for d in devices if d["used_peak_mib"] is not None]
    busy = [d for d in devices if d["in_use"] and d["util_mean_pct"] is not None]
    energies = [d["energy_j"] for d in devices]
    sampler = record.get("sampler") or {}
    device = (record.get("devices") or [{}])[0]
    return {
        **record["identity"],
        "agents_per_device": cells.agents_per_device(Cell(**record["spec"]["cell"])),
        "agreement": str(agreement),
        "compile_cache": _compile_cache(record),
        "compile_cache_files": compiled.get("files"),
        "compile_cache_mib": compiled.get("mib"),
        "workload": record.get("workload", ""),
        "conditions": ", ".join(
            f"{n} {v}" for n, v in sorted(conditions(record["spec"]["cell"].get("options") or {}).items())
        ),
        "status": record["status"],
        "error": _excerpt(errors) if record["status"] != Status.OK else "",
        "tainted": bool(record.get("taints")),
        "taints": inert.excerpt("; ".join(map(str, record.get("taints") or [])), ERROR_CHARACTERS),
        "simulated_budget": bool(record.get("simulated_budget")),
        "random_weights": bool(record.get("random_weights")),
        "device_kind": device.get("kind", ""),
        "device_name": inert.excerpt(str(device.get("name", "")), 80),
        "attempts": len({r.attempt for r in rounds}),
        "failed_attempts": len({r.attempt for r in rounds if r.attempt != last}),
        "warm_rounds": len(warm),
        "workflows_ok": sum(r.status == Status.OK for r in final),
        "gpu_s": metrics.gpu_seconds((r.gpus_used, r.makespan_s) for r in rounds),
        "steps": len(steps),
        "steps_failed": sum(a.status != Status.OK for a in steps),
        "output_tokens_per_round": max(tokens, default=None),
        "started_wall": _wall(record.get("anchor") or {}),
        "allocations": len(record.get("allocations") or []),
        "slurm_queue_s": _queued(record),
        "zygote_s": record.get("zygote_s"),
        "runner_s": record.get("runner_s"),
        "samples": sampler.get("samples"),
        "samples_late": sampler.get("late"),
        "sample_errors": sampler.get("errors"),
        "pressure": json.dumps(record.get("pressure") or {}, sort_keys=True),
        "spec8": record["spec8"],
        "dir": str(trial.directory),
        "cold_s": cold_s,
        "warm_s": warm_s,
        "replay_s": taxed.replay_s,
        "warm_over_replay": taxed.warm_over_replay,
        "added_ms_per_step": taxed.added_ms_per_step,
        "added_tokens_per_step": taxed.added_tokens_per_step,
        "added_calls_per_step": taxed.added_calls_per_step,
        "failed_attempts_s": cold.started_at_s - _window(first_attempts)[0] if cold_ok else None,
        "cold_over_warm": metrics.speedup(cold_s, warm_s) if cold_s and warm_s else None,
        "cold_ttft_s": metrics.median(a.ttft_s for a in cold_steps),
        "warm_ttft_s": metrics.median(a.ttft_s for a in warm_steps),
        "cold_tokens_per_s": metrics.crew_tokens_per_s(_tokens(cold_steps), cold_s) if cold_s else None,
        "warm_tokens_per_s": metrics.median(
            metrics.crew_tokens_per_s(_tokens([a for a in warm_steps if a.round == r.round]), r.makespan_s)
            for r in warm
            if r.status == Status.OK
        ),
        "decode_tokens_per_s": _decode_tokens_per_s(warm_steps or cold_steps),
        "decode_limit_tokens_per_s": limit,
        "bandwidth_share": metrics.bandwidth_share(warm_decode, limit) if warm_decode and limit else None,
        "compile_s": max((w.compile_s for w in trial.workers if w.compile_s), default=None),
        "cold_overlap": metrics.overlap(_spans(cold_steps)),
        "warm_overlap": metrics.median(
            metrics.overlap(_spans([a for a in warm_steps if a.round == r.round])) for r in warm
        ),
        "cold_gpu_s": metrics.gpu_seconds(
            (r.gpus_used, r.makespan_s) for r in rounds if r.round == 0 or r.attempt != last
        ),
        "warm_gpu_s": metrics.gpu_seconds([(warm[0].gpus_used, warm_s)]) if warm_s else None,
        "energy_j": sum(energies) if energies and None not in energies else None,
        "peak_mib": max((d["used_peak_mib"] for d in used), default=None),
        "util_pct": float(np.mean([d["util_mean_pct"] for d in busy])) if busy else None,
        "unexplained_pct": max(
            (metrics.share_pct(r.idle_s, r.makespan_s) or 0.0 for r in rounds if r.status == Status.OK),
            default=None,
        ),
        "gpus_used": float(cold.gpus_used) if cold_ok else None,
    }


def tax_of(trial: Trial) -> tax.Tax:
    """What the agents' framework cost this trial."""
    deployed = cells.deployment(Cell(**trial.record["spec"]["cell"]))
    asked_for = bool(trial.record["spec"].get("replay"))
    return tax.of_trial(trial.rounds, trial.agents, trial.replays, deployed, asked_for)


def where(record: Mapping[str, Any]) -> dict[str, Any]:
    """What makes one estimate: the trial's cell, its work, its host."""
    found = {**record["identity"], "compile_cache": _compile_cache(record)}
    found["workload"] = record.get("workload", "")
    return {name: found[name] for name in cells.WHERE}


def _compile_cache(record: Mapping[str, Any]) -> str:
    """none | empty | filled: what the trial found compiled on disk, a part of its start state."""
    return (record.get("compile_cache") or {}).get("state", "none")


def _wall(anchor: Mapping[str, float]) -> str:
    """When the trial's zero was, in UTC."""
    at = anchor.get("zero_wall_s")
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds") if at is not None else ""


def _excerpt(errors: list[str]) -> str:
    return inert.excerpt(errors[0], ERROR_CHARACTERS) if errors else ""


def _tokens(steps: Iterable[AgentRow]) -> int:
    return sum(a.output_tokens or 0 for a in steps)


def _decode_tokens_per_s(steps: Iterable[AgentRow]) -> float | None:
    """Median over the steps."""
    return metrics.median(
        metrics.decode_tokens_per_s(a.output_tokens, a.llm_calls, a.decode_s)
        for a in steps
        if a.output_tokens and a.llm_calls and a.decode_s
    )


def _decode_limit(trial: Trial, devices: Iterable[Mapping[str, Any]]) -> float | None:
    """What the memory bandwidth of one copy's devices allows one agent, in tokens/s; None: not known."""
    engine = ENGINES.get(trial.record["identity"]["engine"])
    lives = Counter((w.attempt, w.worker, w.worker_life) for w in trial.workers)
    together = max(lives.values(), default=1) if engine and engine.devices_together else 1
    bandwidth = metrics.median(d["bandwidth_gb_s"] for d in devices if d["in_use"])
    read_bytes = (trial.record.get("model") or {}).get("decode_bytes")
    if bandwidth is None or not read_bytes:
        return None
    return metrics.decode_limit_tokens_per_s(together * bandwidth, read_bytes)


def _spans(steps: Iterable[AgentRow]) -> list[metrics.Span]:
    return [(a.started_at_s, a.ended_at_s) for a in steps if None not in (a.started_at_s, a.ended_at_s)]


def _queued(record: Mapping[str, Any]) -> float | None:
    """Seconds that the trial's allocations waited in Slurm's queue; None without one, or where Slurm did not
    say."""
    waited = [allocation.get("queue_s") for allocation in record.get("allocations") or []]
    return sum(waited) if waited and None not in waited else None


def device_rows(trial: Trial) -> list[dict[str, Any]]:
    """One row per assigned device, from the first round's start to the last one's end: peaks and means of
    memory (MiB) and utilisation (%), energy (J), utilisation in the last attempt's cold and warm rounds too;
    and the copy bandwidth (GB/s) measured after them, or why there is none. A device without samples has
    empty readings, never zeros."""
    worked, rows = [r for r in trial.final if r.status == Status.OK], []
    windows = {
        "all": _window(trial.rounds),
        "cold": _window(r for r in worked if r.round == 0),
        "warm": _window(r for r in worked if r.round > 0),
    }
    held = {w.device_uuid for w in trial.workers}
    for device in trial.record["devices"]:
        uuid = device["uuid"]
        seen = trial.gpu.of(uuid, *windows["all"])
        budget_mib = trial.record["spec"].get("memory_mib") or device["memory_mib"]
        copied = (trial.record.get("bandwidth_gb_s") or {}).get(uuid) or {}
        rows.append(
            {
                **trial.record["identity"],
                "compile_cache": _compile_cache(trial.record),
                "device_uuid": uuid,
                "device_index": device.get("index"),
                "device_kind": device.get("kind", ""),
                "device_name": inert.excerpt(str(device.get("name", "")), 80),
                "in_use": uuid in held,
                "simulated_budget": bool(trial.record.get("simulated_budget")),
                "budget_mib": budget_mib,
                "used_peak_mib": _largest(seen["used_mib"]),
                "used_mean_mib": _mean(seen, "used_mib"),
                "util_peak_pct": _largest(seen["util_pct"]),
                "util_mean_pct": _mean(seen, "util_pct"),
                "cold_util_mean_pct": _mean(trial.gpu.of(uuid, *windows["cold"]), "util_pct"),
                "warm_util_mean_pct": _mean(trial.gpu.of(uuid, *windows["warm"]), "util_pct"),
                "power_mean_w": _mean(seen, "power_w"),
                "energy_j": _counted(seen["energy_j"]),
                "bandwidth_gb_s": copied.get("median"),
                "bandwidth_min_gb_s": copied.get("min"),
                "bandwidth_max_gb_s": copied.get("max"),
                "bandwidth_note": inert.excerpt(copied.get("why") or "", ERROR_CHARACTERS),
                "samples": int(len(seen["t_at_s"])),
            }
        )
    return rows


def _window(rounds: Iterable[RoundRow]) -> metrics.Span:
    """From the first round's start to the last one's end; a window that holds nothing without rounds."""
    rounds = list(rounds)
    if not rounds:
        return (math.inf, -math.inf)
    return (min(r.started_at_s for r in rounds), max(r.ended_at_s for r in rounds))


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def _largest(values: np.ndarray) -> float | None:
    known = _known(values)
    return float(known.max()) if len(known) else None


def _counted(counter: np.ndarray) -> float | None:
    known = _known(counter)
    return float(known[-1] - known[0]) if len(known) > 1 else None


def _mean(seen: Mapping[str, np.ndarray], name: str) -> float | None:
    known = ~np.isnan(seen[name])
    return metrics.time_mean(seen["t_at_s"][known], seen[name][known])


def attempt_rows(trial: Trial) -> list[dict[str, Any]]:
    """One row per attempt of the mode, each with how it ended, its steps, and what it cost in seconds and
    GPU-seconds: the last one its cold round, one that was given up all of its rounds."""
    rows, last = [], trial.last_attempt
    for attempt in sorted({r.attempt for r in trial.rounds}):
        ran = [r for r in trial.rounds if r.attempt == attempt]
        cold = next((r for r in ran if r.round == 0), None)
        if cold is None:
            continue
        counted = [cold] if attempt == last else ran
        # What fits a cold round may run out of memory in a warm one.
        status = Status.worst(r.status for r in ran)
        steps = [a for a in trial.agents if a.attempt == attempt]
        workers = [w for w in trial.workers if w.attempt == attempt]
        errors = [r.error for r in (*workers, *steps) if r.error and r.status == status]
        ended_s = max(r.ended_at_s for r in counted)
        rows.append(
            {
                **trial.record["identity"],
                "compile_cache": _compile_cache(trial.record),
                "attempt": attempt,
                "gpus_used": cold.gpus_used,
                "status": status,
                "started_at_s": cold.started_at_s,
                "ended_at_s": ended_s,
                "duration_s": ended_s - cold.started_at_s,
                "gpu_s": metrics.gpu_seconds((r.gpus_used, r.makespan_s) for r in counted),
                "steps_ok": sum(a.status == Status.OK for a in steps),
                "steps_failed": sum(a.status != Status.OK for a in steps),
                "last": attempt == last,
                "workers_oom": len({(w.worker, w.worker_life) for w in workers if w.status == Status.OOM}),
                "error": _excerpt(errors),
            }
        )
    return rows


def environment_facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, value) of a trial's environment, devices and model claims, nested keys joined by dots."""
    facts: list[tuple[str, str]] = []

    def walk(key: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(f"{key}.{name}" if key else str(name), inner)
        else:
            facts.append((key, inert.excerpt(str(value), 200)))

    walk("", record.get("environment") or {})
    for device in record.get("devices") or []:
        said = f"{device.get('name', '')} ({device.get('uuid', '')}, {device.get('memory_mib')} MiB)"
        facts.append((f"device.{device.get('index')}", inert.excerpt(said, 200)))
    return facts


# All trials --------------------------------------------------------------------------------------


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
    tables = {"trials": _numeric(pd.DataFrame(trials))}
    for name, row_type in FILES.items():
        if name in bodies:
            tables[Path(name).stem] = _join(bodies[name], row_type)
    tables["devices"] = _numeric(pd.DataFrame(devices))
    tables["attempts"] = pd.DataFrame(attempts)
    compared = interference.compare(found.seen)
    tables["summary"] = pd.DataFrame(summarise(trials, _slowdowns(compared)))
    tables |= _what_fits(manifest, trials, attempts, tables["ooms"], feasibility.grounds(glimpses))
    tables["comparisons"] = _frame(comparisons.of_trials(trials), comparisons.COLUMNS)
    tables |= found.tables(compared)
    tables |= verdicts(tables, manifest.config.get("thresholds"))
    tables["breakeven"] = _with_agreements(tables["breakeven"], tables["trials"])
    planned = [line["trial_id"] for line in manifest.trials]
    tables["study"] = pd.DataFrame(
        session.summarise(filter(None, ran), planned, manifest.host_gpus),
        columns=[f.name for f in fields(session.Session)],
    )
    tables["quality"] = _numbers_of_checks(checks)
    tables["skipped"] = pd.DataFrame(manifest.skipped, columns=[*cells.CELL, "reason"])
    tables["environment"] = pd.DataFrame(
        [(*key, count) for key, count in sorted(facts.items())], columns=["host", "key", "value", "trials"]
    )
    shown = cells.shown(tables["trials"])
    tables["samples"] = _shown_samples(shown)
    tables["outputs"] = _shown_outputs(shown)
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
    """The tables `certificates` and `feasibility`."""
    options = {
        name: {key: value for key, value in variant.items() if value is not None}
        for name, variant in (manifest.config.get("variants") or {}).items()
    }
    memory = {key: here.memory_mib for key, here in ground.items()}
    certified = certificates.certificates(trials, attempts, ooms.to_dict("records"), memory, options)
    devices = manifest.host_gpus or max((int(t["gpus"]) for t in trials), default=1)
    model = feasibility.model_of(manifest.model.get("dir"))
    points = feasibility.points(trials, attempts, ground, options, model, devices)
    return {
        "certificates": _frame(certified, certificates.COLUMNS, gaps=["gpus"]),
        "feasibility": _frame(points, feasibility.COLUMNS),
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
            self.costs.append((cell, who["repeat"], costs))

    def tables(self, compared: Sequence[interference.Seen]) -> dict[str, pd.DataFrame]:
        """`compared` are `seen`, with the agent alone beside each."""
        beside = [
            {**self.identities[i], **one.row()} for i, trial in enumerate(compared) for one in trial.beside
        ]
        pairs = breakeven.pairs(self.costs)
        who = [*IDENTITY, "compile_cache", "workload"]
        return {
            "tax": _frame(self.tax, [*who, "status", *tax.COLUMNS]),
            "tax_steps": _frame(self.steps, [*who, *tax.STEP_COLUMNS]),
            "serving": _frame(self.serving, [*who, *serving.COLUMNS]),
            "interference": _frame(beside, [*who, *interference.COLUMNS]),
            "breakeven": _frame([pair.row() for pair in pairs], breakeven.COLUMNS),
            "breakeven_repeats": _frame(
                [row for pair in pairs for row in pair.repeat_rows()], breakeven.REPEAT_COLUMNS
            ),
        }


_TEXTS = {
    *("trial_id", "mode", "engine", "start", "variant", "host", "compile_cache", "workload", "status"),
    *("step", "agent", "worker", "note", "relation", "alone", "comparison", "outcome"),
    *("phase", "significant", "fits", "predicted_fits", "device_name", "evidence"),
    *("first", "constraint", "over", "bound", "each", "why", "unexplained"),
    *(f"{side}_{name}" for side in "ab" for name in breakeven.OWN),
}
_COUNTS = {"gpus", "agents", "repeat", "warm_rounds", "replays", "steps", "worker_life", "readings", "n"}
_COUNTS |= {"calls_per_round", "a_gpus", "b_gpus", "pairs", "context_tokens", "position", "rounds"}
_COUNTS |= {"points", "points_worked", "agents_from", "agents_to", "gpus_from", "gpus_to"}
_TRUTHS = {"settled", "simulated_budget", "random_weights"}


def _frame(rows: Iterable[Mapping[str, Any]], names: Sequence[str], gaps: Sequence[str] = ()) -> pd.DataFrame:
    """Rows as a table whose columns have a type, with and without rows: text, count, truth, else a number. A
    count that may be missing (`gaps`) is a number."""
    frame = pd.DataFrame(list(rows), columns=list(names))
    of = {str: _TEXTS, int: _COUNTS.difference(gaps), bool: _TRUTHS}
    kinds = {n: next((kind for kind, these in of.items() if n in these), float) for n in names}
    return frame.astype(kinds)


def verdicts(
    tables: Mapping[str, pd.DataFrame], thresholds: Mapping[str, Any] | None
) -> dict[str, pd.DataFrame]:
    """What breaks first along each ramp, what bounds each cell, and what a chain's context costs."""
    found = ramp.tables(tables, ramp.Limits.of(thresholds))
    return {
        "verdict": _frame(found["verdict"], ramp.VERDICT_COLUMNS),
        "constraints": _frame(found["constraints"], ramp.CONSTRAINTS_COLUMNS),
        "bounds": _frame(bounds.table(tables), bounds.COLUMNS),
        "chain": _frame(chain.table(tables), chain.COLUMNS),
    }


def _slowdowns(compared: Iterable[interference.Seen]) -> dict[tuple, dict[str, tuple[stats.Estimate, str]]]:
    """interference.estimates of each cell, by its WHERE; none of those that others are compared with."""
    by_cell: dict[tuple, list[interference.Seen]] = defaultdict(list)
    for trial in compared:
        if not trial.alone:
            by_cell[tuple(trial.cell.values())].append(trial)
    return {key: interference.estimates(trials) for key, trials in by_cell.items()}


def _numeric(frame: pd.DataFrame) -> pd.DataFrame:
    """Metrics that no trial measured are columns of numbers still, all of them empty."""
    wanted = [c for c in frame if c in metrics.METRICS or c.endswith(("_mib", "_pct", "_j", "_w", "_gb_s"))]
    return frame.astype(dict.fromkeys(wanted, float))


def check_rows(manifest: Manifest) -> list[dict[str, Any]]:
    """The manifest's checks of engines with their judgement. TableError for a record that cannot be read."""
    times = (manifest.config.get("thresholds") or {}).get("logit_error", quality.TIMES)
    try:
        return quality.rows(manifest.checks, times)
    except ValueError as error:
        raise TableError([str(error)]) from None


def _numbers_of_checks(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=list(quality.COLUMNS))
    numbers = ["times_plain", *(f.name for f in fields(quality.Numbers))]
    return frame.astype(dict.fromkeys(numbers, float))


def _join(bodies: list[bytes], row_type: type) -> pd.DataFrame:
    """Files of one type as one table: their bodies were checked one by one, so they are parsed together."""
    names = columns(row_type)
    hints = {**get_type_hints(Identity), **{n: k for n, k, _ in _types(row_type)}}
    arrow = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}
    content = b"".join(bodies)
    types = {n: arrow.get(hints[n], pa.string()) for n in names}
    if not content:
        return pa.schema(types).empty_table().to_pandas()
    options = pa.csv.ConvertOptions(column_types=types)
    # One block: a cell may be longer than pyarrow's usual block, and quoted cells may hold newlines.
    read = pa.csv.ReadOptions(column_names=names, block_size=min(len(content) + 1, 2**31 - 1))
    table = pa.csv.read_csv(
        io.BytesIO(content), read, pa.csv.ParseOptions(newlines_in_values=True), options
    ).to_pandas()
    if "error" in table:
        table["error"] = table["error"].map(lambda text: _excerpt([text]) if text else "")
    return table


# Summary -----------------------------------------------------------------------------------------


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


# What figures and report show of single trials ----------------------------------------------------


def _shown_samples(shown: pd.DataFrame) -> pd.DataFrame:
    """gpu.csv of the shown trials, at most SAMPLES_PER_DEVICE per device: each kept sample is the highest of
    those it stands for, so a short peak is not lost."""
    frames = []
    for row in shown.to_dict("records"):
        content = (Path(row["dir"]) / "gpu.csv").read_bytes()
        table = pd.read_csv(
            io.BytesIO(content),
            usecols=lambda c: c in {*IDENTITY, *_SAMPLED},
            keep_default_na=False,
            na_values=[""],
        )
        for _, of_device in table.groupby("device_uuid", sort=False):
            size = -(-len(of_device) // SAMPLES_PER_DEVICE)
            part = np.arange(len(of_device)) // size
            by = [c for c in of_device if c not in _SAMPLED or c in ("device_uuid", "device_index")]
            highest = of_device.groupby([*by, part], sort=False, dropna=False).max(numeric_only=True)
            frames.append(highest.reset_index(by).reset_index(drop=True))
    if not frames:
        return pd.DataFrame(columns=[*IDENTITY, *_SAMPLED])
    return pd.concat(frames, ignore_index=True)


_SAMPLED = (
    "device_uuid",
    "device_index",
    "t_at_s",
    "util_pct",
    "used_mib",
    "free_mib",
    "ballast_mib",
    "power_w",
)


def _shown_outputs(shown: pd.DataFrame) -> pd.DataFrame:
    """The beginning of what each agent of the shown trials said in round 0."""
    rows = []
    for trial in shown.to_dict("records"):
        for text in (Path(trial["dir"]) / OUTPUTS).read_bytes().splitlines():
            said = json.loads(text)
            if said.get("round") == 0:
                words = str(said.get("text") or "")
                rows.append(
                    {
                        **{name: trial[name] for name in IDENTITY},
                        **{n: said.get(n) for n in ("attempt", "step", "agent")},
                        "characters": len(words),
                        "text": inert.excerpt(words, EXCERPT_CHARACTERS),
                    }
                )
    found = pd.DataFrame(rows, columns=[*IDENTITY, "attempt", "step", "agent", "characters", "text"])
    return cells.last_attempts(found)


# Writing and loading -----------------------------------------------------------------------------


def write(tables: Mapping[str, pd.DataFrame], out: Path) -> None:
    """out/<name>.parquet and out/<name>.csv. In CSV, text that a spreadsheet could run gets an apostrophe."""
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in tables.items():
        frame.to_parquet(out / f"{name}.parquet", index=False)
        table = pa.Table.from_pandas(frame, preserve_index=False)
        for position, field in enumerate(table.schema):
            if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
                # Few values are distinct: each is guarded once.
                coded = table[position].combine_chunks().dictionary_encode()
                safe = [v if v is None else inert.guarded(v) for v in coded.dictionary.to_pylist()]
                guarded = pa.array(safe, field.type).take(coded.indices)
                table = table.set_column(position, field.name, guarded)
        with open(out / f"{name}.csv", "wb") as file:
            pa.csv.write_csv(table, file, pa.csv.WriteOptions(quoting_style="needed"))


def load(out: Path) -> dict[str, pd.DataFrame]:
    """The tables as `write` left them. Raises TableError naming one that is missing."""
    names = (
        "trials",
        "rounds",
        "agents",
        "workers",
        "ooms",
        "replays",
        "servers",
        "devices",
        "attempts",
        "summary",
        "certificates",
        "feasibility",
        "comparisons",
        "verdict",
        "constraints",
        "bounds",
        "chain",
        "tax",
        "tax_steps",
        "serving",
        "interference",
        "breakeven",
        "breakeven_repeats",
        "study",
        "quality",
        "skipped",
        "environment",
        "samples",
        "outputs",
    )
    missing = [str(out / f"{n}.parquet") for n in names if not (out / f"{n}.parquet").exists()]
    if missing:
        raise TableError([f"{path}: missing; run scripts/tables.py first" for path in missing])
    return {n: pd.read_parquet(out / f"{n}.parquet") for n in names}
