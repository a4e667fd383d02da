"""Tables on disk: CSV for people, parquet for what reads them next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from crewbench import inert
from crewbench.tables.reading import TableError


def write(tables: Mapping[str, pd.DataFrame], out: Path) -> None:
    """out/<name>.parquet and out/<name>.csv. In CSV, text that a spreadsheet could run gets an apostrophe."""
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in tables.items():
        frame.to_parquet(out / f"{name}.parquet", index=False)
        table = pa.Table.from_pandas(frame, preserve_index=False)
        for position, field in enumerate(table.schema):
            if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
                # Few values are distinct: each is guarded once.
                coded = table[position].combine_chunks().dictionary_encode()
                safe = [v if v is None else inert.guarded(v) for v in coded.dictionary.to_pylist()]
                guarded = pa.array(safe, field.type).take(coded.indices)
                table = table.set_column(position, field.name, guarded)
        with open(out / f"{name}.csv", "wb") as file:
            pa.csv.write_csv(table, file, pa.csv.WriteOptions(quoting_style="needed"))


def load(out: Path) -> dict[str, pd.DataFrame]:
    """The tables as `write` left them. Raises TableError naming one that is missing."""
    names = (
        "trials",
        "rounds",
        "agents",
        "workers",
        "ooms",
        "replays",
        "servers",
        "devices",
        "attempts",
        "summary",
        "certificates",
        "feasibility",
        "capacity",
        "comparisons",
        "verdict",
        "constraints",
        "bounds",
        "chain",
        "tax",
        "tax_steps",
        "serving",
        "interference",
        "breakeven",
        "breakeven_repeats",
        "study",
        "quality",
        "skipped",
        "environment",
        "samples",
        "outputs",
    )
    missing = [str(out / f"{n}.parquet") for n in names if not (out / f"{n}.parquet").exists()]
    if missing:
        raise TableError([f"{path}: missing; run scripts/tables.py first" for path in missing])
    return {n: pd.read_parquet(out / f"{n}.parquet") for n in names}
