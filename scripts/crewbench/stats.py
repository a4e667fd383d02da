"""Statistics of a few repeats: geometric means, intervals on the log, ratios paired by repeat, comparisons.

The replicate is the trial. What n cannot support is a value too: an Estimate without an interval, or
without a value, that says why. One rule for every interval of a mean: Student's t below BOOTSTRAP_FROM
repeats, from there a bootstrap over trials. Nothing is significant under SIGNIFICANT_FROM repeats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95

ALPHA = 0.05
"""A difference is significant where its corrected p is at most this."""

SIGNIFICANT_FROM = 5
"""Repeats under which no difference is called significant."""

BOOTSTRAP_FROM = 10
"""Repeats from which trials are drawn again instead of taken for normal; under it there are too few."""

RESAMPLES = 9_999
"""Draws of the bootstrap: a p of 0.0001 at the least, 0.05 after Holm's correction over 500 pairs."""

_SEED = 20_051  # of the draws: the same trials give the same interval every time

YES, NO, TOO_FEW = "yes", "no", "too few repeats"
"""What may be said of a difference."""


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
    """exp(mean(ln x)), its interval that of the logarithms' mean (of_mean).

    For positive quantities that vary by factors. One value has no interval; one that is not positive
    makes the mean not estimable."""
    values = list(values)
    if any(v <= 0 for v in values):
        return Estimate(None, None, None, len(values), "a value is not positive: it has no logarithm")
    logs = _interval_of([math.log(v) for v in values], confidence)
    return Estimate(
        *(None if x is None else math.exp(x) for x in (logs.value, logs.low, logs.high)), logs.n, logs.reason
    )


def arithmetic_mean(values: Iterable[float], confidence: float = CONFIDENCE) -> Estimate:
    """mean(x) with its interval (of_mean)."""
    return _interval_of(list(values), confidence)


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


def per_success(spent: Mapping[Hashable, float], succeeded: Mapping[Hashable, float]) -> Estimate:
    """What one success cost: Σ spent / Σ succeeded over trials, those that failed charged to the others.

    The interval is that of a ratio of means (ratio_of_means), cut at 0."""
    if not spent:
        return Estimate(None, None, None, 0, "not measured")
    if not any(succeeded[trial] for trial in spent):
        return Estimate(None, None, None, len(spent), "nothing worked")
    found = ratio_of_means(spent, succeeded)
    low = max(0.0, found.low) if found.has_interval else None
    return Estimate(found.value, low, found.high, found.n, found.reason)


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


def repeats_needed(half_width_pct: float, n: int, goal_pct: float, most: int = 10_000) -> int:
    """The least m at which an interval that n repeats left at `half_width_pct` would be `goal_pct` wide, were
    the spread to stay what it is: t(m - 1) / sqrt(m) <= goal / width · t(n - 1) / sqrt(n). At most `most`."""
    share = (1 + CONFIDENCE) / 2
    allowed = _t_quantile(share, n - 1) / math.sqrt(n) * goal_pct / half_width_pct
    m = n
    while m < most and _t_quantile(share, m - 1) / math.sqrt(m) > allowed:
        m += 1
    return m


# Comparing ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """A ratio with its interval, and `p`: how likely one so far from 1 is where there is no difference, in
    either direction. None where n does not support a claim."""

    ratio: Estimate
    p: float | None


def compare_paired(measured: Mapping[Hashable, float], baseline: Mapping[Hashable, float]) -> Comparison:
    """measured over baseline in the blocks that both have: the geometric mean of the ratios, and the p of its
    logarithm's mean being 0 by the same rule as its interval."""
    common = [block for block in measured if block in baseline]
    ratio = paired(lambda base, ours: ours / base, baseline, measured)
    if len(common) < SIGNIFICANT_FROM or ratio.value is None:
        return Comparison(ratio, None)
    logs = [math.log(measured[block] / baseline[block]) for block in common]
    return Comparison(ratio, float(of_mean(logs).p))


