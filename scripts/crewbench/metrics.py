"""The metrics: one pure function each, formula and unit in its docstring, and METRICS that names them.

A function takes plain numbers and gives a number, or None where the metric is not defined for them.
What a trial-level metric means in words stands in METRICS, which tables, figures and report all read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Span = tuple[float, float]
"""(start, end) of something, in seconds on one clock."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What a column of the table `trials` says. `scale` tells statistics where it is symmetric: "log"
    for positive quantities that vary by factors (times, rates), "linear" for shares and counts."""

    name: str
    title: str
    unit: str
    better: Literal["lower", "higher", "neither"]
    scale: Literal["log", "linear"]
    meaning: str


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric(
            "cold_s",
            "Cold makespan",
            "s",
            "lower",
            "log",
            "Round 0 from its first process to its last answer, failed attempts included.",
        ),
        Metric(
            "warm_s",
            "Warm makespan",
            "s",
            "lower",
            "log",
            "One round on workers that are already loaded: the median of the trial's warm rounds.",
        ),
        Metric(
            "replay_s",
            "Replay makespan",
            "s",
            "lower",
            "log",
            "The last warm round's model calls made again without the agents' framework, median.",
        ),
        Metric(
            "warm_over_replay",
            "Warm over replay",
            "×",
            "lower",
            "log",
            "What the agents' framework makes of a round: warm makespan over replay makespan.",
        ),
        Metric(
            "added_ms_per_step",
            "Added by the framework",
            "ms/step",
            "lower",
            "linear",
            "Wall time of a warm step less that of its replay, mean over the crew's steps.",
        ),
        Metric(
            "added_tokens_per_step",
            "Added to the prompt",
            "tokens/step",
            "lower",
            "linear",
            "Prompt ids that are neither the agent's nor the task's own text, mean over the crew's steps.",
        ),
        Metric(
            "added_calls_per_step",
            "Added calls of the model",
            "calls/step",
            "lower",
            "linear",
            "Calls of the model that a step made beyond one, mean over the crew's steps.",
        ),
        Metric(
            "failed_attempts_s",
            "Failed attempts",
            "s",
            "lower",
            "linear",
            "The part of the cold makespan before the attempt that worked started.",
        ),
        Metric(
            "cold_over_warm",
            "Cold over warm",
            "×",
            "lower",
            "log",
            "How many warm rounds one cold round costs.",
        ),
        Metric(
            "cold_ttft_s",
            "Time to first token, cold",
            "s",
            "lower",
            "log",
            "From an agent's turn being asked for to its first token, median over the crew, round 0.",
        ),
        Metric(
            "warm_ttft_s",
            "Time to first token, warm",
            "s",
            "lower",
            "log",
            "The same in the warm rounds.",
        ),
        Metric(
            "cold_tokens_per_s",
            "Crew throughput, cold",
            "tokens/s",
            "higher",
            "log",
            "Output tokens of all agents over the cold makespan.",
        ),
        Metric(
            "warm_tokens_per_s",
            "Crew throughput, warm",
            "tokens/s",
            "higher",
            "log",
            "Output tokens of all agents over the warm makespan.",
        ),
        Metric(
            "decode_tokens_per_s",
            "Decode rate of one agent",
            "tokens/s",
            "higher",
            "log",
            "Tokens after the first over the time they took, median over the warm steps.",
        ),
        Metric(
            "decode_limit_tokens_per_s",
            "Memory-bandwidth limit",
            "tokens/s",
            "neither",
            "log",
            "What one agent's decoding cannot exceed: copy bandwidth of the trial's devices, measured right "
            "after it, over the bytes of weights that a token reads.",
        ),
        Metric(
            "bandwidth_share",
            "Share of the bandwidth limit",
            "share",
            "higher",
            "linear",
            "Decode rate of one agent in the warm rounds over that limit.",
        ),
        Metric(
            "compile_s",
            "Compiling",
            "s",
            "lower",
            "log",
            "In the start of the worker that compiled longest; what it found on disk is the compile cache.",
        ),
        Metric(
            "cold_overlap",
            "Agents at work at once, cold",
            "agents",
            "neither",
            "linear",
            "Busy time of all agents over the time in which at least one was busy, round 0.",
        ),
        Metric(
            "warm_overlap",
            "Agents at work at once, warm",
            "agents",
            "neither",
            "linear",
            "The same in the warm rounds.",
        ),
        Metric(
            "cold_gpu_s",
            "GPU-seconds, cold",
            "GPU s",
            "lower",
            "log",
            "GPUs in use times seconds in round 0, and in every round of the attempts that failed before it.",
        ),
        Metric(
            "warm_gpu_s",
            "GPU-seconds, warm",
            "GPU s",
            "lower",
            "log",
            "GPUs in use times the warm makespan.",
        ),
        Metric(
            "energy_j",
            "Energy",
            "J",
            "lower",
            "log",
            "Of all assigned devices, from the first round's start to the last one's end.",
        ),
        Metric(
            "peak_mib",
            "Fullest device",
            "MiB",
            "lower",
            "linear",
            "Peak memory in use on the device that had the highest peak; never a sum over devices.",
        ),
        Metric(
            "util_pct",
            "Mean utilisation",
            "%",
            "neither",
            "linear",
            "Utilisation over all rounds, mean of the devices that were in use.",
        ),
        Metric(
            "unexplained_pct",
            "Unexplained",
            "%",
            "lower",
            "linear",
            "The worst round's time that no stage explains, as a share of its makespan.",
        ),
        Metric(
            "gpus_used",
            "GPUs used",
            "GPUs",
            "lower",
            "linear",
            "Devices that the attempt which worked had.",
        ),
    )
}
"""The trial-level metrics in the order of the tables."""


def makespan_s(spans: Iterable[Span]) -> float | None:
    """max(end) - min(start) over all spans, in seconds; None without any."""
    spans = list(spans)
    if not spans:
        return None
    return max(end for _, end in spans) - min(start for start, _ in spans)


def busy_s(spans: Iterable[Span]) -> float:
    """Length of the union of the spans, in seconds: the time in which at least one was under way."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def overlap(spans: Iterable[Span]) -> float | None:
    """Σ(end - start) / busy_s: how many agents worked at once, on average, while any did.

    1 is plain serialisation, the number of agents is perfect overlap; None where nothing ran."""
    spans = list(spans)
    busy = busy_s(spans)
    return sum(end - start for start, end in spans) / busy if busy > 0 else None


