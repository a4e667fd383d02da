#!/usr/bin/env python
"""Compare two results cell by cell: what got slower, how sure that is, and what else differs.

    python scripts/compare.py results/reference/2x-h200-core results
    python scripts/compare.py 2x-h200-core results --html compare.html --csv compare.csv

A and B are results directories (or their tables), or names of results/reference. B is judged against A. For
CI the exit code is 0 where nothing is significantly worse, 1 where something is, 2 where the two cannot be
compared, and why is said. --strict makes it 2 as well where any cell that both have was not compared.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from crewbench import compare, inert
from crewbench.metrics import METRICS
from crewbench.report import comparing

SHOWN = ("cell", "metric", "a", "b", "ratio", "interval", "n", "p", "verdict", "reason")
HEADINGS = ("Cell", "Metric", "A", "B", "B over A", "95 %", "n", "p (Holm)", "Verdict", "Why, or how")


def table(rows: Sequence[compare.Row]) -> str:
    """The rows as a table of plain text."""
    lines = [HEADINGS, *([compare.told(row)[name] for name in SHOWN] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(SHOWN))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def write_csv(rows: Sequence[compare.Row], path: Path) -> None:
    """The rows as CSV. Text that a spreadsheet could run gets an apostrophe."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, compare.COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {k: inert.guarded(v) if isinstance(v, str) else v for k, v in row.record().items()}
            )


def write_page(page: str, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, path)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [m.name for m in METRICS.values() if m.scale == "log" and m.better != "neither"]
    parser.add_argument("a", metavar="A", help="the result to judge by")
    parser.add_argument("b", metavar="B", help="the result that is judged")
    parser.add_argument(
        "--metrics", nargs="+", choices=names, default=list(compare.DEFAULT), help="what to compare"
    )
    parser.add_argument("--tolerance", type=float, default=0.0, metavar="PCT", help="what may change (0)")
    parser.add_argument("--html", type=Path, help="write a page there")
    parser.add_argument("--csv", type=Path, help="write the rows there")
    parser.add_argument("--strict", action="store_true", help="2 where any common cell was not compared")
    args = parser.parse_args()
    if args.tolerance < 0:
        parser.error("--tolerance must not be negative")
    try:
        sides = [compare.read(compare.find(name)) for name in (args.a, args.b)]
    except compare.CompareError as error:
        print(f"Not comparable: {error}", file=sys.stderr)
        return compare.NOT_COMPARABLE
    found = compare.compare(*sides, args.metrics, args.tolerance)
    print(f"A: {sides[0].name}\nB: {sides[1].name}\n")
    if found.rows:
        print(table(found.rows), end="\n\n")
    for side, only in (("A", found.only_a), ("B", found.only_b)):
        if only:
            print(f"Only in {side}: " + "; ".join(only))
    if found.differences:
        print("What differs:")
        for what, one, other in found.differences:
            print(f"  {what}: {one} -> {other}")
    print(found.answer)
    try:
        if args.csv:
            write_csv(found.rows, args.csv)
        if args.html:
            write_page(comparing.page(*sides, found), args.html)
    except OSError as error:
        print(f"Cannot be written: {error}", file=sys.stderr)
        return compare.NOT_COMPARABLE
    if args.strict and found.code == compare.SAME and not all(row.compared for row in found.rows):
        print("Not comparable: with --strict, because some cells were not compared.")
        return compare.NOT_COMPARABLE
    return found.code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception:  # Python's own exit code for a crash is 1, which means "worse" here
        traceback.print_exc()
        sys.exit(compare.NOT_COMPARABLE)
