"""What a trial's servers say of themselves: requests running and waiting, KV cache, preemptions, prefix hits.

Readings (servers.csv) count until the last round's end; what replays add is left out. A server that gives no
metrics has a row that says so, and no zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crewbench import metrics
from crewbench.records import RoundRow, ServerRow, WorkerRow
from crewbench.runners import RUNNERS, RunnerInfo

GAUGES = ("running", "waiting", "kv_used_share")
COUNTERS = ("preemptions", "prefix_queries", "prefix_hits")
COLUMNS = (
    *("worker", "worker_life", "readings"),
    *(f"{name}_{how}" for name in GAUGES for how in ("mean", "peak")),
    *COUNTERS,
    *("prefix_hit_pct", "note"),
)
"""What the table `serving` says of a server besides its trial."""


def of_trial(
    rounds: Sequence[RoundRow],
    workers: Sequence[WorkerRow],
    readings: Sequence[ServerRow],
    runners: Mapping[str, RunnerInfo] = RUNNERS,
) -> list[dict[str, Any]]:
    """A row for each server of a trial's last attempt; none where no worker is one.

    A gauge has its mean over time (trapezoids) and its peak; a counter what it had reached at the last
    round's end; prefix_hit_pct = 100 · prefix_hits / prefix_queries, both in tokens."""
    last = max((r.attempt for r in rounds), default=0)
    end_s = max((r.ended_at_s for r in rounds if r.attempt == last), default=0.0)
    servers = dict.fromkeys(
        (w.worker, w.worker_life)
        for w in workers
        if w.attempt == last and w.runner in runners and runners[w.runner].metrics
    )
    rows = []
    for worker, life in servers:
        ours = [r for r in readings if (r.attempt, r.worker, r.worker_life) == (last, worker, life)]
        rows.append({"worker": worker, "worker_life": life, **_summary(ours, end_s)})
    return rows


def _summary(readings: Sequence[ServerRow], end_s: float) -> dict[str, Any]:
    before = [r for r in readings if r.t_at_s <= end_s]
    row: dict[str, Any] = {"readings": len(before)}
    for name in GAUGES:
        known = [(r.t_at_s, value) for r in before if (value := getattr(r, name)) is not None]
        row[f"{name}_mean"] = metrics.time_mean(*zip(*known, strict=True)) if known else None
        row[f"{name}_peak"] = max((value for _, value in known), default=None)
    for name in COUNTERS:
        row[name] = at(end_s, [(r.t_at_s, v) for r in readings if (v := getattr(r, name)) is not None])
    queries, hits = row["prefix_queries"], row["prefix_hits"]
    row["prefix_hit_pct"] = metrics.share_pct(hits, queries) if queries and hits is not None else None
    row["note"] = "" if readings else "not measured: the server gives no metrics"
    return row


def at(instant_s: float, seen: Sequence[tuple[float, float]]) -> float | None:
    """A counter at an instant, on a straight line between the readings around it; None without readings.

    `seen` are (second, count), ascending. Before the first and after the last, that one's count."""
    if not seen:
        return None
    earlier = [reading for reading in seen if reading[0] <= instant_s]
    later = [reading for reading in seen if reading[0] > instant_s]
    if not earlier or not later:
        return (earlier or later)[-1 if earlier else 0][1]
    (begin, low), (end, high) = earlier[-1], later[0]
    return low + (high - low) * (instant_s - begin) / (end - begin)
