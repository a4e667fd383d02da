#!/usr/bin/env python
"""How long the tables of many trials take: makes trials on disk, aggregates 100, 1,000 and 10,000 of them.

    python bench/aggregate.py --trials 10000 --limit-s 60 --out bench/aggregate.json

Ends with 1 when the largest takes longer than the limit, or when time per trial grows (not linear).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "unit")]

import made_trials  # noqa: E402  the paths above come first

from crewbench.trial import Cell  # noqa: E402


def make(root: Path, count: int) -> list[dict[str, str]]:
    """Trials of eight agents and two warm rounds, cells and repeats in turn, as a large study has them."""
    one = {"agents": 8, "engine": "eager", "start": "zygote"}
    cells = [
        Cell("parallel", 8, **one),
        Cell("auto_expand", 4, **one),
        Cell("sequential", 1, **one),
        Cell("shared", 1, **one),
        Cell("cooperative", 1, **one),
        Cell("hierarchical", 4, **one),
    ]
    lines = []
    for number in range(count):
        cell = cells[number % len(cells)]
        variant = f"v{number // (len(cells) * 5)}"
        cell = Cell(cell.mode, cell.gpus, cell.agents, cell.engine, cell.start, variant)
        repeat = number // len(cells) % 5 + 1
        lines.append(made_trials.make_trial(root / "trials", cell, repeat, order=number))
    return lines


def aggregate(root: Path, lines: list[dict[str, str]]) -> tuple[float, float]:
    """Wall seconds of scripts/tables.py over these trials, interpreter start included, and its peak MiB."""
    manifest = made_trials.write_manifest(root, lines)
    command = [sys.executable, str(ROOT / "scripts" / "tables.py"), "--matrix", str(manifest)]
    start = time.monotonic()
    subprocess.run([*command, "--out", str(root / "tables")], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--limit-s", type=float, default=60.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    sizes = [n for n in (100, 1_000, 10_000, 100_000) if n < args.trials] + [args.trials]
    results = []
    with tempfile.TemporaryDirectory(prefix="crewbench-bench-") as scratch:
        lines = make(Path(scratch), args.trials)
        megabytes = sum(f.stat().st_size for f in Path(scratch).rglob("*") if f.is_file()) / 1e6
        print(f"{args.trials} trials, {megabytes:,.0f} MB")
        for size in sizes:
            seconds, peak_mib = aggregate(Path(scratch), lines[:size])
            results.append({"trials": size, "seconds": round(seconds, 2), "peak_mib": round(peak_mib)})
            each_ms = 1e3 * seconds / size
            print(f"{size:>7} trials: {seconds:6.2f} s, {each_ms:6.2f} ms a trial, {peak_mib:,.0f} MiB")
    linear = True
    if len(results) > 2:  # the start of the interpreter weighs on the smallest
        per_trial = [r["seconds"] / r["trials"] for r in results[1:]]
        linear = per_trial[-1] <= 1.25 * per_trial[0]
    if args.out:
        args.out.write_text(
            json.dumps({"megabytes": round(megabytes), "linear": linear, "sizes": results}, indent=1)
        )
    return 0 if results[-1]["seconds"] <= args.limit_s and linear else 1


if __name__ == "__main__":
    sys.exit(main())
