"""What fits: agents x devices x context, each point measured, predicted or refuted: the table `feasibility`.

The prediction is the simulator's (simulate.peak_memory) with a checkpoint's own sizes
(checkpoint/footprint.py): a copy's weights, the KV cache of the sequences that it may have in flight, and a
GPU's context. Simulated slot budgets confirm and refute nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crewbench import cells
from crewbench.certificates import GROUP, Seen, seen
from crewbench.checkpoint import footprint
from crewbench.checkpoint.manifest import NAME, Manifest
from crewbench.matrix import skip_reason
from crewbench.modes import MODES
from crewbench.simulate import Costs, peak_memory
from crewbench.trial import Cell

MEASURED, PREDICTED, REFUTED, SIMULATED = "measured", "predicted", "refuted", "simulated budget"
FITS, NOT, SOMETIMES, NOT_RUN = "yes", "no", "sometimes", "not run"

LONGER = (4_096, 16_384, 32_768)
"""Contexts in tokens that are predicted beside the measured one, as far as the model has positions."""

COLUMNS = (
    *(*GROUP, "gpus", "context_tokens", "outcome", "fits", "worked", "trials", "peak_mib"),
    *("predicted_fits", "predicted_peak_mib", "memory_mib", "device_name"),
)


@dataclass(frozen=True, slots=True)
class Ground:
    """What a group's points share: `context_tokens` is the longest sequence that its trials met, `memory_mib`
    what each device has, `kind` gpu or slot."""

    context_tokens: int
    memory_mib: float
    dtype: str
    kind: str
    device_name: str


def grounds(glimpses: Iterable[tuple[tuple, int | None, Ground]]) -> dict[tuple, Ground]:
    """The ground of each group, from (its GROUP values, the longest sequence of a trial, the rest) of every
    trial. Where no trial of a group came to run, its context is that of its mode, or of the study."""
    by_group: dict[tuple, Ground] = {}
    longest: dict[tuple, int] = {}
    for key, tokens, ground in glimpses:
        by_group.setdefault(key, ground)
        if tokens:
            for of in (key, key[:1], ()):
                longest[of] = max(longest.get(of, 0), tokens)
    return {
        key: replace(
            ground,
            context_tokens=next(
                (longest[k] for k in (key, key[:1], ()) if k in longest), ground.context_tokens
            ),
        )
        for key, ground in by_group.items()
    }


def model_of(directory: str | Path | None) -> Manifest | None:
    """The sizes of the checkpoint whose manifest lies in `directory`; None where it is not there. Its weights
    need not be."""
    try:
        data = json.loads((Path(directory or "") / NAME).read_text(encoding="utf-8"))
        return Manifest(**{**data, "files": tuple(data["files"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def contexts(ground: Ground, model: Manifest) -> list[int]:
    """The measured context, and those of LONGER that the model has positions for."""
    most = int(model.architecture.get("max_position_embeddings") or max(LONGER))
    return [ground.context_tokens, *(c for c in LONGER if ground.context_tokens < c <= most)]


def predicted_peak_mib(cell: Cell, ground: Ground, model: Manifest, context_tokens: int) -> float:
    """MiB on the fullest device of the cell's last attempt, with sequences of `context_tokens`."""
    deployment = list(MODES[cell.mode].attempts(cell))[-1]
    costs = Costs(
        start_s=0.0,
        step_s=0.0,
        stop_s=0.0,
        weights_mib=footprint.weights_bytes(model, ground.dtype) / footprint.MIB,
        sequence_mib=footprint.kv_mib(model, context_tokens, dtype=ground.dtype),
        context_mib=footprint.CUDA_CONTEXT_MIB if ground.kind == "gpu" else 0.0,
        device_mib=ground.memory_mib,
    )
    return max(peak_memory(deployment, costs).values())