def decode_tokens_per_s(output_tokens: int, llm_calls: int, decode_s: float) -> float | None:
    """(output_tokens - llm_calls) / decode_s, in tokens/s: the first token of each call belongs to prefill.

    The inverse of MLPerf's time per output token, (latency - ttft) / (tokens - 1), over calls."""
    return (output_tokens - llm_calls) / decode_s if decode_s > 0 and output_tokens > llm_calls else None


def decode_limit_tokens_per_s(bandwidth_gb_s: float, read_bytes: int) -> float | None:
    """bandwidth · 10^9 / read_bytes, in tokens/s: no decoding of one sequence is faster.

    Each token reads `read_bytes` of weights, and at batch 1 that is what bounds it: the roofline's slope
    (Williams, Waterman and Patterson, CACM 52(4), 2009). Reads of the KV cache are left out, so the true
    limit is a little lower. A copy spread over devices by layers has the limit of one, because they work in
    turn; one that they read together has that of their sum."""
    return bandwidth_gb_s * 1e9 / read_bytes if read_bytes > 0 and bandwidth_gb_s > 0 else None


def bandwidth_share(decode: float, limit: float) -> float | None:
    """decode rate / limit, both in tokens/s: 1 is as fast as memory can be read."""
    return decode / limit if limit > 0 else None


def crew_tokens_per_s(output_tokens: int, makespan: float) -> float | None:
    """Output tokens of the whole crew / makespan, in tokens/s."""
    return output_tokens / makespan if makespan > 0 else None


def speedup(baseline_s: float, measured_s: float) -> float | None:
    """baseline_s / measured_s: 2 is twice as fast as the baseline."""
    return baseline_s / measured_s if measured_s > 0 else None


def scaling_efficiency(few_gpus: int, few_s: float, many_gpus: int, many_s: float) -> float | None:
    """(few_gpus · few_s) / (many_gpus · many_s): 1 is perfect scaling, 0.5 wastes half of the GPUs added.

    With few_gpus = 1 this is the usual speed-up over GPUs, T1 / (g · Tg)."""
    return few_gpus * few_s / (many_gpus * many_s) if many_gpus * many_s > 0 else None


def gpu_seconds(attempts: Iterable[tuple[int, float]]) -> float:
    """Σ gpus · seconds over (gpus, seconds) of each attempt, in GPU s: what the crew kept busy or blocked."""
    return sum(gpus * seconds for gpus, seconds in attempts)


def failure_at_most_pct(worked: int, confidence: float = 0.95) -> float:
    """100 · (1 - (1 - confidence)^(1/k)), in %: what the chance to fail may still be after k of k worked.

    The one-sided exact bound of Clopper and Pearson, Biometrika 26, 1934, without a failure."""
    return 100.0 * (1 - (1 - confidence) ** (1 / worked))


def joules_per_token(energy_j: float, output_tokens: int) -> float | None:
    """energy / output tokens, in J/token."""
    return energy_j / output_tokens if output_tokens > 0 else None


def share_pct(part: float, whole: float) -> float | None:
    """100 · part / whole, in %."""
    return 100.0 * part / whole if whole > 0 else None


def median(values: Iterable[float | None]) -> float | None:
    """The middle value, or the mean of the two middle ones, of those that are not None; None if none is."""
    known = sorted(v for v in values if v is not None and not math.isnan(v))
    if not known:
        return None
    middle = len(known) // 2
    return known[middle] if len(known) % 2 else (known[middle - 1] + known[middle]) / 2


def time_mean(at_s: Sequence[float], values: Sequence[float]) -> float | None:
    """Mean over time of a sampled quantity by the trapezoidal rule: a late sample weighs what it covers.

    `at_s` ascends, in seconds. One sample is its own mean; None without samples."""
    if len(at_s) == 0:
        return None
    covered = at_s[-1] - at_s[0]
    if covered <= 0:
        return float(values[-1])
    import numpy as np  # a trial has tens of thousands of samples

    return float(np.trapezoid(values, at_s) / covered)