def compare_unpaired(measured: Sequence[float], baseline: Sequence[float]) -> Comparison:
    """measured over baseline of trials that were not run in turn: the ratio of the geometric means with
    Welch's interval on the logarithms (welch). Its n is that of the side with fewer trials."""
    n = min(len(measured), len(baseline))
    if any(v <= 0 for v in (*measured, *baseline)):
        return Comparison(Estimate(None, None, None, n, "a value is not positive: it has no logarithm"), None)
    if n == 0:
        return Comparison(Estimate(None, None, None, 0, "no trial to estimate from"), None)
    ours, theirs = ([math.log(v) for v in side] for side in (measured, baseline))
    if n == 1:
        value = math.exp(math.fsum(ours) / len(ours) - math.fsum(theirs) / len(theirs))
        return Comparison(Estimate(value, None, None, 1, "one trial has no interval"), None)
    found = welch(ours, theirs)
    ratio = Estimate(*(math.exp(x) for x in (found.value, found.low, found.high)), n)
    return Comparison(ratio, float(found.p) if n >= SIGNIFICANT_FROM else None)


def holm(ps: Sequence[float] | np.ndarray) -> np.ndarray:
    """p values corrected so that the chance of one false alarm among all stays what it is for one.

    Shape (..., m), a family along the last axis. The i-th smallest becomes the largest of (m - j + 1) · p_j
    over j <= i, at most 1: Holm, Scand. J. Statist. 6(2), 1979. It assumes nothing about how they depend."""
    import numpy as np

    ps = np.asarray(ps, float)
    order = np.argsort(ps, axis=-1)
    weights = np.arange(ps.shape[-1], 0, -1)
    stepped = np.maximum.accumulate(weights * np.take_along_axis(ps, order, -1), axis=-1)
    corrected = np.empty_like(ps)
    np.put_along_axis(corrected, order, np.minimum(stepped, 1.0), axis=-1)
    return corrected


def corrected(comparisons: Sequence[Comparison]) -> list[float | None]:
    """Holm's p of each comparison of a family; None where one has no p, which is not of the family."""
    known = [c.p for c in comparisons if c.p is not None]
    stepped = iter(holm(known)) if known else iter(())
    return [None if c.p is None else float(next(stepped)) for c in comparisons]


def significant(p: float | None) -> str:
    """What may be said at a corrected p: yes, no, or too few repeats."""
    if p is None:
        return TOO_FEW
    return YES if p <= ALPHA else NO


