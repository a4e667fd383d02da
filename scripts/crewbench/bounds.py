"""What bounds each cell while its agents work: serialisation, memory, a busy device or the host's launches.

Pure functions from the tables to the table `bounds`. Of warm rounds alone: loading is another question. The
thresholds and their reasons stand in docs/method.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from crewbench import cells, metrics
from crewbench.engines import ENGINES
from crewbench.ramp import orchestration_share
from crewbench.records import Status
from crewbench.words import number

OVERLAP = 1.25
"""Agents at work at once, on average, up to which the crew is called serial."""

BANDWIDTH_SHARE = 0.5
"""Share of the memory's measured bandwidth, while decoding, from which memory is called the bound."""

BUSY_PCT, IDLE_PCT = 80.0, 50.0
"""Utilisation of the devices (share of time in which a kernel ran) from which they are called busy, and below
which they wait for the host."""

SERIAL, MEMORY, BUSY, LAUNCHES, UNKNOWN = (
    *("serialisation", "memory bandwidth", "a busy device", "the host's launches"),
    "cannot tell",
)
"""Values of the columns `bound` and `each`. A busy device is not called compute: utilisation says that a
kernel ran, not how much of the chip it used."""

COLUMNS = (
    *cells.WHERE,
    *("n", "overlap", "bandwidth_pct", "util_pct", "orchestration_pct", "bound", "each", "why"),
)


@dataclass(frozen=True, slots=True)
class Load:
    """What one cell's warm rounds put on its devices, medians over trials; None: not measured. `overlap` is
    Σ busy intervals of the agents / their union, `bandwidth_pct` the share of a device's bandwidth that
    decoding reads, `util_pct` the mean utilisation of devices in use. `processes` is how many hold a copy on
    one device, at the most."""

    agents: int
    overlap: float | None
    bandwidth_pct: float | None
    util_pct: float | None
    kernels: bool = True
    processes: int = 1


def bound(load: Load) -> tuple[str, str, str]:
    """(what bounds the crew, what bounds an agent while it works, why).

    A crew that works one at a time is bound by serialisation, whatever bounds the one at work."""
    each, why = _each(load)
    if load.agents < 2:
        return each, each, why
    if load.overlap is None:
        return UNKNOWN, each, "when the agents worked is not known; " + why
    if load.overlap <= OVERLAP:
        said = f"{number(load.overlap)} of {load.agents} agents at work at once"
        return SERIAL, each, f"{said}; {why}"
    return each, each, why


def _each(load: Load) -> tuple[str, str]:
    if not load.kernels:
        return UNKNOWN, "a CPU slot has no kernels to launch and no memory of its own"
    share, util = load.bandwidth_pct, load.util_pct
    read = "bandwidth not measured" if share is None else f"{number(share)} % of the bandwidth"
    ran = "utilisation not measured" if util is None else f"a kernel ran {number(util)} % of the time"
    why = f"{read}, {ran}"
    if load.processes > 1:
        # A device runs kernels of one process at a time: it is busy though each leaves most of it unused.
        why += f"; kernels of {load.processes} processes take turns"
    if share is not None and share >= 100 * BANDWIDTH_SHARE:
        return MEMORY, why
    if util is not None and util < IDLE_PCT:
        return LAUNCHES, why
    if share is not None and util is not None and util >= BUSY_PCT:
        return BUSY, why
    return UNKNOWN, why


def table(found: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """A row for each cell with a trial that worked and had a warm round."""
    trials = found["trials"]
    worked = trials[(trials["status"] == Status.OK) & trials["warm_s"].notna()]
    rounds = cells.last_attempts(found["rounds"])
    warm = rounds[rounds["phase"] == "warm"]
    shares = {key: orchestration_share(rows.to_dict("records")) for key, rows in warm.groupby("trial_id")}
    devices = found["devices"][found["devices"]["in_use"]]
    utils = devices.groupby("trial_id")["warm_util_mean_pct"].mean().to_dict()
    processes = _processes(found["agents"], found["workers"])
    rows = []
    for key, group in cells.in_order(worked).groupby(cells.WHERE, observed=True, sort=False):
        cell, ran = dict(zip(cells.WHERE, key, strict=True)), group.to_dict("records")
        who = [t["trial_id"] for t in ran]
        load = Load(
            int(cell["agents"]),
            _median(t["warm_overlap"] for t in ran),
            _median(_bandwidth_pct(t) for t in ran),
            _median(utils.get(w) for w in who),
            set(group["device_kind"]) != {"slot"},
            max((processes.get(w, 1) for w in who), default=1),
        )
        crew, each, why = bound(load)
        orchestration = _median(shares.get(w) for w in who)
        rows.append(
            {
                **cell,
                "n": len(ran),
                "overlap": load.overlap,
                "bandwidth_pct": load.bandwidth_pct,
                "util_pct": load.util_pct,
                "orchestration_pct": None if orchestration is None else 100 * orchestration,
                "bound": crew,
                "each": each,
                "why": why,
            }
        )
    return rows


def _processes(agents: pd.DataFrame, workers: pd.DataFrame) -> dict[str, int]:
    """By trial, how many workers that served its warm rounds share a device, on the device with the most."""
    who = ["trial_id", "attempt", "worker", "worker_life"]
    steps = cells.last_attempts(agents)
    served = steps[steps["phase"] == "warm"][who].drop_duplicates()
    held = served.merge(workers[[*who, "device_uuid"]], on=who)
    a_device = held.groupby(["trial_id", "device_uuid"])["worker"].nunique()
    return a_device.groupby("trial_id").max().to_dict()


def _bandwidth_pct(trial: Mapping[str, Any]) -> float | None:
    """One agent's share of the limit, times the agents that work at once on a device: each reads the weights
    for itself, unless the engine batches, which reads them once for all."""
    share = trial["bandwidth_share"]
    if share is None or share != share:
        return None
    engine = ENGINES.get(trial["engine"])
    if engine is None or engine.batches:
        return 100 * share
    overlap = trial["warm_overlap"]
    if overlap is None or overlap != overlap:
        return None
    return 100 * share * max(1.0, overlap / max(1.0, trial["gpus_used"]))


def _median(values: Iterable[float | None]) -> float | None:
    return metrics.median(v for v in values if v is not None)
