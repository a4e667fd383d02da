"""A trial whose attempts run in an allocation each: the next one asks the cluster for more devices, and only
after the one before ran out of memory (variant option `allocation: attempt`).

Every allocation runs one attempt and writes a trial's whole set of files. The one that ends the search joins
them: rows of all attempts, on one axis of time from which the waiting between allocations is left out.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from crewbench.attempts import following, kept
from crewbench.execute.host import finish, run_trial
from crewbench.modes import MODES
from crewbench.records import FILES, Status, cell
from crewbench.trial import MORE, Spec

ASKS_FOR_MORE = 75
"""The exit code of a trial that ran out of memory and has a larger allocation to try: the one out-of-memory
that does not end with 0. EX_TEMPFAIL of sysexits.h."""


def run_next(
    spec: Spec, out: Path, place: Path, scratch: Path, root: Path, stage_in: Path | None = None
) -> int:
    """Run the attempt that follows those kept in `place`, if the search goes on. Returns the exit code, 0
    once `out` holds the trial."""
    (place / MORE).unlink(missing_ok=True)
    attempts = list(MODES[spec.cell.mode].attempts(spec.cell))
    before = kept(place)
    number = following(before, len(attempts))
    if number is None:  # an earlier call ended while it joined them
        return end(before, out, place)
    here = place / str(number)
    status = run_trial(spec, here, scratch, root, stage_in, only=number)
    if status is Status.OOM and number < len(attempts):
        had, wants = (len(attempts[n].devices) for n in (number - 1, number))
        said = f"{spec.trial_id} ran out of memory on {had} and asks for {wants}"
        (place / MORE).write_text(said, encoding="utf-8")
        print(said, file=sys.stderr)
        return ASKS_FOR_MORE
    return end([*before, here], out, place)


def end(parts: Sequence[Path], out: Path, place: Path) -> int:
    """Join the attempts of a search that has ended, and keep them no longer. Returns the exit code."""
    join(parts, out)
    # In one step: a part of them, left by a removal that was cut short, would be taken for all.
    over = place.with_name(f"{place.name}.joined")
    shutil.rmtree(over, ignore_errors=True)
    place.rename(over)
    shutil.rmtree(over)
    return 0


def join(parts: Sequence[Path], out: Path) -> None:
    """Write one trial of those of its allocations, in order. Their rounds adjoin: what lies between them, the
    queue and the start of the next allocation, is in no round and in no instant."""
    out.mkdir(parents=True, exist_ok=True)
    records = [json.loads((part / "trial.json").read_text(encoding="utf-8")) for part in parts]
    spans = [_span(part) for part in parts]
    shifts = [0.0]
    for (_, ended), (begins, _) in zip(spans, spans[1:], strict=False):
        shifts.append(shifts[-1] + ended - begins)
    for name in FILES:
        rows = _samples if name == "gpu.csv" else _rows
        with (out / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(_header(parts[0] / name))
            writer.writerows(rows(name, parts, shifts, spans))
    with (out / "outputs.jsonl").open("w", encoding="utf-8") as file:
        for part, shift in zip(parts, shifts, strict=True):
            for line in (part / "outputs.jsonl").read_text(encoding="utf-8").splitlines():
                output = json.loads(line)
                output["token_at_s"] = [[t + shift for t in call] for call in output["token_at_s"]]
                file.write(json.dumps(output, sort_keys=True, separators=(",", ":")) + "\n")
    finish(out, together(records, shifts))


def together(records: Sequence[Mapping[str, Any]], shifts: Sequence[float]) -> dict[str, Any]:
    """The trial.json of a trial from those of its allocations: the last one's, with what the others add."""
    last, anchor = records[-1], records[-1]["anchor"]
    sampled = {key: [r["sampler"].get(key) for r in records] for key in ("samples", "late", "errors")}
    return {
        **last,
        "anchor": anchor | {k: anchor[k] - shifts[-1] for k in ("zero_monotonic_s", "zero_wall_s")},
        "devices": list({d["uuid"]: d for r in records for d in r["devices"]}.values()),
        "allocations": [
            {**allocation, "attempt": number, "shift_s": shift}
            for number, (record, shift) in enumerate(zip(records, shifts, strict=True), 1)
            for allocation in record["allocations"]
        ],
        "bandwidth_gb_s": _merged(r["bandwidth_gb_s"] for r in records),
        "compile_cache": (last.get("compile_cache") or {})
        | _made(r.get("compile_cache") or {} for r in records),
        "workers": _merged(r["workers"] for r in records),
        "lease_waited_s": sum(r["lease_waited_s"] for r in records),
        "sampler": last["sampler"]
        | {key: None if None in values else sum(values) for key, values in sampled.items()},
        "pressure": {key: sum(r["pressure"].get(key, 0.0) for r in records) for key in last["pressure"]},
        "taints": list(dict.fromkeys(taint for r in records for taint in r["taints"])),
    }


def _merged(parts: Iterator[Mapping[str, Any] | None]) -> dict[str, Any]:
    return {key: value for part in parts for key, value in (part or {}).items()}


def _made(caches: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What was made before the clock of any allocation: the seconds in all, and how the last one ended."""
    done = [cache for cache in caches if cache.get("made")]
    return {"made": done[-1]["made"], "made_s": sum(c["made_s"] for c in done)} if done else {}


def _header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file))


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _span(part: Path) -> tuple[float, float]:
    """From the first round's start to the last one's end, on the allocation's own clock."""
    rounds = _read(part / "rounds.csv")
    return min(float(r["started_at_s"]) for r in rounds), max(float(r["ended_at_s"]) for r in rounds)


def _shifted(row: Mapping[str, str], shift_s: float) -> list[Any]:
    return [
        cell(float(value) + shift_s) if name.endswith("_at_s") and value else value
        for name, value in row.items()
    ]


def _rows(
    name: str, parts: Sequence[Path], shifts: Sequence[float], spans: Sequence[tuple[float, float]]
) -> Iterator[list[Any]]:
    for part, shift in zip(parts, shifts, strict=True):
        for row in _read(part / name):
            yield _shifted(row, shift)


def _samples(
    name: str, parts: Sequence[Path], shifts: Sequence[float], spans: Sequence[tuple[float, float]]
) -> Iterator[list[Any]]:
    """The samples of each allocation's rounds, so that none stands in the time of another one's; before the
    first and after the last, too. A device's energy counts on from one allocation to the next."""
    counted: dict[str, float] = {}
    for number, (part, shift, (begins, ended)) in enumerate(zip(parts, shifts, spans, strict=True)):
        first, last = number == 0, number == len(parts) - 1
        base = dict(counted)
        zero: dict[str, float] = {}
        for row in _read(part / name):
            at = float(row["t_at_s"])
            if (at < begins and not first) or (at > ended and not last):
                continue
            if row["energy_j"]:
                uuid, energy = row["device_uuid"], float(row["energy_j"])
                counted[uuid] = base.get(uuid, 0.0) + energy - zero.setdefault(uuid, 0.0 if first else energy)
                row["energy_j"] = cell(counted[uuid])
            yield _shifted(row, shift)
