"""One trial reduced to rows: the trial, its devices, its attempts, what was around it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from crewbench import cells, inert, metrics, tax
from crewbench.config import conditions
from crewbench.engines import ENGINES
from crewbench.quality import Agreement
from crewbench.records import AgentRow, RoundRow, Status
from crewbench.tables.reading import Trial
from crewbench.trial import Cell

ERROR_CHARACTERS = 500


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
        "compile_cache_made_s": compiled.get("made_s"),
        "workload": record.get("workload", ""),
        "conditions": ", ".join(
            f"{n} {v}" for n, v in sorted(conditions(record["spec"]["cell"].get("options") or {}).items())
        ),
        "status": record["status"],
        "error": first_error(errors) if record["status"] != Status.OK else "",
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
        "slurm_queue_s": queued_s(record),
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


def first_error(errors: list[str]) -> str:
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


def queued_s(record: Mapping[str, Any]) -> float | None:
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
                "error": first_error(errors),
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
