"""The manifest and the trials that it lists, each file checked against the hash in its trial.json.

Rows describe themselves: nothing is read from a path or a name, and no directory is walked. What does not
match stops everything with the file's name and the remedy.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.csv

from crewbench import inert
from crewbench.records import (
    FILES,
    AgentRow,
    GpuRow,
    Identity,
    OomRow,
    RoundRow,
    ServerRow,
    WorkerRow,
    columns,
)

OUTPUTS = "outputs.jsonl"
IDENTITY = [f.name for f in fields(Identity)]
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
def types_of(row_type: type) -> list[tuple[str, type, bool]]:
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
    skip, types, rows = len(IDENTITY), types_of(row_type), []
    for texts in reader:
        if len(texts) != skip + len(types):
            raise ValueError(f"line {reader.line_num} has {len(texts)} cells, not {skip + len(types)}")
        values = []
        for (name, kind, optional), text in zip(types, texts[skip:], strict=True):
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
