"""Time and memory of the embedded study, from a copy of the checkout to the report.

Memory is the sum of PSS (proportional set size: shared pages divided among their sharers, proc(5)) over all
processes below this one, sampled every second.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("Snakefile", "config", "envs", "profiles", "scripts", "workflow")
sys.path.insert(0, str(ROOT / "scripts"))

from crewbench.devices.procfs import descends_from  # noqa: E402


def pss_mib(ancestor: int) -> float:
    """MiB that all processes below `ancestor` hold now."""
    total = 0
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with suppress(OSError, StopIteration):
            if descends_from(int(entry.name), ancestor):
                lines = Path(entry.path, "smaps_rollup").read_text().splitlines()
                total += int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return total / 1024


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="crewbench-bench-") as place:
        for part in PARTS:
            source = ROOT / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, Path(place, part))
        snakemake = [sys.executable, "-m", "snakemake", "--cores", "all", "--resources", "gpu=8"]
        began = time.monotonic()
        run = subprocess.Popen([*snakemake, "--quiet", "all"], cwd=place, stdout=subprocess.DEVNULL)
        peak = 0.0
        while True:
            with suppress(subprocess.TimeoutExpired):
                run.wait(1)
                break
            peak = max(peak, pss_mib(run.pid))
        wall = time.monotonic() - began
        trials = len(list(Path(place, "results/trials").glob("*/*/trial.json")))
        print(f"{'trials':>8} {'seconds':>9} {'peak MiB':>9} {'exit':>5}")
        print(f"{trials:>8} {wall:>9.0f} {peak:>9.0f} {run.returncode:>5}")
        with open(Path(place, "results/tables/study.csv"), newline="") as file:
            for row in csv.DictReader(file):
                print(
                    "trials from first start to last end: {wall_s} s, lower bound {bound_s} s".format(**row)
                )


if __name__ == "__main__":
    main()
