#!/usr/bin/env python
"""Reads the trials of a manifest and writes the tables (CSV and parquet).

python scripts/tables.py --matrix results/matrix.json --out results/tables
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from crewbench import tables
from crewbench.watch import end_with_workflow


def main() -> int:
    end_with_workflow()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--matrix", type=Path, default=Path("results/matrix.json"), help="the manifest")
    parser.add_argument("--out", type=Path, default=Path("results/tables"), help="where the tables go")
    args = parser.parse_args()
    try:
        made = tables.build(tables.read_manifest(args.matrix))
    except tables.TableError as error:
        print(f"The results cannot be read:\n{error}", file=sys.stderr)
        return 2
    tables.write(made, args.out)
    print(", ".join(f"{len(frame)} {name}" for name, frame in made.items()), f"-> {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
