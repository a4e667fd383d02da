"""Statistics of a few repeats: geometric means, intervals on the log, ratios paired by repeat.

The replicate is the trial. What n cannot support is a value too: an Estimate without an interval, or
without a value, that says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval, from `n` trials. None means not estimable; `reason` says why."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str = ""

    @property
    def has_interval(self) -> bool:
        return self.low is not None and self.high is not None

    @property
    def half_width_pct(self) -> float | None:
        """Half the interval as a share of the value, in %."""
        if not self.has_interval or not self.value:
            return None
        return 100.0 * (self.high - self.low) / 2 / abs(self.value)


def geometric_mean(values: Iterable[float], confidence: float = CONFIDENCE) -> Estimate:
    """exp(mean(ln x)) with the interval exp(m ± t · s/√n), t of Student with n - 1 degrees of freedom.

    For positive quantities that vary by factors. One value has no interval; one that is not positive
    makes the mean not estimable."""
    values = list(values)
    if any(v <= 0 for v in values):
        return Estimate(None, None, None, len(values), "a value is not positive: it has no logarithm")
    logs = _t_interval([math.log(v) for v in values], confidence)
    return Estimate(
        *(None if x is None else math.exp(x) for x in (logs.value, logs.low, logs.high)), logs.n, logs.reason
    )


def arithmetic_mean(values: Iterable[float], confidence: float = CONFIDENCE) -> Estimate:
    """mean(x) with the interval m ± t · s/√n, t of Student with n - 1 degrees of freedom."""
    return _t_interval(list(values), confidence)


def paired(
    ratio: Callable[[float, float], float | None],
    baseline: Mapping[Hashable, float],
    measured: Mapping[Hashable, float],
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Geometric mean of ratio(baseline, measured) over the blocks that both have, with its interval.

    A block is a repeat on one host: what differs between blocks cancels, and n counts the pairs. Without a
    common block the ratio is not estimable, because cells of different hosts are never paired."""
    ratios = [ratio(baseline[block], measured[block]) for block in measured if block in baseline]
    if not ratios:
        return Estimate(None, None, None, 0, "no repeat in common on one host")
    return geometric_mean([r for r in ratios if r is not None], confidence)


def differences(
    measured: Mapping[Hashable, float], baseline: Mapping[Hashable, float]
) -> dict[Hashable, float]:
    """measured - baseline in each block (a repeat on one host) that both have."""
    return {block: measured[block] - baseline[block] for block in measured if block in baseline}


def ratio_of_means(
    numerators: Mapping[Hashable, float],
    denominators: Mapping[Hashable, float],
    confidence: float = CONFIDENCE,
) -> Estimate:
    """mean(x) / mean(y) over the blocks that both have, with Fieller's interval for paired values.

    The interval holds every r for which the mean of x - r·y is not told apart from 0 by Student's t with
    n - 1 degrees of freedom: between the roots of A·r² - 2B·r + C, A = ȳ² - t²·s_yy/n, B = x̄·ȳ - t²·s_xy/n,
    C = x̄² - t²·s_xx/n (Fieller, J. R. Stat. Soc. B 16(2), 1954). It is bounded only where the interval of
    mean(y) leaves 0 out; else the ratio has no interval, and the reason says so."""
    pairs = [(numerators[block], denominators[block]) for block in numerators if block in denominators]
    n = len(pairs)
    if not pairs:
        return Estimate(None, None, None, 0, "no repeat in common on one host")
    x, y = (math.fsum(side) / n for side in zip(*pairs, strict=True))
    if y == 0:
        return Estimate(None, None, None, n, "what it is divided by is 0")
    if n == 1:
        return Estimate(x / y, None, None, 1, "one trial has no interval")
    xx, yy, xy = (
        math.fsum((p[i] - m) * (p[j] - k) for p in pairs) / (n - 1)
        for i, m, j, k in ((0, x, 0, x), (1, y, 1, y), (0, x, 1, y))
    )
    wide = _t_quantile((1 + confidence) / 2, n - 1) ** 2 / n
    a, b, c = y * y - wide * yy, x * y - wide * xy, x * x - wide * xx
    if a <= 0:
        return Estimate(x / y, None, None, n, "the interval of what it is divided by includes 0")
    half = math.sqrt(max(0.0, b * b - a * c))
    return Estimate(x / y, (b - half) / a, (b + half) / a, n)


def percentile(values: Iterable[float], share: float) -> Estimate:
    """The smallest value that `share` (0 < share < 1) of the values do not exceed.

    n supports it from `percentile_minimum` on; below, it is not estimable."""
    values = sorted(values)
    needed = percentile_minimum(share)
    if len(values) < needed:
        return Estimate(None, None, None, len(values), f"p{100 * share:g} needs {needed} trials")
    return Estimate(values[math.ceil(share * len(values)) - 1], None, None, len(values))


def percentile_minimum(share: float, confidence: float = 0.99) -> int:
    """The least n whose largest value lies beyond the percentile: 1 - shareⁿ ≥ confidence.

    44 for p90 and 459 for p99: the case without an exceedance of MLPerf Inference's early stopping."""
    if not 0 < share < 1:
        raise ValueError(f"a percentile's share lies between 0 and 1, not {share}")
    return math.ceil(math.log(1 - confidence) / math.log(share))


def _t_interval(values: list[float], confidence: float) -> Estimate:
    n = len(values)
    if n == 0:
        return Estimate(None, None, None, 0, "no trial to estimate from")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, None, 1, "one trial has no interval")
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = _t_quantile((1 + confidence) / 2, n - 1) * deviation / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


@cache
def _t_quantile(share: float, freedom: int) -> float:
    from scipy.stats import t  # importing scipy takes a second

    return float(t.ppf(share, freedom))
