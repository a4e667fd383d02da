"""The data contract: every row that a trial writes, one dataclass per file, units in the names.

`_at_s` are instants (CLOCK_MONOTONIC seconds since the trial's zero), all other `_s` durations.
A field that could not be measured is None, an empty cell in CSV: never zero.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any


class Status(StrEnum):
    """How something ended. Failure is data."""

    OK = "ok"
    OOM = "oom"
    TIMEOUT = "timeout"
    ERROR = "error"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"

    @classmethod
    def worst(cls, statuses: Iterable[Status | str]) -> Status:
        """The one that explains the others: oom, then timeout, error, cancelled, skipped, ok."""
        rank = [cls.OOM, cls.TIMEOUT, cls.ERROR, cls.CANCELLED, cls.SKIPPED, cls.OK]
        return min((cls(s) for s in statuses), key=rank.index, default=cls.OK)


@dataclass(frozen=True, slots=True)
class Identity:
    """What every row of every file says of its trial."""

    trial_id: str
    mode: str
    gpus: int
    agents: int
    engine: str
    start: str
    variant: str
    repeat: int
    host: str  # the last: rows of other hosts differ in it


@dataclass(slots=True)
class AgentRow:
    """agents.csv, and replays.csv with phase replay (the last warm round's calls made again without the
    agents): one row per step and round. `framework_s` is the step's time outside the engine: ended - started
    - prefill - decode. `task_tokens` are the ids of the agent's and the task's own texts; the framework adds
    the rest. `reruns` is how often the step was run again because its worker had died, `lost_tokens` the
    output ids that workers had made for it when they died (empty where nobody counted them); all other
    columns but `queue_s`, which holds all of that time, are of the last run."""

    round: int
    phase: str
    attempt: int
    step: str
    agent: str
    worker: str
    worker_life: int
    status: str
    queued_at_s: float | None = None
    started_at_s: float | None = None
    ended_at_s: float | None = None
    queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    framework_s: float | None = None
    ttft_s: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    llm_calls: int | None = None
    task_tokens: int | None = None
    reruns: int = 0
    lost_tokens: int | None = 0
    error: str = ""


@dataclass(slots=True)
class WorkerRow:
    """workers.csv: one row per life of a worker and device. `spawned_at_s` is when its process was
    asked for and `stopped_at_s` when it was seen gone. `recovery_s`, of a life that follows a death, is from
    that death's being seen to ready."""

    worker: str
    worker_life: int
    attempt: int
    runner: str
    pid: int | None = None
    device_uuid: str = ""
    device_index: int | None = None
    spawned_at_s: float | None = None
    spawn_s: float | None = None
    import_s: float | None = None
    context_s: float | None = None
    load_s: float | None = None
    read_s: float | None = None
    copy_s: float | None = None
    compile_s: float | None = None
    ready_at_s: float | None = None
    recovery_s: float | None = None
    stop_s: float | None = None
    stopped_at_s: float | None = None
    cached_share: float | None = None
    allocated_peak_mib: float | None = None
    reserved_peak_mib: float | None = None
    nvml_process_peak_mib: float | None = None
    predicted_mib: float | None = None
    status: str = Status.OK
    error: str = ""


@dataclass(slots=True)
class RoundRow:
    """rounds.csv: one row per attempt and round, with the stages of its critical path. They add up
    to `makespan_s`; `idle_s` is what is left unexplained."""

    round: int
    phase: str
    attempt: int
    gpus_used: int
    started_at_s: float
    ended_at_s: float
    makespan_s: float
    spawn_s: float = 0.0
    import_s: float = 0.0
    context_s: float = 0.0
    load_s: float = 0.0
    compile_s: float = 0.0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    framework_s: float = 0.0
    stop_s: float = 0.0
    idle_s: float = 0.0
    status: str = Status.OK


STAGES = (
    *("spawn", "import", "context", "load", "compile"),
    *("queue", "prefill", "decode", "framework", "stop", "idle"),
)
"""The disjoint parts of a round's makespan, in the order in which they happen."""


