"""Rows as tables whose columns have a type, whether or not there are rows."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, get_type_hints

import pandas as pd
import pyarrow as pa
import pyarrow.csv

from crewbench import breakeven, inert, metrics, quality
from crewbench.records import Identity, columns
from crewbench.tables.one_trial import ERROR_CHARACTERS
from crewbench.tables.reading import types_of

_TEXTS = {
    *("trial_id", "mode", "engine", "start", "variant", "host", "compile_cache", "workload", "status"),
    *("step", "agent", "worker", "note", "relation", "alone", "comparison", "outcome"),
    *("phase", "significant", "fits", "predicted_fits", "device_name", "evidence"),
    *("first", "constraint", "over", "bound", "each", "why", "unexplained"),
    *(f"{side}_{name}" for side in "ab" for name in breakeven.OWN),
}
_COUNTS = {"gpus", "agents", "repeat", "warm_rounds", "replays", "steps", "worker_life", "readings", "n"}
_COUNTS |= {"calls_per_round", "a_gpus", "b_gpus", "pairs", "context_tokens", "position", "rounds"}
_COUNTS |= {"most_agents", "points", "points_worked", "agents_from", "agents_to", "gpus_from", "gpus_to"}
_TRUTHS = {"as_measured", "settled", "simulated_budget", "random_weights"}


def typed(rows: Iterable[Mapping[str, Any]], names: Sequence[str], gaps: Sequence[str] = ()) -> pd.DataFrame:
    """Rows as a table whose columns have a type, with and without rows: text, count, truth, else a number. A
    count that may be missing (`gaps`) is a number."""
    frame = pd.DataFrame(list(rows), columns=list(names))
    of = {str: _TEXTS, int: _COUNTS.difference(gaps), bool: _TRUTHS}
    kinds = {n: next((kind for kind, these in of.items() if n in these), float) for n in names}
    return frame.astype(kinds)


def numeric(frame: pd.DataFrame) -> pd.DataFrame:
    """Metrics that no trial measured are columns of numbers still, all of them empty."""
    wanted = [c for c in frame if c in metrics.METRICS or c.endswith(("_mib", "_pct", "_j", "_w", "_gb_s"))]
    return frame.astype(dict.fromkeys(wanted, float))


def numbers_of_checks(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=list(quality.COLUMNS))
    numbers = ["times_plain", *(f.name for f in fields(quality.Numbers))]
    return frame.astype(dict.fromkeys(numbers, float))


def join(bodies: list[bytes], row_type: type) -> pd.DataFrame:
    """Files of one type as one table: their bodies were checked one by one, so they are parsed together."""
    names = columns(row_type)
    hints = {**get_type_hints(Identity), **{n: k for n, k, _ in types_of(row_type)}}
    arrow = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}
    content = b"".join(bodies)
    types = {n: arrow.get(hints[n], pa.string()) for n in names}
    if not content:
        return pa.schema(types).empty_table().to_pandas()
    options = pa.csv.ConvertOptions(column_types=types)
    # One block: a cell may be longer than pyarrow's usual block, and quoted cells may hold newlines.
    read = pa.csv.ReadOptions(column_names=names, block_size=min(len(content) + 1, 2**31 - 1))
    table = pa.csv.read_csv(
        io.BytesIO(content), read, pa.csv.ParseOptions(newlines_in_values=True), options
    ).to_pandas()
    if "error" in table:
        table["error"] = table["error"].map(
            lambda text: inert.excerpt(text, ERROR_CHARACTERS) if text else ""
        )
    return table
