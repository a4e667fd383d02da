#!/usr/bin/env python
"""Writes the report: one HTML file from the tables and figures, with nothing to fetch.

    python scripts/report.py --matrix results/matrix.json --tables results/tables \\
        --figures results/figures --out results/report.html
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from crewbench import report, tables
from crewbench.watch import end_with_workflow


def main() -> int:
    end_with_workflow()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--matrix", type=Path, default=Path("results/matrix.json"), help="the manifest")
    parser.add_argument("--tables", type=Path, default=Path("results/tables"), help="what tables.py wrote")
    parser.add_argument("--figures", type=Path, default=Path("results/figures"), help="what figures.py wrote")
    parser.add_argument("--out", type=Path, default=Path("results/report.html"), help="the page")
    args = parser.parse_args()
    try:
        page = report.build(tables.read_manifest(args.matrix), tables.load(args.tables), args.figures)
    except (tables.TableError, FileNotFoundError) as error:
        print(f"The report cannot be written:\n{error}", file=sys.stderr)
        return 2
    part = args.out.with_name(args.out.name + ".part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, args.out)
    print(f"{args.out}: {len(page.encode()) / 1e3:,.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
