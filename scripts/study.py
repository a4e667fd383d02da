#!/usr/bin/env python
"""Run a study until its numbers are narrow: raise `repeats`, call the workflow again, look at the intervals.

    python scripts/study.py --configfile config/mistral-7b.yaml --config 'study={repeats_max: 30}' \\
        --resources gpu=8

Stops when half of every interval is within study.half_width_pct of its estimate, from 5 repeats on, or at
study.repeats_max. After each pass it says which cells are still wide. The same command goes on where it was
interrupted, and only trials that are not there run. What it does not know goes to Snakemake.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EMBEDDED = ROOT / "config" / "config.yaml"


def merged(files: list[str], entries: list[str]) -> dict[str, Any]:
    """The config as Snakemake lays it together: the embedded one, the files, the command line."""
    from snakemake.cli import parse_config
    from snakemake.utils import update_config

    from crewbench.problems import ConfigError, Problem, read_yaml

    config: dict[str, Any] = {}
    for file in (EMBEDDED, *files):
        update_config(config, read_yaml(file))
    try:
        update_config(config, parse_config(entries))
    except ValueError as error:
        raise ConfigError("--config", [Problem("the command line", str(error))]) from None
    return config


class Workflow:
    """Snakemake as a child: told to finish its trial and stop when this process is, in whatever way."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._child: subprocess.Popen[bytes] | None = None
        self.stopped_by = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, number: int, _frame: Any) -> None:
        self.stopped_by = number
        # A terminal has told the child of Ctrl-C already.
        if self._child is not None and number != signal.SIGINT:
            self._child.send_signal(number)

    def run(self, *more: str) -> int:
        """One pass; its exit code, or that of the signal which stopped this process."""
        if self.stopped_by:
            return 128 + self.stopped_by
        from crewbench.execute.guardian import PR_SET_PDEATHSIG, prctl

        self._child = subprocess.Popen(
            [sys.executable, "-m", "snakemake", *self._words, *more],
            preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
        )
        code = self._child.wait()
        return 128 + self.stopped_by if self.stopped_by else code


def say(text: str) -> None:
    print(f"study: {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--configfile", "--configfiles", nargs="+", default=[], help="as Snakemake's")
    parser.add_argument("--config", "-C", nargs="*", default=[], metavar="KEY=VALUE", help="as Snakemake's")
    args, others = parser.parse_known_args()
    if {"-n", "--dry-run", "--dryrun"} & set(others):
        parser.error("a dry run finds no intervals: try `snakemake -n` with the same arguments")

    from crewbench import matrix, progress, repeats
    from crewbench.config import load
    from crewbench.problems import ConfigError
    from crewbench.words import count

    try:
        mapping = merged(args.configfile, args.config)
        config = load(mapping)
        goal, least = config.study, config.repeats
        most = max(goal.repeats_max, least)
        smaller, larger = (matrix.build(load({**mapping, "repeats": n})) for n in (least, most + 1))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    cells = repeats.growing(smaller, larger)
    now = min(repeats.begun(larger, progress.done(larger), cells, least), most)
    words = [] if any(w.startswith(("-c", "--cores", "-j", "--jobs")) for w in others) else ["--cores", "all"]
    words += [*others, *(["--configfile", *args.configfile] if args.configfile else [])]
    entries = [entry for entry in args.config if not entry.startswith("repeats=")]
    workflow = Workflow(words)
    while True:
        say(f"{count(now, 'repeat')} of {count(len(cells), 'cell')}, at most {most}")
        if code := workflow.run("--config", *entries, f"repeats={now}"):
            say("stopped; the same command goes on where this one ended")
            return code
        found = repeats.widths(_summary(), cells)
        wide = [cell for cell in found if cell.wide(goal.half_width_pct)]
        for cell in wide:
            say(f"still wide: {_words(cell)}")
        following = repeats.following(now, wide, goal.half_width_pct, most)
        if following is None:
            say(_ending(now, len(wide), sum(not cell.n for cell in found), goal.half_width_pct))
            return 0
        now = following


def _summary() -> list[dict[str, Any]]:
    import pandas as pd

    return pd.read_parquet("results/tables/summary.parquet").to_dict("records")


def _words(cell: Any) -> str:
    """ "Shared, 1 GPU, 8 agents, eager, zygote start, base: cold ± 7.1 %, warm ± 2.3 %, n = 5"."""
    from crewbench import cells
    from crewbench.words import number

    said = [
        f"{name.removesuffix('_s')} " + ("without an interval" if half is None else f"± {number(half)} %")
        for name, half in cell.half_pct.items()
    ]
    return f"{cells.label(cell.cell, cells.CELL[2:])}: {', '.join([*said, f'n = {cell.n}'])}"


def _ending(repeats: int, wide: int, failed: int, goal_pct: float) -> str:
    from crewbench.words import count, number

    said = f"{count(repeats, 'repeat')} are enough: every interval is within {number(goal_pct)} %"
    if wide:
        said = (
            f"{count(repeats, 'repeat')} are the most (study.repeats_max): {count(wide, 'cell')} still wide"
        )
    return said + (f"; {count(failed, 'cell')} in which no trial worked" if failed else "")


if __name__ == "__main__":
    sys.exit(main())