# Means of studies, one or many at once -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Means:
    """Means with their intervals and the p of each being 0, as arrays: one entry for each study."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


def of_mean(values: Sequence[float] | np.ndarray, confidence: float = CONFIDENCE) -> Means:
    """The mean over the last axis, its interval and p. Shape (..., n), n >= 2: one study or many.

    Below BOOTSTRAP_FROM m ± t · s/√n with Student's t. From there t is the quantile of
    abs(m* - m) / (s*/√n) over RESAMPLES draws of n trials with replacement: the symmetric bootstrap-t (Hall,
    J. R. Stat. Soc. B 50(1), 1988). Student's t stays where more draws have no spread than the interval
    leaves out."""
    import numpy as np

    values = np.asarray(values, float)
    n = values.shape[-1]
    mean = values.mean(axis=-1)
    error = values.std(axis=-1, ddof=1) / math.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(error > 0, np.abs(mean) / error, np.where(mean == 0, 0.0, np.inf))
    factor = np.full(mean.shape, _t_quantile((1 + confidence) / 2, n - 1))
    p = _two_sided(distance, n - 1)
    if n >= BOOTSTRAP_FROM:
        drawn, drawn_p = _bootstrap_t(values, distance, confidence)
        usable = np.isfinite(drawn)
        factor, p = np.where(usable, drawn, factor), np.where(usable, drawn_p, p)
    return Means(mean, mean - factor * error, mean + factor * error, p)


def welch(
    measured: Sequence[float] | np.ndarray,
    baseline: Sequence[float] | np.ndarray,
    confidence: float = CONFIDENCE,
) -> Means:
    """mean(measured) - mean(baseline) over the last axes, of samples that may differ in size and spread.

    Student's t with the degrees of freedom of Welch, Biometrika 34, 1947: (u + v)² / (u²/(a - 1) +
    v²/(b - 1)), u and v the squared standard errors of a and b trials, both at least 2."""
    import numpy as np
    from scipy.special import stdtrit

    sides = [np.asarray(side, float) for side in (measured, baseline)]
    sizes = [side.shape[-1] for side in sides]
    u, v = (side.var(axis=-1, ddof=1) / size for side, size in zip(sides, sizes, strict=True))
    difference = sides[0].mean(axis=-1) - sides[1].mean(axis=-1)
    error = np.sqrt(u + v)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = (u + v) ** 2 / (u**2 / (sizes[0] - 1) + v**2 / (sizes[1] - 1))
        freedom = np.where(error > 0, freedom, 1.0)
        distance = np.where(error > 0, np.abs(difference) / error, np.where(difference == 0, 0.0, np.inf))
    half = stdtrit(freedom, (1 + confidence) / 2) * error
    return Means(difference, difference - half, difference + half, _two_sided(distance, freedom))


def _bootstrap_t(
    values: np.ndarray, distance: np.ndarray, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """The factor of the standard error and the p of each study; infinite where draws have no spread."""
    import numpy as np

    n = values.shape[-1]
    draws = _draws(n)
    flat = values.reshape(-1, n)
    centred = flat - flat.mean(axis=1, keepdims=True)
    distances = distance.reshape(-1)
    factor, p = np.empty(len(flat)), np.empty(len(flat))
    place = math.ceil(confidence * (1 + len(draws)) - 1e-9) - 1  # beyond it p is at most 1 - confidence
    at_once = max(1, 1_000_000 // len(draws))  # a few arrays of 8 MB
    for first in range(0, len(flat), at_once):
        part = slice(first, first + at_once)
        mean = centred[part] @ draws.T / n
        variance = np.maximum((centred[part] ** 2 @ draws.T / n - mean**2) / (n - 1), 0.0)
        # All of one value, but for rounding.
        variance[variance <= 1e-12 * flat[part].var(axis=1, keepdims=True)] = 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = np.abs(mean) / np.sqrt(variance)
        drawn[np.isnan(drawn)] = 0.0
        factor[part] = np.partition(drawn, place, axis=1)[:, place]
        beyond = (drawn >= distances[part, None]).sum(axis=1)
        p[part] = (1 + beyond) / (1 + len(draws))
    return factor.reshape(distance.shape), p.reshape(distance.shape)


@lru_cache(maxsize=8)
def _draws(n: int) -> np.ndarray:
    """How often each of n trials is drawn, in each of the draws: shape (draws, n). Fewer for large n, where
    they are needed less and would not fit."""
    import numpy as np

    draws = max(1_999, min(RESAMPLES, 2_000_000 // n))
    return np.random.default_rng(_SEED).multinomial(n, [1 / n] * n, size=draws).astype(float)


def _two_sided(distance: np.ndarray, freedom: np.ndarray | int) -> np.ndarray:
    """P(abs(t) >= distance) of Student's t."""
    from scipy.special import stdtr

    return 2 * stdtr(freedom, -distance)


def _interval_of(values: list[float], confidence: float) -> Estimate:
    n = len(values)
    if n == 0:
        return Estimate(None, None, None, 0, "no trial to estimate from")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, None, 1, "one trial has no interval")
    found = of_mean(values, confidence)
    return Estimate(mean, float(found.low), float(found.high), n)


@cache
def _t_quantile(share: float, freedom: int) -> float:
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    return float(stdtrit(freedom, share))
