#!/usr/bin/env python
"""Draws every figure from the tables: SVG (light and dark, wide and narrow), PNG and figures.json.

python scripts/figures.py --matrix results/matrix.json --tables results/tables --out results/figures
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from crewbench import figures, tables
from crewbench.watch import end_with_workflow


def main() -> int:
    end_with_workflow()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--matrix", type=Path, default=Path("results/matrix.json"), help="the manifest")
    parser.add_argument("--tables", type=Path, default=Path("results/tables"), help="what tables.py wrote")
    parser.add_argument("--out", type=Path, default=Path("results/figures"), help="where the figures go")
    args = parser.parse_args()
    try:
        config = tables.read_manifest(args.matrix).config
        study = figures.Study(tables.load(args.tables), config.get("thresholds", {}))
    except tables.TableError as error:
        print(f"The tables cannot be read:\n{error}", file=sys.stderr)
        return 2
    look = config.get("report", {})
    names = figures.write(study, args.out, look.get("palette", "colorblind"), look.get("png_dpi", 120))
    print(f"{len(names)} figures -> {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