@dataclass(slots=True)
class GpuRow:
    """gpu.csv: one row per device and sample. `energy_j` counts from the sampler's start. A CPU slot
    fills utilisation (share of one core, in %) and memory (simulated budget) and leaves the rest empty."""

    t_at_s: float
    device_uuid: str
    device_index: int
    util_pct: float | None = None
    memory_util_pct: float | None = None
    used_mib: float | None = None
    free_mib: float | None = None
    ballast_mib: float | None = None
    memory_rate_mib_s: float | None = None
    power_w: float | None = None
    energy_j: float | None = None
    temperature_c: float | None = None
    sm_clock_mhz: float | None = None
    throttle_reasons: str = ""


@dataclass(slots=True)
class OomRow:
    """ooms.csv: one row per out-of-memory that was met, by process `pid` of `worker`. `step` is empty while
    it loads, `device_uuid` where nobody says which of its devices it was.

    `reserved_mib` is what PyTorch held in the failing process (on a slot: its charges), `others_mib` what all
    other processes held but the ballast, and `ballast_mib` what that holds. `holders` is a JSON object, pid
    to MiB (null: not known), the failing process among them, and `held_by` the same in words.
    `predicted_mib` is as in workers.csv. `simulated`: a CPU slot's budget said no, not a device.
    """

    round: int
    phase: str
    attempt: int
    worker: str
    worker_life: int
    step: str
    pid: int | None
    device_uuid: str
    oom_phase: str
    requested_mib: float | None = None
    free_mib: float | None = None
    reserved_mib: float | None = None
    others_mib: float | None = None
    ballast_mib: float | None = None
    holders: str = "{}"
    held_by: str = ""
    predicted_mib: float | None = None
    simulated: bool = False


@dataclass(slots=True)
class ServerRow:
    """servers.csv: one row per server and reading of its metrics; counters are since its start. Empty where a
    server does not say."""

    t_at_s: float
    worker: str
    worker_life: int
    attempt: int
    running: float | None = None
    waiting: float | None = None
    kv_used_share: float | None = None
    preemptions: float | None = None
    prefix_queries: float | None = None
    prefix_hits: float | None = None
    prompt_tokens: float | None = None
    output_tokens: float | None = None


FILES: Mapping[str, type] = {
    "agents.csv": AgentRow,
    "workers.csv": WorkerRow,
    "rounds.csv": RoundRow,
    "ooms.csv": OomRow,
    "gpu.csv": GpuRow,
    "replays.csv": AgentRow,
    "servers.csv": ServerRow,
}


def columns(row_type: type) -> list[str]:
    """Identity first, then the row's own fields: the header of its CSV file."""
    return [f.name for f in fields(Identity)] + [f.name for f in fields(row_type)]


def cell(value: Any) -> Any:
    """A value as CSV holds it: None and NaN empty, floats to the microsecond (9 significant digits)."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.9g}" if isinstance(value, float) else value


class CsvWriter:
    """Writes rows of one type as they come, each with its trial's identity."""

    def __init__(self, path: Path, row_type: type, identity: Identity) -> None:
        # A message may hold half a character, which is no UTF-8: that must not cost the trial.
        self._file = open(path, "w", newline="", encoding="utf-8", errors="backslashreplace")
        self._writer = csv.writer(self._file)
        self._identity = [cell(v) for v in asdict(identity).values()]
        self._names = [f.name for f in fields(row_type)]
        self._writer.writerow(columns(row_type))

    def write(self, row: Any, host: str | None = None) -> None:
        """One row; `host` where it was on another than the trial's own."""
        identity = self._identity if host is None else [*self._identity[:-1], host]
        self._writer.writerow(identity + [cell(getattr(row, n)) for n in self._names])

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def write_csv(
    path: Path,
    row_type: type,
    identity: Identity,
    rows: Iterable[Any],
    host_of: Callable[[Any], str | None] = lambda row: None,
) -> None:
    """A file of rows. `host_of` says which host a row was on, None for the trial's own."""
    writer = CsvWriter(path, row_type, identity)
    try:
        for row in rows:
            writer.write(row, host_of(row))
    finally:
        writer.close()


def canonical_json(value: Any) -> str:
    """One spelling for equal values: sorted keys, no spaces, ASCII. What gets hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
