"""Numbers, estimates and statuses as a reader says them: the same in figures, verdict and report."""

from __future__ import annotations

import math

from crewbench.records import Status
from crewbench.stats import Estimate

_ENDED = {
    Status.OK: "worked",
    Status.OOM: "out of memory",
    Status.TIMEOUT: "timed out",
    Status.ERROR: "failed",
    Status.CANCELLED: "cancelled",
    Status.SKIPPED: "skipped",
}

_WIDE = "very wide"


def ended(status: str) -> str:
    """How something ended: "out of memory"."""
    return _ENDED.get(status, str(status))


def number(value: float | None) -> str:
    """Three significant digits, whole from 1,000: "1,234", "12.3", "0.0123"; a dash for what is not known."""
    if value is None or math.isnan(value):
        return "–"
    rounded = float(f"{value:.3g}")
    if rounded == 0:
        return "0"
    if abs(rounded) < 0.001:
        return f"{value:.2e}"
    digits = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{value:,.{digits}f}"


def seconds(value: float | None) -> str:
    """A duration: "2.05 s"."""
    if value is None or math.isnan(value):
        return "not measured"
    return f"{number(value)} s"


def interval(estimate: Estimate) -> str:
    """Its interval "[2.01, 2.09]", or why there is none. One of a factor over 100 says only that."""
    if estimate.has_interval:
        if estimate.low > 0 and estimate.high > 100 * estimate.low:
            return _WIDE
        return f"[{number(estimate.low)}, {number(estimate.high)}]"
    return f"({estimate.reason})"


def estimate(found: Estimate, unit: str) -> str:
    """ "2.05 s [2.01, 2.09]", or "not estimable" with the reason."""
    if found.value is None:
        return f"not estimable ({found.reason})"
    words = interval(found)
    return f"{number(found.value)} {unit} {f'({words} interval)' if words == _WIDE else words}"


def count(how_many: int, noun: str) -> str:
    """ "1 trial", "2,000 trials"."""
    return f"{how_many:,} {noun}" if how_many == 1 else f"{how_many:,} {noun}s"


def p_value(p: float | None) -> str:
    """ "0.034", "< 0.001", or nothing where there is none."""
    if p is None or math.isnan(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
