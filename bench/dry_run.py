"""Time and peak memory of `snakemake -n` for large studies: what a user waits before anything runs.

    python bench/dry_run.py [TRIALS ...]          default: 1000 3000 10000

The study is the embedded one with more repeats, in a directory of its own, with nothing done yet. The last
line is JSON.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS = [
    {"mode": "parallel", "gpus": [1, 2, 4, 8]},
    {"mode": "hierarchical", "gpus": [1, 2, 4, 8]},
    {"mode": "auto_expand", "gpus": 8},
    {"mode": "sequential"},
]
CELLS = 10


def measure(trials: int, place: Path) -> dict[str, float]:
    """One dry run in `place`, an empty directory with the project's own files linked into it."""
    for name in ("Snakefile", "workflow", "scripts", "config", "envs", "profiles"):
        (place / name).symlink_to(ROOT / name)
    study = place / "study.json"
    study.write_text(json.dumps({"repeats": math.ceil(trials / CELLS), "runs": RUNS}))
    command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "all", "--cores", "1"]
    began = time.monotonic()
    process = subprocess.Popen(
        [*command, "--configfile", str(study)],
        cwd=place,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "XDG_CACHE_HOME": str(place / "cache")},
    )
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(said.decode())
    return {"trials": trials, "seconds": round(seconds, 2), "peak_mib": round(usage.ru_maxrss / 1024)}


def main() -> None:
    results = []
    for trials in [int(word) for word in sys.argv[1:]] or [1000, 3000, 10_000]:
        place = Path(tempfile.mkdtemp(prefix="crewbench-bench-"))
        try:
            results.append(measure(trials, place))
        finally:
            shutil.rmtree(place)
        print("{trials:>7} trials {seconds:>7.1f} s {peak_mib:>7} MiB".format(**results[-1]), flush=True)
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({"dry_run": results, "machine": machine}))


if __name__ == "__main__":
    main()