def points(
    trials: Sequence[Mapping[str, Any]],
    attempts: Iterable[Mapping[str, Any]],
    ground: Mapping[tuple, Ground],
    options: Mapping[str, Mapping[str, Any]],
    model: Manifest | None,
    devices: int,
) -> list[dict[str, Any]]:
    """One row for each point: those that were measured, and around them every number of devices up to
    `devices`, every number of agents of the study, and LONGER contexts, predicted. `ground` is by group;
    without `model` nothing is predicted."""
    peaks: dict[tuple, list[float]] = {}
    for trial in trials:
        # A search's peak may be that of an attempt on fewer devices, which it gave up.
        once = trial["attempts"] == 1
        if once and trial["peak_mib"] is not None and trial["gpus_used"] is not None:
            at = (*(trial[name] for name in GROUP), int(trial["gpus_used"]))
            peaks.setdefault(at, []).append(trial["peak_mib"])
    measured = seen(trials, attempts, ())
    rows = [
        _measured(
            key, gpus, found, max(peaks.get((*key, gpus), ()), default=None), ground[key], options, model
        )
        for key, by_gpus in measured.items()
        for gpus, found in sorted(by_gpus.items())
    ]
    if model is not None:
        crews = sorted({int(t["agents"]) for t in trials})
        for key in measured:
            rows += _around(key, measured, ground[key], options, model, crews, devices)
    return rows


def _around(
    key: tuple,
    measured: Mapping[tuple, Mapping[int, Seen]],
    ground: Ground,
    options: Mapping[str, Mapping[str, Any]],
    model: Manifest,
    crews: Sequence[int],
    devices: int,
) -> Iterator[dict[str, Any]]:
    """The points around one group that were not measured. Crews that the mode was not measured with are
    predicted beside its largest one."""
    group = dict(zip(GROUP, key, strict=True))
    if ground.kind != "gpu" or group["mode"] not in MODES or cells.searches(group["mode"]):
        return
    own = [dict(zip(GROUP, other, strict=True)) for other in measured]
    mine = {int(o["agents"]) for o in own if {**o, "agents": 0} == {**group, "agents": 0}}
    others = set(crews) - mine if group["agents"] == max(mine) else set()
    lengths = contexts(ground, model)
    for agents in sorted({int(group["agents"]), *others}):
        for gpus in range(1, devices + 1):
            cell = cell_of({**group, "agents": agents}, gpus, options)
            if skip_reason(cell, ground.kind):
                continue
            for context in lengths:
                if agents == group["agents"] and context == lengths[0] and gpus in measured[key]:
                    continue
                peak = predicted_peak_mib(cell, ground, model, context)
                fits = FITS if peak <= ground.memory_mib else NOT
                yield {
                    **_point({**group, "agents": agents}, gpus, context, ground),
                    **{
                        "outcome": PREDICTED,
                        "fits": fits,
                        "predicted_fits": fits,
                        "predicted_peak_mib": peak,
                    },
                }


def cell_of(group: Mapping[str, Any], gpus: int, options: Mapping[str, Mapping[str, Any]]) -> Cell:
    """The cell of a group (its certificates.GROUP) on so many devices; `options` are the variants'."""
    return Cell(
        group["mode"],
        gpus,
        int(group["agents"]),
        group["engine"],
        group["start"],
        group["variant"],
        dict(options.get(group["variant"], {})),
    )


def _point(group: Mapping[str, Any], gpus: int, context: int, ground: Ground) -> dict[str, Any]:
    return {
        **dict.fromkeys(COLUMNS),
        **group,
        **{"gpus": gpus, "context_tokens": context, "worked": 0, "trials": 0},
        **{"memory_mib": ground.memory_mib, "device_name": ground.device_name, "predicted_fits": ""},
    }


def _measured(
    key: tuple,
    gpus: int,
    found: Seen,
    peak_mib: float | None,
    ground: Ground,
    options: Mapping[str, Mapping[str, Any]],
    model: Manifest | None,
) -> dict[str, Any]:
    group = dict(zip(GROUP, key, strict=True))
    fits = FITS if found.fits else NOT if found.too_few else SOMETIMES if found.worked else NOT_RUN
    row = {
        **_point(group, gpus, ground.context_tokens, ground),
        **{"outcome": MEASURED, "fits": fits, "worked": found.worked, "trials": len(found.statuses)},
        "peak_mib": peak_mib,
    }
    if ground.kind != "gpu":
        return {**row, "outcome": SIMULATED}
    if model is None or group["mode"] not in MODES:
        return row
    peak = predicted_peak_mib(cell_of(group, gpus, options), ground, model, ground.context_tokens)
    predicted = FITS if peak <= ground.memory_mib else NOT
    refuted = fits in (FITS, NOT) and fits != predicted
    return {
        **row,
        **{"predicted_peak_mib": peak, "predicted_fits": predicted},
        "outcome": REFUTED if refuted else MEASURED,
    }
