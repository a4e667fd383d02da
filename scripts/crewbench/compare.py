"""Two results cell by cell: what got slower, what may be claimed of it, and what else differs between them.

Plain data in and out, but for `find` and `read`. The trials of two results were not run in turn, so they are
compared as independent samples (Welch on the logarithms) from 5 repeats on, and only on the same kind of
machine; where one host ran both in turn they are paired by repeat. docs/method.md says why.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crewbench import cells, inert, stats
from crewbench.metrics import METRICS
from crewbench.records import Status
from crewbench.stats import SIGNIFICANT_FROM, Comparison, Estimate
from crewbench.words import count, number, p_value

REFERENCE = Path("results/reference")

CELL = tuple(name for name in cells.WHERE if name != "host")
"""What two rows must have in common to be the same cell; hosts may differ."""

DEFAULT = ("cold_s", "warm_s")
WORKED = "worked"

SAME, REGRESSED, NOT_COMPARABLE = 0, 1, 2
"""Exit codes."""

WORSE, BETTER, NOT_APART = "worse", "better", "not told apart"
PAIRED, UNPAIRED = "paired by repeat", "independent"

COLUMNS = (
    *(*CELL, "metric", "host_a", "host_b", "how", "a", "b", "n_a", "n_b"),
    *("ratio", "low", "high", "p", "p_corrected", "verdict", "reason"),
)


class CompareError(ValueError):
    """Results that cannot be read, with the remedy."""


@dataclass(frozen=True, slots=True)
class Result:
    """One result as read: the rows of `trials`, `facts` of each host by key (a fact may have had several
    values), and the manifest's config, model and crew (empty where it is not there)."""

    name: str
    trials: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Mapping[str, frozenset[str]]]
    config: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    crew: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """One cell and metric. `a` and `b` are geometric means (of `worked`: shares), the ratio is b over a;
    `reason` says why nothing is claimed, where nothing is."""

    cell: Mapping[str, Any]
    metric: str
    host_a: str
    host_b: str
    how: str
    a: float | None
    b: float | None
    n_a: int
    n_b: int
    found: Comparison
    p_corrected: float | None = None
    verdict: str = ""
    reason: str = ""

    @property
    def compared(self) -> bool:
        return self.verdict in (WORSE, BETTER, NOT_APART)

    def record(self) -> dict[str, Any]:
        """The row as a flat record of COLUMNS."""
        ratio = self.found.ratio
        return {
            **{name: self.cell[name] for name in CELL},
            **{name: getattr(self, name) for name in COLUMNS[len(CELL) : COLUMNS.index("ratio")]},
            **{"ratio": ratio.value, "low": ratio.low, "high": ratio.high, "p": self.found.p},
            **{"p_corrected": self.p_corrected, "verdict": self.verdict, "reason": self.reason},
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a comparison found. `code` is the exit code, `answer` what it means in a sentence."""

    rows: Sequence[Row]
    differences: Sequence[tuple[str, str, str]]
    only_a: Sequence[str]
    only_b: Sequence[str]
    code: int
    answer: str


# Reading ------------------------------------------------------------------------------------------


def find(name: str, root: Path = Path()) -> Path:
    """A results directory, or one of that name among the references. CompareError where there is neither."""
    for path in (root / name, root / REFERENCE / name):
        if path.is_dir():
            return path
    known = sorted(p.name for p in (root / REFERENCE).glob("*") if (p / "tables").is_dir())
    raise CompareError(
        f"{name}: no such directory, and no reference; those here: {', '.join(known) or 'none'}"
    )


def read(path: Path) -> Result:
    """The result in a directory, from its parquet or, as references have it, CSV tables."""
    import pandas as pd

    place = path / "tables" if (path / "tables").is_dir() else path

    def table(name: str) -> pd.DataFrame:
        for file, load in ((place / f"{name}.parquet", pd.read_parquet), (place / f"{name}.csv", of_csv)):
            if file.exists():
                try:
                    return load(file)
                except (ValueError, OSError) as error:
                    what = str(error).strip().partition("\n")[0]
                    raise CompareError(f"{file}: cannot be read ({what}); run the workflow again") from None
        raise CompareError(f"{place}: no {name}.parquet and no {name}.csv there; run `make report` first")

    def of_csv(file: Path) -> pd.DataFrame:
        return pd.read_csv(file, keep_default_na=False, na_values=[""])

    trials, environment = table("trials"), table("environment")
    lacking = [n for n in (*CELL, "host", "repeat", "status") if n not in trials and n != "compile_cache"]
    if lacking:
        raise CompareError(f"{place}/trials: lacks {', '.join(lacking)}; it is of another version")
    if "compile_cache" not in trials:  # before engines that compile
        trials = trials.assign(compile_cache="none")
    facts: dict[str, dict[str, set[str]]] = {}
    for row in environment.to_dict("records"):
        facts.setdefault(str(row["host"]), {}).setdefault(str(row["key"]), set()).add(str(row["value"]))
    manifest: dict[str, Any] = {}
    for file in (path / "matrix.json", path.parent / "matrix.json"):
        if file.exists():
            manifest = _manifest(file)
            break
    # It is written when a run starts, the tables when one ends: an interrupt leaves them apart.
    planned = {line["dir"] for line in manifest.get("trials") or ()}
    if planned and (other := sorted(set(trials.get("dir", ())) - planned)):
        raise CompareError(
            f"{path}: matrix.json and the tables are of two studies (only the tables have {other[0]}): "
            "let the run come to its end, then compare"
        )
    rows = [{k: None if v != v else v for k, v in row.items()} for row in trials.to_dict("records")]
    return Result(
        str(path),
        rows,
        {host: {k: frozenset(v) for k, v in of.items()} for host, of in facts.items()},
        manifest.get("config") or {},
        manifest.get("model") or {},
        manifest.get("crew") or {},
    )


def _manifest(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise CompareError(f"{file}: not a manifest; run the workflow again")
    return data


# Comparing ----------------------------------------------------------------------------------------


def compare(a: Result, b: Result, metrics: Sequence[str] = DEFAULT, tolerance_pct: float = 0.0) -> Outcome:
    """Every cell that both have, in each metric and in how many trials worked.

    p is corrected by Holm's method over all cells and metrics, and apart from that over the shares that
    worked. Worse is significantly worse by more than `tolerance_pct`."""
    ours, theirs = _by_cell(a), _by_cell(b)
    common = [key for key in ours if key in theirs]
    everywhere = _other_work(a, b)
    rows: list[Row] = []
    for key in common:
        cell = dict(zip(CELL, key, strict=True))
        for host_a, host_b in _hosts(ours[key], theirs[key]):
            sides = ours[key][host_a], theirs[key][host_b]
            reason = everywhere or _why_not(cell, a, b, host_a, host_b, *sides)
            how = PAIRED if _in_turn(a, b, host_a, host_b, *sides) else UNPAIRED
            for metric in metrics:
                rows.append(_row(cell, metric, host_a, host_b, how, *sides, reason, tolerance_pct))
            rows.append(_worked(cell, host_a, host_b, *sides, reason))
    judged = [
        *_judged([r for r in rows if r.metric != WORKED]),
        *_judged([r for r in rows if r.metric == WORKED]),
    ]
    order = {id(row.cell): i for i, row in enumerate(rows)}
    judged.sort(key=lambda row: order[id(row.cell)])
    only_a, only_b = (
        [_name(dict(zip(CELL, key, strict=True))) for key in mine if key not in other]
        for mine, other in ((ours, theirs), (theirs, ours))
    )
    code, answer = _answer(judged, common, everywhere)
    return Outcome(judged, differences(a, b), only_a, only_b, code, answer)


def _by_cell(result: Result) -> dict[tuple, dict[str, list[Mapping[str, Any]]]]:
    """Trials by cell, then by host, in the order of the modes."""
    found: dict[tuple, dict[str, list[Mapping[str, Any]]]] = {}
    for trial in sorted(result.trials, key=lambda t: cells.mode_rank(t["mode"])):
        found.setdefault(tuple(trial[n] for n in CELL), {}).setdefault(str(trial["host"]), []).append(trial)
    return found


def _hosts(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Which hosts of a cell are put beside each other: the same ones, or else each with each."""
    return [(h, h) for h in a if h in b] or [(h, other) for h in a for other in b]


def _other_work(a: Result, b: Result) -> str:
    """Why the two did not do the same work at all, as far as their manifests say; else nothing."""
    for name in ("name", "shape", "seed", "dtype"):
        if a.model and b.model and a.model.get(name) != b.model.get(name):
            return f"another model: {name} {_short(a.model.get(name))} against {_short(b.model.get(name))}"
    inputs = [(r.config.get("crew") or {}).get("inputs") for r in (a, b)]
    if a.crew and b.crew and (a.crew != b.crew or inputs[0] != inputs[1]):
        return "the crew's texts differ"
    return ""


def _why_not(
    cell: Mapping[str, Any],
    a: Result,
    b: Result,
    host_a: str,
    host_b: str,
    ours: Sequence[Mapping[str, Any]],
    theirs: Sequence[Mapping[str, Any]],
) -> str:
    """Why a cell's two sides are not the same work on the same kind of machine; else nothing."""
    options = [((r.config.get("variants") or {}).get(cell["variant"]) or {}) for r in (a, b)]
    meant = [{k: v for k, v in o.items() if v is not None} for o in options]
    if a.config and b.config and meant[0] != meant[1]:
        return (
            f"variant {cell['variant']} means something else: {_short(meant[0])} against {_short(meant[1])}"
        )
    for column, what in (
        ("output_tokens_per_round", "output tokens a round"),
        ("device_name", "devices"),
        ("simulated_budget", "simulated budget"),
        ("random_weights", "random weights"),
    ):
        said = [{t.get(column) for t in side if t.get(column) is not None} for side in (ours, theirs)]
        if all(said) and said[0] != said[1]:
            return f"other {what}: {_values(said[0])} against {_values(said[1])}"
    for key in ("cpu", "cores"):
        said = [r.facts.get(host, {}).get(key, frozenset()) for r, host in ((a, host_a), (b, host_b))]
        if all(said) and said[0] != said[1]:
            return f"another machine: {key} {_values(said[0])} against {_values(said[1])}"
    if host_a != host_b and not all(r.facts.get(h, {}).get("cpu") for r, h in ((a, host_a), (b, host_b))):
        return f"other hosts ({host_a}, {host_b}) whose processors are not known"
    return ""


def _in_turn(
    a: Result,
    b: Result,
    host_a: str,
    host_b: str,
    ours: Sequence[Mapping[str, Any]],
    theirs: Sequence[Mapping[str, Any]],
) -> bool:
    """Whether one host ran both sides in turn: the same devices, and spans of time that overlap."""
    if host_a != host_b:
        return False
    devices = [{k: v for k, v in r.facts.get(host_a, {}).items() if k.startswith("device.")} for r in (a, b)]
    times = [sorted(t["started_wall"] for t in side if t.get("started_wall")) for side in (ours, theirs)]
    if devices[0] != devices[1] or not all(times):
        return False
    return times[0][0] <= times[1][-1] and times[1][0] <= times[0][-1]


def _row(
    cell: Mapping[str, Any],
    metric: str,
    host_a: str,
    host_b: str,
    how: str,
    ours: Sequence[Mapping[str, Any]],
    theirs: Sequence[Mapping[str, Any]],
    reason: str,
    tolerance_pct: float,
) -> Row:
    a, b = (
        {
            t["repeat"]: float(t[metric])
            for t in side
            if t["status"] == Status.OK and t.get(metric) is not None
        }
        for side in (ours, theirs)
    )
    means = [stats.geometric_mean(side.values()).value for side in (a, b)]
    if not reason and not (a and b):
        reason = f"measured {'in neither' if not (a or b) else 'in B alone' if b else 'in A alone'}"
    found = Comparison(Estimate(None, None, None, 0, reason), None)
    if not reason:
        found = _ratio(how, a, b)
        if found.p is not None and tolerance_pct:
            found = Comparison(found.ratio, _beyond(how, a, b, found.ratio.value, tolerance_pct))
        if found.p is None:
            fewest = found.ratio.n if how == PAIRED else min(len(a), len(b))
            reason = _too_few(fewest) if found.ratio.value is not None else found.ratio.reason
    return Row(cell, metric, host_a, host_b, how, *means, len(a), len(b), found, reason=reason)


def _too_few(n: int) -> str:
    return f"{stats.TOO_FEW}: {n}, and {SIGNIFICANT_FROM} on each side are needed"


def _ratio(how: str, a: Mapping[int, float], b: Mapping[int, float]) -> Comparison:
    if how == PAIRED:
        return stats.compare_paired(b, a)
    return stats.compare_unpaired(list(b.values()), list(a.values()))


def _beyond(how: str, a: Mapping[int, float], b: Mapping[int, float], ratio: float, pct: float) -> float:
    """The p of a ratio that is further from 1 than the tolerance; 1 inside it."""
    edge = 1 + pct / 100
    if 1 / edge <= ratio <= edge:
        return 1.0
    moved = {repeat: value * (edge if ratio > 1 else 1 / edge) for repeat, value in a.items()}
    return _ratio(how, moved, b).p


def _worked(
    cell: Mapping[str, Any],
    host_a: str,
    host_b: str,
    ours: Sequence[Mapping[str, Any]],
    theirs: Sequence[Mapping[str, Any]],
    reason: str,
) -> Row:
    """How many trials worked: Fisher's exact test of two shares."""
    sizes = [len(side) for side in (ours, theirs)]
    good = [sum(t["status"] == Status.OK for t in side) for side in (ours, theirs)]
    shares = [k / n for k, n in zip(good, sizes, strict=True)]
    ratio = Estimate(shares[1] / shares[0] if shares[0] else None, None, None, min(sizes))
    p = None
    if not reason and min(sizes) < SIGNIFICANT_FROM:
        reason = _too_few(min(sizes))
    elif not reason:
        p = 1.0 if shares[0] == shares[1] else _fisher(good, sizes)
    return Row(cell, WORKED, host_a, host_b, UNPAIRED, *shares, *sizes, Comparison(ratio, p), reason=reason)


def _fisher(good: Sequence[int], sizes: Sequence[int]) -> float:
    from scipy.stats import fisher_exact

    table = [[k, n - k] for k, n in zip(good, sizes, strict=True)]
    return float(fisher_exact(table).pvalue)


def _judged(rows: Sequence[Row]) -> Iterator[Row]:
    """The rows of a family with corrected p and what may be said."""
    for row, p in zip(rows, stats.corrected([r.found for r in rows]), strict=True):
        verdict = row.verdict
        if p is not None:
            verdict = NOT_APART
            if stats.significant(p) == stats.YES:
                ratio = row.found.ratio.value
                more = row.b > row.a if row.metric == WORKED or ratio is None else ratio > 1
                better = "higher" if row.metric == WORKED else METRICS[row.metric].better
                verdict = BETTER if more == (better == "higher") else WORSE
        yield replace(row, p_corrected=p, verdict=verdict)


def _answer(rows: Sequence[Row], common: Sequence[tuple], everywhere: str) -> tuple[int, str]:
    worse = [row for row in rows if row.verdict == WORSE]
    compared = [row for row in rows if row.compared]
    told = {id(row.cell) for row in rows}
    if worse:
        bad = len({id(row.cell) for row in worse})
        return REGRESSED, f"Regressed: B is worse in {bad} of {count(len(told), 'cell')}."
    if not common:
        return NOT_COMPARABLE, "Not comparable: the two have no cell in common."
    if not compared:
        reasons = dict.fromkeys(row.reason for row in rows if row.reason)
        return NOT_COMPARABLE, f"Not comparable: {everywhere or '; '.join(list(reasons)[:3])}."
    known = len({id(row.cell) for row in compared})
    better = len({id(row.cell) for row in compared if row.verdict == BETTER})
    said = f"No regression in {known} of {count(len(told), 'cell')}"
    return SAME, said + (f", {better} better." if better else ".")


# What else differs --------------------------------------------------------------------------------


def differences(a: Result, b: Result) -> list[tuple[str, str, str]]:
    """(what, in A, in B) of everything that differs in environment, config, model and crew. Facts are taken
    over all hosts of a side; what only one side says is a dash on the other."""
    found = []
    sides = []
    for result in (a, b):
        said: dict[str, set[str]] = {"hosts": set(result.facts)}
        for facts in result.facts.values():
            for key, values in facts.items():
                said.setdefault(f"environment.{key}", set()).update(values)
        for part in ("config", "model"):
            for key, value in _flat(getattr(result, part)):
                said[f"{part}.{key}"] = {value}
        if result.crew:
            said["crew"] = {f"texts {_digest(result.crew)}"}
        said["spec"] = {str(t["spec8"]) for t in result.trials if t.get("spec8")}
        sides.append(said)
    for key in dict.fromkeys((*sides[0], *sides[1])):
        one, other = (side.get(key, set()) for side in sides)
        if one == other:
            continue
        if key == "spec":
            shared = f"{len(one & other)} in common"
            found.append(("trials' specs", f"{len(one)}, {shared}", f"{len(other)}, {shared}"))
        else:
            found.append((key, _values(one), _values(other)))
    return found


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif value is not None:
        yield key, _short(value)


def _digest(value: Any) -> str:
    from crewbench.matrix import digest

    return digest(value)


def _short(value: Any) -> str:
    return inert.excerpt(value if isinstance(value, str) else json.dumps(value), 200)


def _values(values: Iterable[Any]) -> str:
    return inert.excerpt(", ".join(sorted(str(v) for v in values)) or "–", 300)


# In words -----------------------------------------------------------------------------------------


def _name(cell: Mapping[str, Any]) -> str:
    return cells.label(cell, [n for n in CELL if n not in ("mode", "gpus", "workload")])


def told(row: Row) -> dict[str, str]:
    """A row as short texts, for a terminal and the page."""
    ratio, shares = row.found.ratio, row.metric == WORKED
    sides = [
        f"{round(v * n)} of {n}" if shares else number(v) for v, n in ((row.a, row.n_a), (row.b, row.n_b))
    ]
    metric = METRICS.get(row.metric)
    interval = f"[{number(ratio.low)}, {number(ratio.high)}]" if ratio.has_interval else ""
    return {
        "mode": str(row.cell["mode"]),
        "cell": _name(row.cell),
        "metric": f"{metric.title}, {metric.unit}" if metric else "Trials that worked",
        "hosts": row.host_a if row.host_a == row.host_b else f"{row.host_a} / {row.host_b}",
        "a": sides[0],
        "b": sides[1],
        "ratio": "" if shares or ratio.value is None else f"{number(ratio.value)} ×",
        "interval": interval,
        "n": str(row.n_a) if row.n_a == row.n_b else f"{row.n_a} / {row.n_b}",
        "p": p_value(row.p_corrected),
        "verdict": row.verdict or "not compared",
        "reason": row.reason if not row.compared else row.how,
    }
